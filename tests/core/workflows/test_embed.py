from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from ccaco_cli.core import manifest
from ccaco_cli.core.data import shards
from ccaco_cli.core.encoding.encode import encode
from ccaco_cli.core.errors import DataError, ManifestError
from ccaco_cli.core.experiments.request import TrainRequest
from ccaco_cli.core.manifest import Manifest
from ccaco_cli.core.retrieval.index import Index
from ccaco_cli.core.retrieval.search import SearchOptions, encode_query, search
from ccaco_cli.core.workflows import embed as embedding
from ccaco_cli.core.workflows.embed import EmbedRequest, embed
from ccaco_cli.core.workflows.train import train


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*_*.*") if p.is_file()}


def test_the_layout_is_clip_retrievals(embedded: Manifest, data_root: Path) -> None:
    folder = embedded.path
    assert {p.name for p in folder.iterdir() if not p.name.startswith(".")} == {
        *("img_emb", "text_emb", "metadata", "text_metadata", manifest.NAME)
    }
    assert sorted(p.name for p in (folder / "img_emb").iterdir()) == ["img_emb_0.npy", "img_emb_1.npy", "img_emb_2.npy"]
    assert len(list((folder / "text_emb").iterdir())) == 13
    part = shards.open(data_root / "scenes").split("test")
    for number, rows in enumerate((slice(0, 10), slice(10, 20), slice(20, 25))):
        vectors = np.load(folder / f"img_emb/img_emb_{number}.npy")
        assert vectors.dtype == np.float16
        assert vectors.shape == (len(part.ids[rows]), 16)
        assert np.linalg.norm(vectors.astype(np.float32), axis=1) == pytest.approx(np.ones(len(vectors)), abs=2e-3)
        table = pq.read_table(folder / f"metadata/metadata_{number}.parquet").to_pydict()
        assert table["id"] == part.ids[rows]
        assert table["group"] == part.group[rows].tolist()
    texts = pq.read_table(folder / "text_metadata/text_metadata_12.parquet").to_pydict()
    assert texts["text"] == part.captions[120:125]
    assert texts["id"] == [part.ids[r] for r in part.caption_row[120:125]]
    assert embedded.facts["rows"] == {"image": 25, "text": 125}
    assert embedded.facts["protocol"].endswith("; at most 25 samples a split")
    assert {entry["name"] for entry in embedded.files} == set(bytes_of(folder))


def test_several_global_vectors_are_stored_and_searched_as_one(
    data_root: Path, small: dict[str, Any], tmp_path: Path
) -> None:
    train(TrainRequest("scenes", explicit=small | {"model.vectors": 2}), tmp_path / "two", data_root=data_root)
    embed(
        EmbedRequest(tmp_path / "two", "scenes", out=tmp_path / "e", index=tmp_path / "two.idx", device="cpu"),
        data_root=data_root,
    )
    dim = manifest.open(tmp_path / "e", kind="embeddings").facts["dim"]
    assert dim == np.load(tmp_path / "e/img_emb/img_emb_0.npy").shape[1] == 2 * small["model.width"]
    opened = Index(tmp_path / "two.idx")
    assert opened.exported is not None
    queries = ["a red ball"]
    light, full = opened.exported.encode(queries), encode_query(opened, "text", queries)
    assert np.allclose(light.z, full.z.numpy(), atol=1e-4)
    assert [h.row for h in search(opened, "text", light, SearchOptions(5))[0]] == [
        h.row for h in search(opened, "text", full, SearchOptions(5))[0]
    ]


def test_finished_shards_are_kept_and_missing_ones_made_again(
    run: Path, data_root: Path, tmp_path: Path, embedded: Manifest
) -> None:
    out = tmp_path / "e"

    def again() -> Manifest:
        request = EmbedRequest(run, "scenes", out=out, device="cpu", shard=10, precision="fp32")
        return embed(request, data_root=data_root)

    again()
    first = bytes_of(out)
    assert first == bytes_of(embedded.path)
    lost = out / "text_emb/text_emb_3.npy"
    modified = (out / "text_emb/text_emb_4.npy").stat().st_mtime_ns
    lost.unlink()
    with pytest.raises(ManifestError, match="text_emb_3"):
        again()
    (out / manifest.NAME).unlink()
    assert again().kind == "embeddings"
    assert bytes_of(out) == first
    assert (out / "text_emb/text_emb_4.npy").stat().st_mtime_ns == modified
    made_at = manifest.open(out, kind="embeddings").made_at
    assert again().made_at == made_at


def test_a_folder_with_something_else_is_refused(
    run: Path, data_root: Path, tmp_path: Path, embedded: Manifest, index: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("x")
    before = bytes_of(embedded.path)
    for out, split, shard in ((embedded.path, "val", 10), (embedded.path, "test", 20), (tmp_path / "mine", "test", 10)):
        with pytest.raises(DataError, match="other embeddings lie here"):
            embed(EmbedRequest(run, "scenes", split=split, out=out, device="cpu", shard=shard), data_root=data_root)
    assert bytes_of(embedded.path) == before
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    for there in (index, tmp_path / "mine"):
        with pytest.raises(DataError, match="there already"):
            embed(EmbedRequest(run, "scenes", out=tmp_path / "new", index=there, device="cpu"), data_root=data_root)
    assert not (tmp_path / "new").exists()


def test_what_an_interruption_leaves_of_an_index_is_cleared(
    run: Path, data_root: Path, tmp_path: Path, embedded: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(rebuild: bool = False) -> Manifest:
        settings: dict[str, Any] = {
            "index": tmp_path / "i.idx",
            "rebuild": rebuild,
            "device": "cpu",
            "shard": 10,
            "precision": "fp32",
        }
        return embed(EmbedRequest(run, "scenes", out=tmp_path / "e", **settings), data_root=data_root)

    def interrupted(*arguments: Any, **settings: Any) -> Any:
        if len(list((tmp_path / "e").rglob("text_emb_*.npy"))) == 3:
            raise KeyboardInterrupt
        return encode(*arguments, **settings)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(embedding, "encode", interrupted)
        build()
    assert [p.name for p in tmp_path.iterdir()] == ["e"]
    assert len(list((tmp_path / "e").rglob("img_emb_*.npy"))) == 3, "whole shards stay"
    report = build()
    assert bytes_of(tmp_path / "e") == bytes_of(embedded.path)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(embedding.indexes, "save_model", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
        build(rebuild=True)
    assert manifest.open(tmp_path / "i.idx", kind="index", verify="full").sha256 == report.sha256
    assert [p.name for p in (tmp_path / "i.idx").iterdir() if p.is_dir()] == ["generation-1"]


def test_what_is_not_there_is_refused_before_anything_is_written(run: Path, data_root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no split 'dev'.*train, val, test"):
        embed(EmbedRequest(run, "scenes", split="dev", out=tmp_path / "e", device="cpu"), data_root=data_root)
    with pytest.raises(ManifestError, match=r"no run here.*ccaco train"):
        embed(EmbedRequest(tmp_path / "gone", "scenes", out=tmp_path / "e", device="cpu"), data_root=data_root)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "settings", [{}, {"store_grid": 1}, {"precision": "bf16"}, {"store_grid": 1, "precision": "fp16"}], ids=str
)
def test_an_index_holds_of_an_item_what_a_query_with_the_same_file_gives(
    settings: dict[str, Any], run: Path, data_root: Path, tmp_path: Path
) -> None:
    request = EmbedRequest(run, "scenes", tmp_path / "e", index=tmp_path / "i", **settings)
    embed(request, data_root=data_root)
    index, split = Index(tmp_path / "i"), shards.open(data_root / "scenes").split("test")
    for modality, samples in (
        ("image", list(split.media("image", [0, 7]))),
        ("text", [split.captions[0], split.captions[7]]),
    ):
        side, query = index.sides[modality], encode_query(index, modality, samples)
        stored = side.local_tokens([0, 7])
        assert query.local_tokens is not None and (query.local_tokens.mask.sum(1) == stored.mask.sum(1)).all()
        for row in range(2):
            real, stored_tokens = query.local_tokens.mask[row], stored.tokens[row][stored.mask[row]].float()
            assert (query.local_tokens.tokens[row][real].float() - stored_tokens).abs().max() < 2e-2
        folder = tmp_path / "e" / {"image": "img_emb", "text": "text_emb"}[modality]
        vectors = np.load(next(folder.glob("*_0.npy")))[[0, 7]].astype(np.float32)
        assert np.abs(query.embedding.z.numpy() - vectors).max() < 2e-3
