"""Arrays: every kind of number is read, every bad file is one reject, and nothing is unpickled."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ccaco_cli.core.data import arrays, shards
from ccaco_cli.core.data.checks import Passed, Rejected, Rules, check
from ccaco_cli.core.data.sources.source import SourceOptions
from ccaco_cli.core.data.sources.table import SOURCE as TABLE
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.types import PairRecord

CLOUD = np.random.default_rng(0).normal(size=(5, 3))


def npy(array: Any, **options: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, array, **options)
    return out.getvalue()


def npz(**members: Any) -> bytes:
    out = io.BytesIO()
    np.savez_compressed(out, **members)
    return out.getvalue()


def header(shape: str, descr: str = "<f4") -> bytes:
    """A ``.npy`` file that promises a shape and holds nothing."""
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


class Opened:
    """A pickle of this runs code when it is loaded."""

    def __reduce__(self) -> Any:
        return (pytest.fail, ("a pickle was loaded",))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (npy(CLOUD), CLOUD),
        (npy(CLOUD.astype(np.float16)), CLOUD.astype(np.float16)),
        (npy(CLOUD.astype(">f8")), CLOUD),
        (npy(np.asfortranarray(CLOUD)), CLOUD),
        (npy(np.arange(4, dtype=np.uint8)), [[0, 1, 2, 3]]),
        (npy(np.array([[True, False]])), [[1, 0]]),
        (npz(points=CLOUD), CLOUD),
    ],
    ids=["float64", "float16", "big-endian", "Fortran", "vector of bytes", "booleans", "npz"],
)
def test_every_kind_of_number_is_read(data: bytes, expected: Any) -> None:
    rows = arrays.decode(data)
    assert rows.dtype == np.float32 and rows.flags.c_contiguous
    assert np.allclose(rows, expected, atol=1e-3)
    stored, measures, facts = arrays.check(data, None)
    assert np.array_equal(arrays.decode(stored), rows) and stored == arrays.encode(rows)
    assert measures == {"array_rows": len(rows), "array_columns": rows.shape[1]} and facts["rows"] == len(rows)


BAD = {
    "NaN": (npy([[1.0, np.nan]]), "NaN or infinite"),
    "infinite": (npy([np.inf, 1.0]), "NaN or infinite"),
    "too large for float32": (npy([1e300]), "NaN or infinite"),
    "objects": (npy(np.array([{"a": 1}], object), allow_pickle=True), "Python objects|other values"),
    "objects that run code": (npy(np.array([Opened()], object), allow_pickle=True), "Python objects|other values"),
    "objects in npz": (npz(a=np.array([Opened()], object)), "Python objects|other values"),
    "a pickle": (pickle.dumps([1.0]), "not an array file"),
    "complex": (npy(np.ones(3, complex)), "other values than numbers"),
    "texts": (npy(np.array(["a"])), "other values than numbers"),
    "dates": (npy(np.array(["2020-01-01"], "datetime64[D]")), "other values than numbers"),
    "records": (npy(np.zeros(2, [("x", "<f4")])), "other values than numbers"),
    "records with names of other alphabets": (npy(np.zeros(2, [("ä", "<f4")])), "other values than numbers|damaged"),
    "2 GB in the header": (header("(536870912,)"), "incomplete array file"),
    "more than an address in the header": (header("(4611686018427387904, 8)"), "incomplete array file"),
    "negative": (header("(-1, 4)"), "incomplete array file|damaged"),
    "a header that is code": (header("__import__('os').abort()"), "damaged array file"),
    "cut off": (npy(CLOUD)[:-8], "incomplete array file"),
    "bytes behind the end": (npy(CLOUD) + b"x", "incomplete array file"),
    "zero rows": (npy(np.zeros((0, 3))), "empty array"),
    "zero columns": (npy(np.zeros((3, 0))), "empty array"),
    "0-d": (npy(np.float32(3)), "other axes"),
    "three axes": (npy(np.zeros((2, 3, 4))), "other axes"),
    "several arrays": (npz(a=CLOUD, b=CLOUD), "without exactly one array"),
    "an empty archive": (b"PK\x05\x06" + bytes(18), "without exactly one array"),
    "a broken archive": (npz(a=CLOUD)[:-30], "damaged array file"),
    "words": (b"a dog", "not an array file"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_array_is_one_reject_and_is_not_unpickled(name: str) -> None:
    data, reason = BAD[name]
    with pytest.raises(DataError, match=reason):
        arrays.decode(data)
    record = PairRecord("a", "a", "test", {"array": data})
    outcome = check(record, Rules(None, ("array",)))
    assert isinstance(outcome, Rejected) and "\n" not in outcome.reason + outcome.where


def test_an_archive_is_not_unpacked_beyond_the_size_of_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "MAX_FILE_BYTES", 1000)
    with pytest.raises(DataError, match="file too large"):
        arrays.decode(npz(a=np.zeros(10_000)))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("words.txt", "a dog")
    with pytest.raises(DataError, match="not an array file"):
        arrays.decode(out.getvalue())


def write(folder: Path, samples: list[Any], modality: str = "array") -> Any:
    records = [
        PairRecord(f"s{i}", f"s{i}", "train", {modality: npy(sample)}, [f"number {i}"])
        for i, sample in enumerate(samples)
    ]
    info = shards.DatasetInfo("d", (modality, "text"))
    return shards.write(records, folder, info, shards.WriteOptions(workers=0, max_rejects=0.5, rows_per_shard=2))


def test_samples_of_another_width_are_rejected(tmp_path: Path) -> None:
    written = write(tmp_path / "d", [np.ones((2, 3)), np.ones((9, 3)), np.ones((2, 4)), np.ones(3), np.ones(2)])
    assert written.facts["rejects"] == {"another shape than the first sample": 2}
    assert "array_columns 4, in the first sample 3" in (tmp_path / "d/rejects.csv").read_text()
    assert written.facts["inspection"]["train"]["array_columns"] == {"min": 3, "mean": 3, "max": 3}


def test_the_width_of_an_interrupted_run_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = [np.ones((2, 3)), np.ones((2, 3)), np.ones(4), np.ones(3)]
    with monkeypatch.context() as patch:
        patch.setattr(shards, "compute_stats", lambda folder: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write(tmp_path / "d", samples)
    (tmp_path / ".d.partial/train-00001.json").unlink()  # as if the process had ended before the second shard
    assert write(tmp_path / "d", samples).facts["rejects"] == {"another shape than the first sample": 1}


def test_moments_are_those_of_all_rows_of_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "ROWS_AT_ONCE", 3)
    rng = np.random.default_rng(1)
    samples = [rng.normal(1e4, 2.0, (n, 3)).astype(np.float32) for n in (1, 4, 2, 7, 3, 5, 1)]
    for sample in samples:
        sample[:, 1] = 5.0
    write(tmp_path / "d", samples)
    data, rows = shards.open(tmp_path / "d"), np.concatenate(samples).astype(np.float64)
    measured = arrays.measure(data, "array")
    assert (measured["columns"], measured["rows"]) == (3, 7)
    assert np.allclose(measured["mean"], rows.mean(0), rtol=1e-5)
    assert np.allclose(measured["std"], [rows[:, 0].std(), 1.0, rows[:, 2].std()], rtol=1e-4)
    monkeypatch.setattr(arrays, "decode", lambda data: 1 / 0)
    assert arrays.measure(data, "array") == measured, "the second call reads the cache"


@pytest.mark.parametrize("sample", [CLOUD, np.ones((40, 6)), np.ones(7), np.zeros((9, 2)), np.ones((1, 1))])
def test_every_array_has_a_picture(sample: Any) -> None:
    image = arrays.picture(npy(sample), 60)
    assert image.mode == "RGB" and image.width == 60 and image.height in (30, 60)
    assert len(image.getcolors(4000) or ()) > 1, "something is drawn"


@pytest.mark.parametrize("kind", [".parquet", ".jsonl", ".json"])
def test_a_list_column_of_a_table_holds_arrays(tmp_path: Path, kind: str) -> None:
    rows: list[dict[str, Any]] = [{"points": CLOUD[: i + 1].tolist(), "title": f"a cloud of {i}"} for i in range(3)]
    rows += [{"points": CLOUD[:1].tolist(), "title": "the same numbers are another sample"}, {"points": None}]
    path = tmp_path / f"t{kind}"
    if kind == ".parquet":
        import pyarrow as pa
        from pyarrow import parquet

        parquet.write_table(pa.Table.from_pylist(rows), path)
    elif kind == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    data = TABLE.read(path, SourceOptions(modality="array", columns={"array": "points"}))
    assert data.modalities == ("array", "text")
    records = sorted(data.records, key=lambda record: record.id)
    passed = [check(record, Rules(None, ("array", "text"))) for record in records]
    stored = [arrays.decode(outcome.row["array"]) for outcome in passed if isinstance(outcome, Passed)]
    assert [len(rows) for rows in stored] == [1, 2, 3, 1] and np.allclose(stored[2], CLOUD[:3], atol=1e-6)
    assert isinstance(passed[4], Rejected)


def test_bad_lists_of_a_table_are_rejects(tmp_path: Path) -> None:
    rows = [[[1, 2], [3]], ["a", "b"], [[1.0, None]], [1e400], [[[[1]]]]]
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(json.dumps({"filepath": row, "title": "x"}) for row in rows))
    records = TABLE.read(path, SourceOptions(modality="array")).records
    assert all(isinstance(check(record, Rules(None, ("array", "text"))), Rejected) for record in records)
    for record in TABLE.read(path, SourceOptions()).records:
        assert record.problem, "an image is no list of numbers"
