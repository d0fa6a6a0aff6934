"""kill -9 at the writes of an index whose vectors lie in Milvus, then the same command again."""

from __future__ import annotations

import gc
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ccaco_cli.core.library import encoder, parts
from ccaco_cli.core.library.request import MediaRequest
from ccaco_cli.core.library.update import embed_folder
from ccaco_cli.core.retrieval import export
from ccaco_cli.core.retrieval.address import index_place, parse
from ccaco_cli.core.retrieval.open_index import open_index
from ccaco_cli.core.workflows import embed as embedding
from tests.core.data.test_shards import picture
from tests.faults.killing import everywhere
from tests.processes import launch

pytest.importorskip("pymilvus", reason="needs the extra milvus: pip install 'ccaco[milvus]'")
pytest.importorskip("milvus_lite", reason="needs the extra milvus: pip install 'ccaco[milvus]'")

from ccaco_cli.core.retrieval import milvus
from ccaco_cli.core.retrieval.milvus_client import Client


def embed_scenes(run: Path, data_root: Path, folder: Path) -> None:
    """Embeddings are there; the vectors go to Milvus in parts of forty rows."""
    export.export = lambda *arguments, **settings: {"exported": False, "why": "not tried here"}  # type: ignore[assignment]
    milvus.ROWS_AT_ONCE = 40
    index, database = index_place(f"milvus:{folder / 'me.db'}")
    files: dict[str, Any] = {"out": folder / "e", "index": index, "database": database}
    request = embedding.EmbedRequest(run, "scenes", **files, device="cpu", precision="fp32", shard=10)
    embedding.embed(request, data_root=data_root)


def outcome(folder: Path) -> Any:
    """Vectors by row, and the number of rows of each collection."""
    opened = open_index(f"milvus:{folder / 'me.db'}", "full")
    sides = {name: side.vectors.read(np.arange(len(side.items))).tobytes() for name, side in opened.sides.items()}
    with Client.connect(parse(f"milvus:{folder / 'me.db'}")) as client:
        counts = [client.count(f"ccaco_{name}") for name in opened.sides]
    ended = (".lock", ".holder")  # of a killed process; the next writer takes them over
    names = sorted(path.name for path in folder.iterdir() if "me.db" in path.name and path.suffix not in ended)
    generations = len(list((folder / "me.db.idx").iterdir()))
    del opened
    gc.collect()
    return sides, counts, names, generations


EVERY_POINT = pytest.mark.skipif(
    not os.environ.get("CCACO_EVERY_POINT"), reason="takes a minute; CCACO_EVERY_POINT=1 runs it"
)


@EVERY_POINT
def test_a_data_set(run: Path, data_root: Path, embedded: Any, tmp_path: Path) -> None:
    def begin(folder: Path) -> None:
        shutil.copytree(embedded.path, folder / "e")

    assert everywhere(partial(embed_scenes, run, data_root), outcome, tmp_path, begin=begin, every=5) >= 3


def embed_photos(run: Path, photos: Path, folder: Path) -> None:
    export.export = lambda *arguments, **settings: {"exported": False, "why": "not tried here"}  # type: ignore[assignment]
    encoder.BATCH_SIZE, parts.PART_FILES = {"cpu": 4, "cuda": 4}, 4
    milvus.ROWS_AT_ONCE = 4
    index, database = index_place(f"milvus:{folder / 'me.db'}")
    assert index is not None
    embed_folder(MediaRequest(index, photos, model=run, database=database, device="cpu", precision="fp32"))


def update_photos(run: Path, photos: Path, folder: Path) -> None:
    """The index of before or of afterwards answers whenever the update was killed."""
    side = open_index(f"milvus:{folder / 'me.db'}", "full").sides["image"]
    rows = len(side.items)
    assert rows in (7, 9)
    present = side.vectors.search(side.vectors.read(np.arange(1, rows)), 1)[1]
    assert present.tolist() == [[row] for row in range(1, rows)]
    del side
    gc.collect()
    embed_photos(run, photos, folder)


@EVERY_POINT
def test_an_update_of_a_folder_of_photos(run: Path, tmp_path: Path) -> None:
    library = tmp_path / "library"
    for number in range(7):
        (library / "photos").mkdir(parents=True, exist_ok=True)
        (library / f"photos/p{number}.png").write_bytes(picture(number))
    assert launch(1, embed_photos, run, library / "photos", library) == [0]
    for number in range(7, 10):
        (library / f"photos/p{number}.png").write_bytes(picture(number))
    (library / "photos/p0.png").unlink()

    def begin(folder: Path) -> None:
        shutil.copytree(library / "me.db", folder / "me.db")
        shutil.copytree(library / "me.db.idx", folder / "me.db.idx")

    work = partial(update_photos, run, library / "photos")
    assert everywhere(work, outcome, tmp_path, begin=begin, every=4) >= 4
