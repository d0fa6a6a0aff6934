"""``ccaco embed`` of data sets of one modality, of every split together, and the columns that it stores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from ccaco_cli.core.data import shards
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.experiments.datasets import split_to_embed
from ccaco_cli.core.manifest import Manifest
from ccaco_cli.core.retrieval.index import Index
from ccaco_cli.core.retrieval.search import SearchOptions, encode_query, search
from ccaco_cli.core.types import PairRecord
from ccaco_cli.core.workflows.embed import EmbedRequest, embed


@pytest.fixture(scope="module")
def media_root(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data set ``photos``: the pictures of scenes' test split without their captions."""
    root = tmp_path_factory.mktemp("media")
    test = shards.open(data_root / "scenes").split("test")
    records = [
        PairRecord(
            f"{n}.png",
            f"{n}",
            "test",
            {"image": test.media("image", [n])[0]},
            meta={"year": 2000 + n, "n": None},
        )
        for n in range(len(test))
    ]
    shards.write(
        records,
        root / "photos",
        shards.DatasetInfo("photos", ("image",), {"protocol": "toy"}),
        shards.WriteOptions(workers=0),
    )
    return root


@pytest.fixture(scope="module")
def photos(media_root: Path, run: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Their index."""
    folder = tmp_path_factory.mktemp("photos")
    request = EmbedRequest(
        run, "photos", folder / "out", "all", index=folder / "photos.idx", device="cpu", shard=10, precision="fp32"
    )
    return embed(request, data_root=media_root)


def test_images_without_captions_answer_texts_and_images(photos: Manifest, embedded: Manifest, index: Path) -> None:
    opened, pairs = Index(photos.path), Index(index)
    assert list(opened.sides) == ["image"] and opened.modalities == ("image", "text")
    assert photos.facts["rows"] == {"image": 25} and photos.facts["split"] == "all"
    for rerank in (0, 10):
        queries = ["an orange cat napping", "a dog"]
        hits, wanted = (
            search(i, "text", encode_query(i, "text", queries), SearchOptions(5, rerank)) for i in (opened, pairs)
        )
        assert [[hit.row for hit in row] for row in hits] == [[hit.row for hit in row] for row in wanted]
    assert opened.exported is not None, "a text query imports no torch"
    assert opened.sides["image"].items.column("year").to_pylist() == list(range(2000, 2025))
    assert opened.sides["image"].items.column_names == ["id", "group", "year", "text", "thumbnail"]


def test_the_metadata_of_the_shards_has_the_columns(photos: Manifest) -> None:
    folder = photos.path.parent / "out"
    assert sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) == [
        "img_emb",
        "manifest.json",
        "metadata",
    ]
    tables = [pq.read_table(folder / "metadata" / f"metadata_{n}.parquet") for n in range(3)]
    assert [year for table in tables for year in table["year"].to_pylist()] == list(range(2000, 2025))


def test_captions_have_the_columns_of_their_picture(index: Path, data_root: Path) -> None:
    split = shards.open(data_root / "scenes").split("test")
    sides = Index(index).sides
    assert sides["image"].items.column("place").to_pylist() == [meta["place"] for meta in split.metas(range(25))]
    assert sides["text"].items.column("place").to_pylist() == [
        split.meta(row)["place"] for row in split.caption_row.tolist()
    ]


def test_the_split_that_is_embedded_where_none_is_named(data_root: Path, media_root: Path) -> None:
    assert split_to_embed("photos", None, media_root) == ("all", "")
    split, note = split_to_embed("scenes", None, data_root)
    assert split == "test"
    assert note == "the split 'test' is embedded; 50 of 75 samples are left out (--split all takes all)"
    assert split_to_embed("scenes", "val", data_root) == ("val", "")


def test_every_split_together(run: Path, data_root: Path, embedded: Manifest, tmp_path: Path) -> None:
    request = EmbedRequest(run, "scenes", tmp_path / "out", "all", device="cpu", precision="fp32")
    written = embed(request, data_root=data_root)
    assert written.facts["rows"] == {"image": 75, "text": 375}
    data = shards.open(data_root / "scenes")
    start = sum(len(data.split(name)) for name in data.splits[: data.splits.index("test")])
    every = np.load(tmp_path / "out" / "img_emb" / "img_emb_0.npy")
    test = np.concatenate([np.load(embedded.path / "img_emb" / f"img_emb_{n}.npy") for n in range(3)])
    assert np.abs(every[start : start + 25] - test).max() < 1e-3
    table = pq.read_table(tmp_path / "out" / "metadata" / "metadata_0.parquet")
    assert table["id"].to_pylist() == [id for name in data.splits for id in data.split(name).ids]


def test_a_data_set_of_a_foreign_modality_is_refused(run: Path, tmp_path: Path) -> None:
    records = [PairRecord("x", "x", "test", {"raw": b"1"})]
    shards.write(
        records,
        tmp_path / "raw",
        shards.DatasetInfo("raw", ("raw",), {"protocol": "toy"}),
        shards.WriteOptions(workers=0),
    )
    with pytest.raises(DataError, match="aligns other modalities: image and text"):
        embed(EmbedRequest(run, "raw", tmp_path / "out", "all", device="cpu"), data_root=tmp_path)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "command",
    [
        ("train", "--dataset", "DATA", "--epochs", 1, "--name", "OUT"),
        ("train", "--dataset", "DATA", "--estimate"),
        ("ablate", "--dataset", "DATA", "--arms", "ccaco", "--name", "OUT"),
        ("report", "RUN", "--on", "DATA"),
        ("report", "--model", "RUN", "--on", "DATA"),
    ],
)
def test_what_needs_pairs_refuses_in_one_line(
    ccaco: Callable[..., Any], run: Path, media_root: Path, tmp_path: Path, command: tuple[Any, ...]
) -> None:
    words = {"DATA": media_root / "photos", "RUN": run, "OUT": tmp_path / "out"}
    done = ccaco(*(words.get(word, word) for word in command))
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1), done.err
    assert "this data set has one modality (image), and this needs pairs" in done.err
    assert f"next: ccaco embed --model SPEC --dataset {media_root / 'photos'} --index photos.idx" in done.err
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())
