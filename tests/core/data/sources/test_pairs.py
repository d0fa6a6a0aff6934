"""Embeddings of other models, row by row: what is read, how it is split, and what is refused."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ccaco_cli.core.data import arrays, shards
from ccaco_cli.core.data.preparation import prepare
from ccaco_cli.core.data.shards import WriteOptions
from ccaco_cli.core.data.sources.lists import hash_split
from ccaco_cli.core.data.sources.source import SourceOptions
from ccaco_cli.core.errors import DataError

WRITE = WriteOptions(workers=0, max_rejects=0.5)


def save(folder: Path, **values: Any) -> dict[str, Path]:
    """Writes arrays as .npy and lists as lines; returns name -> file."""
    files = {}
    for name, value in values.items():
        files[name] = folder / (f"{name}.npy" if isinstance(value, np.ndarray) else f"{name}.txt")
        if isinstance(value, np.ndarray):
            np.save(files[name], value)
        else:
            files[name].write_text("\n".join(value) + "\n", "utf-8")
    return files


def vectors(count: int, width: int, dtype: Any = np.float32) -> Any:
    return np.random.default_rng(width).normal(size=(count, width)).astype(dtype)


def read(folder: Path, out: str = "d", **values: Any) -> Any:
    options = SourceOptions(inputs=save(folder, **values))
    prepare("pairs", out=folder / out, options=options, write=WRITE)
    return shards.open_any(folder / out)


def test_row_by_row_with_ids_groups_and_captions(tmp_path: Path) -> None:
    a, b, groups = vectors(40, 8, np.float16), vectors(40, 5, ">f8"), [f"g{i // 2}" for i in range(40)]
    names, captions = [f"n{i}" for i in range(40)], [f"caption {i}" for i in range(40)]
    data = read(tmp_path, a=a, b=b, ids=names, groups=groups, captions=captions)
    assert data.modalities == ("array", "array2")
    count = 0
    for split in (data.split(name) for name in data.splits):
        for row, id in enumerate(split.ids):
            number = int(id[1:])
            assert np.array_equal(arrays.decode(split.media("array", [row])[0]), a[number : number + 1].astype("f4"))
            assert np.allclose(arrays.decode(split.media("array2", [row])[0])[0], b[number], atol=1e-6)
            assert split.name == hash_split(groups[number]) and split.captions[row] == captions[number]
            count += 1
    assert count == 40
    facts = data.manifest.facts
    assert "a.npy sha256:" in facts["revision"] and data.manifest.config["inputs"]["a"].endswith("a.npy")


def test_vectors_with_captions_are_array_and_text(tmp_path: Path) -> None:
    data = read(tmp_path, a=vectors(30, 4), captions=["x", *(f"caption {i}" for i in range(29))])
    assert data.modalities == ("array", "text") and len(data.split("all")) == 30


def test_sets_of_vectors_and_numbers_as_groups(tmp_path: Path) -> None:
    data = read(tmp_path, a=vectors(20 * 3, 4).reshape(20, 3, 4), b=vectors(20, 4), groups=np.arange(20) // 4)
    split = data.split("all")
    assert arrays.decode(split.media("array", [0])[0]).shape == (3, 4) and len(set(split.group.tolist())) == 5


def test_bad_rows_are_rejects(tmp_path: Path) -> None:
    a = vectors(30, 4, np.float64)
    a[3, 1], a[4, 0], a[5, 2] = np.nan, np.inf, 1e300
    data = read(tmp_path, a=a, b=vectors(30, 6))
    assert data.manifest.facts["rejects"] == {"array with NaN or infinite numbers": 3}


def objects() -> Any:
    return np.array([{"a": 1}, {"b": 2}], object)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"a": vectors(3, 4)}, "two sides are needed.*ccaco prepare pairs --a"),
        ({"b": vectors(3, 4)}, "two sides are needed"),
        ({}, "two sides are needed"),
        ({"a": vectors(3, 4), "b": vectors(4, 4)}, r"files of different length: --a .*: 3, --b .*: 4"),
        ({"a": vectors(3, 4), "b": vectors(3, 4), "ids": ["x", "y"]}, "files of different length.*--ids .*: 2"),
        ({"a": vectors(3, 4)[0], "b": vectors(4, 4)}, r"another kind: --a .*shape \[4\]"),
        ({"a": np.array(["x", "y"]), "b": vectors(2, 4)}, "another kind"),
        ({"a": vectors(2, 4) + 1j, "b": vectors(2, 4)}, "another kind.*complex"),
        ({"a": objects(), "b": vectors(2, 4)}, "cannot read this array file"),
        ({"a": vectors(2, 4), "b": vectors(2, 4), "groups": vectors(2, 1)}, "cannot read this list.*--groups"),
    ],
)
def test_what_does_not_fit_is_one_line(tmp_path: Path, values: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        read(tmp_path, **values)
    assert "\n" not in str(error.value) and not (tmp_path / "d").exists()


def test_broken_files_are_one_line(tmp_path: Path) -> None:
    good = io.BytesIO()
    np.save(good, vectors(4, 4))
    contents = {
        "cut off": good.getvalue()[:-8],
        "2 GB in the header": good.getvalue().replace(b"(4, 4), ", b"(536870912, 4), "[:8]),
        "empty": b"",
        "words": b"a dog",
    }
    other = save(tmp_path, b=vectors(4, 4))
    for name, content in contents.items():
        path = tmp_path / f"{name}.npy"
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"cannot read this array file|an array of another kind"):
            prepare("pairs", out=tmp_path / "d", options=SourceOptions(inputs={"a": path, **other}), write=WRITE)
    with pytest.raises(DataError, match="no such file"):
        missing = {"a": tmp_path / "none.npy", **other}
        prepare("pairs", out=tmp_path / "d", options=SourceOptions(inputs=missing), write=WRITE)
    with pytest.raises(DataError, match="pairs reads --a and --b"):
        prepare("pairs", source_path=tmp_path, out=tmp_path / "d", options=SourceOptions(), write=WRITE)
