"""``embed`` and ``retrieve`` with the vectors of an index in Milvus. The tests start Milvus Lite themselves.

A server is Milvus Lite's own, in a process of its own: it speaks the protocol of a cluster, but is none.
"""

from __future__ import annotations

import csv
import gc
import io
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import ccaco_cli
from ccaco_cli.core import manifest
from ccaco_cli.core.errors import ConfigError, DataError, ManifestError
from ccaco_cli.core.experiments.request import TrainRequest
from ccaco_cli.core.library.request import MediaRequest
from ccaco_cli.core.library.update import embed_folder
from ccaco_cli.core.retrieval import export
from ccaco_cli.core.retrieval.address import index_place, parse
from ccaco_cli.core.retrieval.index import Index
from ccaco_cli.core.retrieval.open_index import open_index
from ccaco_cli.core.retrieval.search import SearchOptions
from ccaco_cli.core.workflows import embed as embedding
from ccaco_cli.core.workflows.embed import EmbedRequest, embed
from ccaco_cli.core.workflows.retrieve import by_file, by_text
from ccaco_cli.core.workflows.train import train
from tests.core.library.test_update import picture
from tests.processes import free_port

pytest.importorskip("pymilvus", reason="needs the extra milvus: pip install 'ccaco[milvus]'")
pytest.importorskip("milvus_lite", reason="needs the extra milvus: pip install 'ccaco[milvus]'")

from ccaco_cli.core.retrieval.milvus_client import Client

QUERIES = ["a red cat", "a dog chasing a ball", "a fish"]


def rows(index: Index, options: SearchOptions) -> list[list[tuple[Any, ...]]]:
    return [[(h.row, round(h.score, 4), h.item["id"]) for h in hits] for _, hits in by_text(index, QUERIES, options)]


def to_milvus(text: str, run: Path, data_root: Path, out: Path, **fields: Any) -> Any:
    folder, database = index_place(text)
    settings = {"index": folder, "database": database, "device": "cpu", "shard": 10, "precision": "fp32"} | fields
    return embed(EmbedRequest(run, "scenes", out=out, **settings), data_root=data_root)


@pytest.fixture
def without_export(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "export", lambda *_, **__: {"exported": False, "why": "not tried here"})


@pytest.fixture
def inserted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each insertion."""
    counts: list[int] = []
    insert = Client.insert
    monkeypatch.setattr(Client, "insert", lambda *a: (counts.append(len(a[2])), insert(*a))[1])
    return counts


@pytest.fixture(scope="module")
def database(run: Path, data_root: Path, embedded: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The test split of ``scenes`` in Milvus Lite."""
    root = tmp_path_factory.mktemp("milvus")
    shutil.copytree(embedded.path, root / "e")
    to_milvus(f"milvus:{root / 'me.db'}", run, data_root, root / "e")
    gc.collect()
    return f"milvus:{root / 'me.db'}"


def test_answers_are_those_of_the_flat_index_with_and_without_reranking(
    database: str, index: Path, tmp_path: Path
) -> None:
    Image.new("RGB", (40, 40), "orange").save(tmp_path / "q.png")
    flat, opened = Index(index), open_index(database)
    assert not list(opened.folder.rglob("vectors.npy")) and (opened.folder / "image" / "tokens.npy").exists()
    for options in (SearchOptions(5), SearchOptions(25, rerank=0), SearchOptions(3, rerank=25), SearchOptions(200)):
        assert rows(opened, options) == rows(flat, options)
    answers = [by_file(each, "image", tmp_path / "q.png", SearchOptions(9)) for each in (opened, flat)]
    assert [h.row for h in answers[0]] == [h.row for h in answers[1]]
    facts = opened.manifest.facts
    assert facts["database"] == {"uri": None, "collection": "ccaco"}
    assert facts["storage"]["text"]["vectors"] == {
        **{"type": "milvus FLAT", "recall": 1.0, "setting": 0},
        "bytes_per_item": 4 * opened.embedding_size + 8,
    }
    side = opened.sides["image"].vectors
    assert (side.read(flat.sides["image"].vectors.search(side.read([3]), 1)[1][0]) == side.read([3])).all()  # type: ignore[arg-type]


def test_commands_and_python_take_the_address(
    database: str, index: Path, ccaco: Callable[..., Any], tmp_path: Path
) -> None:
    command = ("retrieve", "a red cat", "-k", 3, "--format", "csv", "--index")
    flat, milvus = ccaco(*command, index), ccaco(*command, database)
    assert (milvus.code, milvus.out, milvus.err) == (0, flat.out, "")
    sheet = ccaco(*command, database, "--save", tmp_path / "sheet.png", "--explain", tmp_path / "why")
    assert sheet.code == 0 and sheet.out == flat.out
    assert (tmp_path / "sheet.png").exists() and any((tmp_path / "why").iterdir())
    rows = list(csv.DictReader(io.StringIO(flat.out)))
    hits = ccaco_cli.load(database).search(texts=["a red cat"], k=3)
    assert [h.item["id"] for h in hits[0]] == [row["id"] for row in rows]


def test_conditions_are_those_of_milvus(database: str, ccaco: Callable[..., Any]) -> None:
    command = ("retrieve", "a red cat", "--index", database, "-k", 3, "--format", "csv", "--where")
    done = ccaco(*command, 'id like "%1"')
    rows = list(csv.DictReader(io.StringIO(done.out)))
    assert done.code == 0 and rows and all(row["id"].endswith("1") for row in rows)
    refused = ccaco(*command, "yeer > 1")
    assert refused.code == 2 and refused.err.count("\n") == 1 and "yeer" in refused.err


def test_the_same_command_inserts_only_what_is_missing(
    run: Path,
    data_root: Path,
    embedded: Any,
    tmp_path: Path,
    without_export: None,
    inserted: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "e"
    shutil.copytree(embedded.path, out)
    text = f"milvus:{tmp_path / 'me.db'}"
    first = to_milvus(text, run, data_root, out)
    assert sum(inserted) == 150
    inserted.clear()
    monkeypatch.setattr(embedding, "encode", lambda *_, **__: pytest.fail("nothing is to be encoded"))
    assert to_milvus(text, run, data_root, out).sha256 == first.sha256 and inserted == []
    monkeypatch.undo()
    monkeypatch.setattr(export, "export", lambda *_, **__: {"exported": False, "why": "not tried here"})
    shutil.rmtree(tmp_path / "me.db.idx")  # the companion is made again, beside the rows that are there
    again = to_milvus(text, run, data_root, out)
    assert again.facts["rows"] == first.facts["rows"]
    with Client.connect(parse(text)) as client:
        assert (client.count("ccaco_image"), client.count("ccaco_text")) == (25, 125)


def test_a_collection_of_another_model_is_refused_by_name(
    run: Path, data_root: Path, embedded: Any, small: dict[str, Any], tmp_path: Path, without_export: None
) -> None:
    shutil.copytree(embedded.path, tmp_path / "e")
    text = f"milvus:{tmp_path / 'me.db'}"
    to_milvus(text, run, data_root, tmp_path / "e")
    train(TrainRequest("scenes", explicit=small | {"seed": 5}), tmp_path / "second", data_root=data_root)
    with pytest.raises(DataError, match=r"an index is there already, of the data set scenes by the model"):
        to_milvus(text, tmp_path / "second", data_root, tmp_path / "f")
    shutil.rmtree(tmp_path / "me.db.idx")
    with pytest.raises(DataError, match=rf"holds vectors of another model, '{run.name}'"):
        to_milvus(text, tmp_path / "second", data_root, tmp_path / "f")
    to_milvus(text, tmp_path / "second", data_root, tmp_path / "f", rebuild=True)
    assert open_index(text).manifest.facts["run"] == "second"
    # a companion of the first model beside the collection of the second one
    other = f"milvus:{tmp_path / 'first.db'}"
    to_milvus(other, run, data_root, tmp_path / "e")
    gc.collect()
    shutil.rmtree(tmp_path / "first.db")
    shutil.copytree(tmp_path / "me.db", tmp_path / "first.db")
    with pytest.raises(DataError, match="another model, 'second'"):
        rows(open_index(other), SearchOptions(3))


def test_a_folder_of_photos_is_kept_up_to_date(
    run: Path, tmp_path: Path, without_export: None, inserted: list[int]
) -> None:
    photos = tmp_path / "photos"
    for number in range(12):
        picture(photos / f"p{number}.png", number)
    text = f"milvus:{tmp_path / 'me.db'}"
    folder, address = index_place(text)
    assert folder is not None

    def both(**fields: Any) -> list[Any]:
        settings = {"source": photos, "model": run, "device": "cpu", "precision": "fp32"} | fields
        return [
            embed_folder(MediaRequest(**settings, index=place, database=target))  # type: ignore[arg-type]
            for place, target in ((tmp_path / "flat.idx", None), (folder, address))
        ]

    def same() -> None:
        flat, milvus = Index(tmp_path / "flat.idx"), open_index(text)
        assert milvus.sides["image"].items.equals(flat.sides["image"].items)
        assert rows(milvus, SearchOptions(20)) == rows(flat, SearchOptions(20))

    both()
    assert sum(inserted) == 12
    same()
    inserted.clear()
    flat, milvus = both()
    assert not milvus.written and inserted == []
    picture(photos / "new.png", 99)
    (photos / "p3.png").unlink()
    (photos / "p4.png").rename(photos / "moved.png")
    picture(photos / "p5.png", 98)
    flat, milvus = both()
    assert milvus.counts == flat.counts and sum(inserted) == 3, "new, moved and changed"
    same()
    both(source=None, model=None, remove=["p7.png"])
    same()
    with Client.connect(parse(text)) as client:
        assert client.count("ccaco_image") == 11
    moved = photos.rename(tmp_path / "pictures")
    inserted.clear()
    flat, milvus = both(source=moved)
    assert milvus.counts == flat.counts and milvus.counts["unchanged"] == 11
    assert milvus.moved_from == str(photos) and sum(inserted) == 11, "their columns have other paths"
    same()
    flat_vectors = Index(tmp_path / "flat.idx").sides["image"].vectors
    assert (open_index(text).sides["image"].vectors.read(range(11)) == flat_vectors.read(range(11))).all()  # type: ignore[arg-type]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "milvus_lite", "server", "--data-dir", str(tmp_path / "data"), "--host"]
    process = subprocess.Popen([*command, "127.0.0.1", "--port", str(port)], stdout=subprocess.DEVNULL)
    for _ in range(600):
        with socket.socket() as probe:
            if not probe.connect_ex(("127.0.0.1", port)):
                break
        time.sleep(0.1)
    yield f"http://127.0.0.1:{port}"
    process.terminate()
    process.wait()


def test_a_server(
    server: str, run: Path, data_root: Path, embedded: Any, index: Path, tmp_path: Path, without_export: None
) -> None:
    shutil.copytree(embedded.path, tmp_path / "e")
    text = f"milvus:{server}#{tmp_path / 'photos'}"
    index_manifest = to_milvus(text, run, data_root, tmp_path / "e")
    assert index_manifest.path == tmp_path / "photos.idx"
    assert index_manifest.facts["storage"]["image"]["vectors"]["type"] == "milvus AUTOINDEX"
    assert index_manifest.facts["storage"]["image"]["vectors"]["recall"] >= 0.98
    assert index_manifest.facts["database"] == {"uri": server, "collection": "photos"}
    flat = Index(index)
    for opened in (open_index(text), open_index(tmp_path / "photos.idx")):
        assert rows(opened, SearchOptions(5)) == rows(flat, SearchOptions(5))
    with pytest.raises(DataError, match="not the companion of the database"):
        open_index(f"milvus:http://127.0.0.1:1#{tmp_path / 'photos'}")


def test_what_is_not_there_is_one_line(
    run: Path, index: Path, tmp_path: Path, ccaco: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "half.db").mkdir()
    embed_command = ("embed", "--run", run, "--dataset", "scenes", "--device", "cpu", "--index")
    for command, words in {
        ("retrieve", "x", "--index", "milvus:none.db"): "no database here: none.db",
        ("retrieve", "x", "--index", "milvus:half.db"): "companion folder of this database is missing",
        ("retrieve", "x", "--index", "milvus:http://127.0.0.1:9#x"): "companion folder",
        ("retrieve", "x", "--index", "milvus:x"): "not the address of a Milvus database",
        (*embed_command, "milvus:ftp://h#x"): "not the address of a Milvus collection",
    }.items():
        done = ccaco(*command)
        assert done.code == 2 and words in done.err and done.err.count("\n") == 1, command
    assert {path.name for path in tmp_path.iterdir()} == {"half.db"}
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(ConfigError, match="ccaco\\[milvus\\]"):
        Client.connect(parse("milvus:half.db"))


def test_a_server_that_is_not_there_is_refused_before_anything_is_encoded(
    run: Path, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding, "encode", lambda *_, **__: pytest.fail("too late"))
    monkeypatch.setattr("ccaco_cli.core.retrieval.milvus_client.CONNECT_SECONDS", 1.0)
    with pytest.raises(DataError, match="cannot be reached"):
        to_milvus(f"milvus:http://127.0.0.1:9#{tmp_path / 'x'}", run, data_root, tmp_path / "e")
    assert not (tmp_path / "x.idx").exists()


def test_an_index_whose_database_is_gone_is_one_line(database: str, tmp_path: Path) -> None:
    folder = parse(database).folder
    shutil.copytree(folder, tmp_path / "me.db.idx")
    opened = open_index(tmp_path / "me.db.idx")
    with pytest.raises(DataError, match="no database here"):
        rows(opened, SearchOptions(3))
    (tmp_path / "me.db.idx" / str(opened.manifest.facts["generation"]) / "image" / "keys.npy").unlink()
    with pytest.raises(ManifestError, match="missing"):
        open_index(tmp_path / "me.db.idx")
    assert manifest.exists(folder)
