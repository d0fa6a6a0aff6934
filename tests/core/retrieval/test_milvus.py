"""Vectors in Milvus, against the flat index. The tests start Milvus Lite themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ccaco_cli.core.errors import ConfigError, DataError, FilterError
from ccaco_cli.core.retrieval import vectors
from ccaco_cli.core.retrieval.address import DatabaseAddress, parse
from ccaco_cli.core.retrieval.filters import Selection

pytest.importorskip("pymilvus", reason="needs the extra milvus: pip install 'ccaco[milvus]'")
pytest.importorskip("milvus_lite", reason="needs the extra milvus: pip install 'ccaco[milvus]'")

from ccaco_cli.core.retrieval.milvus import MilvusStore, MilvusVectors, row_keys, unique
from ccaco_cli.core.retrieval.milvus_client import Client

MODEL = {"name": "first", "sha256": "a" * 64}


def units(rows: int, seed: int, width: int = 16) -> Any:
    z = np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def items(rows: int, **columns: Any) -> pa.Table:
    numbers = list(range(rows))
    table = {
        "id": [f"i{n}" for n in numbers],
        "group": numbers,
        "text": [[f"caption {n}", "naïve 猫"] for n in numbers],
        "thumbnail": [b"jpeg"] * rows,
        "year": [None if n % 3 == 0 else 2000 + n % 30 for n in numbers],
        "latitude": [n / 7 for n in numbers],
        "flash": [n % 2 == 0 for n in numbers],
        "my folder": [f"/{n % 4}/" for n in numbers],
        "taken": pa.array([None if n % 5 == 0 else n * 86_400 for n in numbers], pa.timestamp("s")),
    }
    return pa.table(table | columns)


def side(root: Path, z: Any, table: pa.Table, modality: str = "image", generation: str = "generation-1") -> Path:
    """A side of a companion as ``write_side`` leaves it: vectors and items."""
    folder = root / generation / modality
    folder.mkdir(parents=True)
    np.save(folder / vectors.VECTORS, z)
    with pa.OSFile(str(folder / "items.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=1024)
    return folder


def condition(expression: str) -> Selection:
    def evaluate() -> Any:
        raise AssertionError("Milvus evaluates conditions itself")

    return Selection(expression, evaluate)


@pytest.fixture
def address(tmp_path: Path) -> DatabaseAddress:
    return parse(f"milvus:{tmp_path / 'me.db'}")


def test_answers_equal_the_flat_index_also_where_vectors_are_equal(address: DatabaseAddress) -> None:
    z, queries = units(3000, 1), units(70, 2)
    z[[7, 900, 901, *range(1500, 1540), 2999]] = z[3]
    queries[:2] = z[[3, 4]]
    folder = side(address.folder, z, items(3000))
    flat = vectors.Flat(folder / vectors.VECTORS)
    wanted = {k: flat.search(queries, k) for k in (1, 5, 10, 44, 100, 5000)}
    built = MilvusStore(address, MODEL).upload(folder)
    assert (built.type, built.recall) == ("milvus FLAT", 1.0)
    assert not (folder / vectors.VECTORS).exists()
    opened = vectors.open(folder)
    assert isinstance(opened, MilvusVectors) and (opened.ntotal, opened.d) == (3000, 16)
    for k, (cosines, rows) in wanted.items():
        milvus_cosines, milvus_rows = opened.search(queries, k)
        assert np.allclose(milvus_cosines, cosines, atol=1e-6)
        # float32 sums of two libraries may swap rows whose cosines differ by less than 1e-6, and no others
        swapped = (z[milvus_rows] != z[rows]).any(-1)
        assert swapped.mean() < 0.005
        assert np.allclose(np.einsum("qke,qe->qk", z[milvus_rows], queries), cosines, atol=1e-6)
        assert [len(set(row)) for row in milvus_rows.tolist()] == [min(k, 3000)] * 70
    equal = [3, 7, 900, 901, *range(1500, 1540), 2999]
    for k in (1, 5, 20, 45):
        assert opened.search(z[[3]], k)[1][0].tolist() == equal[:k], "equal vectors in the order of their rows"
    assert np.array_equal(opened.read(np.array([5, 2999, 5])), z[[5, 2999, 5]])
    assert np.array_equal(opened.read(np.arange(2500)), z[:2500])
    opened.client.close()


def test_every_kind_of_column_filters_in_the_language_of_milvus(address: DatabaseAddress) -> None:
    z, queries = units(500, 1), units(3, 2)
    table = items(500, key=[f"k{n}" for n in range(500)])  # Milvus has a field of this name for itself
    folder = side(address.folder, z, table)
    exact = vectors.Flat(folder / vectors.VECTORS).search(queries, 500)[1]
    MilvusStore(address, MODEL).upload(folder)
    opened = MilvusVectors.open(folder)
    rows = table.to_pylist()
    for where, keep in {
        "year >= 2020 and year < 2025": lambda r: r["year"] is not None and 2020 <= r["year"] < 2025,
        "year is null": lambda r: r["year"] is None,
        "latitude > 10.5": lambda r: r["latitude"] > 10.5,
        "flash == true": lambda r: r["flash"],
        'my_folder like "/3%"': lambda r: r["my folder"] == "/3/",
        'taken >= "1970-06-01"': lambda r: r["taken"] is not None and r["taken"].isoformat() >= "1970-06-01",
        'id in ["i3", "i70"]': lambda r: r["id"] in ("i3", "i70"),
        'key_2 == "k9"': lambda r: r["key"] == "k9",
        "group in [51, 151] or not (year is not null)": lambda r: r["group"] in (51, 151) or r["year"] is None,
        'text like "caption 77%"': lambda r: r["text"][0] == "caption 77",
    }.items():
        allowed = [n for n, row in enumerate(rows) if keep(row)]
        assert allowed, where
        cosines, answers = opened.search(queries, 10, condition(where))
        for query in range(3):
            wanted = [row for row in exact[query] if row in set(allowed)][:10]
            assert [row for row in answers[query] if row >= 0] == wanted, where
            assert (cosines[query][len(wanted) :] == -np.inf).all()
    assert (opened.search(queries, 5, condition("year == 1"))[1] == -1).all(), "an empty selection is no error"
    for bad, word in {"yeer > 3": "year", "year >": "end", "id == 3": "string", "import os": "os"}.items():
        with pytest.raises(FilterError) as error:
            opened.search(queries, 5, condition(bad))
        assert "condition" in error.value.what and word in str(error.value) and bad in str(error.value)
        assert "\n" not in str(error.value)
    opened.client.close()


def test_an_update_inserts_only_what_is_new_and_removes_what_is_gone(
    address: DatabaseAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    inserted: list[int] = []
    insert = Client.insert
    monkeypatch.setattr(Client, "insert", lambda *a: (inserted.append(len(a[2])), insert(*a))[1])
    z, table, store = units(1500, 1), items(1500), MilvusStore(address, MODEL)
    first = side(address.folder, z, table)
    store.upload(first)
    assert sum(inserted) == 1500
    old = MilvusVectors.open(first)

    inserted.clear()
    keep = np.r_[0:10, 20:1500]  # ten items go, five come at the start, so that all rows move
    z_new = np.concatenate([units(5, 9), z[keep]])
    added = items(5).set_column(0, "id", pa.array([f"new{n}" for n in range(5)]))
    second = side(address.folder, z_new, pa.concat_tables([added, table.take(keep)]), generation="generation-2")
    wanted = vectors.Flat(second / vectors.VECTORS).search(z[:50], 10)
    store.upload(second)
    assert sum(inserted) == 5
    new = MilvusVectors.open(second)
    assert np.array_equal(new.search(z[:50], 10)[1], wanted[1])
    # a reader of the old generation sees its own rows only, although the collection holds both
    assert np.array_equal(old.search(z[:50], 1)[1][:, 0], np.arange(50))
    with Client.connect(address) as client:
        assert client.count("ccaco_image") == 1505
        store.finish(second.parent, ["image"])
        assert client.count("ccaco_image") == 1495
    assert np.array_equal(new.search(z[:50], 10)[1], wanted[1])
    assert set(old.search(z[10:20], 5)[1].ravel()).isdisjoint(range(10, 20)), "what is gone is not found by old readers"
    old.client.close(), new.client.close()


def test_a_run_that_was_stopped_between_insertions_is_completed(
    address: DatabaseAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    z, table, store = units(2500, 1), items(2500), MilvusStore(address, MODEL)
    insert, calls = Client.insert, []

    def stop(*call: Any) -> None:
        calls.append(len(call[2]))
        if len(calls) == 2:
            raise KeyboardInterrupt
        insert(*call)

    monkeypatch.setattr(Client, "insert", stop)
    with pytest.raises(KeyboardInterrupt):
        store.upload(side(address.folder, z, table))
    folder = side(address.folder, z, table, generation="generation-2")
    wanted = vectors.Flat(folder / vectors.VECTORS).search(z[:5], 10)[1]
    calls[:] = [0, 0]
    store.upload(folder)
    assert sum(calls) == 1500
    opened = MilvusVectors.open(folder)
    assert np.array_equal(opened.search(z[:5], 10)[1], wanted)
    opened.client.close()


def test_a_collection_of_another_model_is_refused_by_name_and_replaced_by_a_rebuild(address: DatabaseAddress) -> None:
    folder = side(address.folder, units(20, 1), items(20))
    MilvusStore(address, MODEL).upload(folder)
    other = {"name": "second", "sha256": "b" * 64}
    for call in (
        lambda: MilvusStore(address, other).check(["image"], 16),
        lambda: MilvusStore(address, other).upload(side(address.folder, units(20, 1), items(20), generation="g2")),
        lambda: MilvusStore(address, MODEL).check(["image"], 8),
    ):
        with pytest.raises(DataError) as error:
            call()
        assert "another model, 'first'" in str(error.value) and "--rebuild" in str(error.value)
    new = side(address.folder, units(30, 1), items(30), generation="g3")
    MilvusStore(address, other, replace=True).upload(new)
    old, opened = MilvusVectors.open(folder), MilvusVectors.open(new)
    assert np.array_equal(opened.search(units(30, 1), 1)[1][:, 0], np.arange(30))
    with pytest.raises(DataError, match="another model, 'second'"):
        old.search(units(1, 1), 1)
    opened.client.close()


def test_other_columns_need_a_rebuild(address: DatabaseAddress) -> None:
    MilvusStore(address, MODEL).upload(side(address.folder, units(20, 1), items(20)))
    wider = items(20, size=list(range(20)))
    with pytest.raises(DataError, match=r"other columns.*--rebuild"):
        MilvusStore(address, MODEL).upload(side(address.folder, units(20, 1), wider, generation="g2"))
    folder = side(address.folder, units(20, 1), wider, generation="g3")
    MilvusStore(address, MODEL, replace=True).upload(folder)
    opened = MilvusVectors.open(folder)
    assert opened.search(units(1, 1), 5, condition("size == 7"))[1][0].tolist() == [7, -1, -1, -1, -1]
    opened.client.close()


def test_a_column_that_comes_or_goes_with_an_update_changes_no_other_item(
    address: DatabaseAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of photos, the columns are known in advance: the first one with a camera needs no rebuild."""
    counts: list[int] = []
    insert = Client.insert
    monkeypatch.setattr(Client, "insert", lambda *a: (counts.append(len(a[2])), insert(*a))[1])
    z, store = units(21, 1), MilvusStore(address, MODEL)
    table = items(21, path=[f"/photos/{n}" for n in range(21)]).drop_columns(["taken"])
    store.upload(side(address.folder, z[:20], table[:20]))
    camera = table.append_column("camera", pa.array([None] * 20 + ["a box"], pa.string()))
    counts.clear()
    second = side(address.folder, z, camera, generation="generation-2")
    store.upload(second)
    assert sum(counts) == 1
    opened = MilvusVectors.open(second)
    assert opened.search(z[:1], 3, condition('camera == "a box"'))[1][0].tolist() == [20, -1, -1]
    opened.client.close()
    counts.clear()
    third = side(address.folder, z[:20], table[:20].drop_columns(["year"]), generation="generation-3")
    store.upload(third)
    assert sum(counts) == 13, "items that had a year"
    assert np.array_equal(MilvusVectors.open(third).search(z[:20], 1)[1][:, 0], np.arange(20))


def test_an_approximate_index_is_tuned_and_its_recall_reported(address: DatabaseAddress) -> None:
    folder = side(address.folder, units(3000, 1), items(3000))
    built = MilvusStore(address, MODEL).upload(folder, "hnsw", units(200, 2))
    assert built.type == "milvus HNSW" and built.recall >= vectors.TARGET and built.setting >= 16
    assert json.loads((folder / vectors.DATABASE).read_text())["search"] == {"ef": built.setting}
    with pytest.raises(ConfigError, match="Milvus Lite has no index of this type"):
        MilvusStore(address, MODEL).upload(side(address.folder, units(9, 1), items(9), "text"), "ivfpq")


def test_keys_depend_on_content_alone_and_equal_items_get_keys_of_their_own() -> None:
    z, table = units(5, 1), items(5).drop_columns(["thumbnail"])
    keys = row_keys(table, z)
    assert np.array_equal(keys, row_keys(table, z.astype(np.float16))), "shards are float16"
    assert (keys >= 0).all() and len(set(keys.tolist())) == 5
    assert (row_keys(table, units(5, 2)) != keys).all()
    assert (row_keys(table.set_column(0, "id", pa.array(list("abcde"))), z) != keys).all()
    same = unique(np.array([5, 5, 7, 5, 5], np.int64))
    assert len(set(same.tolist())) == 5 and (same >= 0).all() and (same[0], same[2]) == (5, 7)
    assert np.array_equal(unique(np.array([5, 5, 7, 5, 5], np.int64)), same)


@pytest.mark.parametrize(
    "text",
    ["milvus:", "milvus:me", "milvus:.db", "milvus:me.db#x", "milvus:http://#a", "milvus:http://h:19530", "milvus:ftp://h#a",
     "milvus:http://h:x#a", "milvus:http://h#9a", "milvus:http://h#a-b", "milvus:http://u:secret@h#a"],
)  # fmt: skip
def test_other_addresses_are_refused(text: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(text)
    assert "secret" not in str(error.value)


def test_addresses_name_their_companion() -> None:
    assert parse("milvus:a/me.db").folder == Path("a/me.db.idx")
    assert parse("milvus:http://h:19530#me") == DatabaseAddress("http://h:19530", "me", Path("me.idx"))
    assert parse("milvus:http://h:19530#/srv/me").folder == Path("/srv/me.idx")
    assert str(parse("milvus:http://h:19530#me")) == "milvus:http://h:19530#me"


def test_databases_that_are_not_there_locked_or_of_another_kind_are_refused(
    tmp_path: Path, address: DatabaseAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    from milvus_lite.db import MilvusLite

    monkeypatch.setattr("ccaco_cli.core.retrieval.milvus_client.LOCK_SECONDS", 0.3)
    with pytest.raises(DataError, match="no database here"):
        Client.connect(address)
    assert not Path(address.uri).exists()
    Path(address.uri).write_text("SQLite format 3")
    with pytest.raises(DataError, match="not a database of this Milvus Lite"):
        Client.connect(address)
    locked = parse(f"milvus:{tmp_path / 'locked.db'}")
    held = MilvusLite(locked.uri)
    with pytest.raises(DataError, match="another process has opened this database"):
        Client.connect(locked)
    held.close()
    Client.connect(locked).close()
    broken = tmp_path / "broken.db"
    (broken / "collections").mkdir(parents=True)
    (broken / "LOCK").mkdir()
    with pytest.raises(DataError, match="cannot be opened"):
        Client.connect(parse(f"milvus:{broken}"))
    monkeypatch.setattr("ccaco_cli.core.retrieval.milvus_client.CONNECT_SECONDS", 1.0)
    for uri in ("http://127.0.0.1:9", "http://no-such-host.invalid:19530"):
        with pytest.raises(DataError, match="cannot be reached"):
            Client.connect(parse(f"milvus:{uri}#me"))


def test_a_full_disk_is_one_line(address: DatabaseAddress, monkeypatch: pytest.MonkeyPatch) -> None:
    from milvus_lite.engine.collection import Collection

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Collection, "upsert", full)
    with pytest.raises(DataError, match="No space left on device") as error:
        MilvusStore(address, MODEL).upload(side(address.folder, units(20, 1), items(20)))
    assert "\n" not in str(error.value)
