from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ccaco_cli.core.data import shards
from ccaco_cli.core.encoding.columns import columns
from ccaco_cli.core.encoding.encode import encode
from ccaco_cli.core.errors import DataError, ManifestError
from ccaco_cli.core.experiments.run_folder import load_run
from ccaco_cli.core.manifest import Manifest
from ccaco_cli.core.retrieval.index import Index
from ccaco_cli.core.retrieval.match import match_logits
from ccaco_cli.core.retrieval.search import SearchOptions, encode_query, search
from tests.manifests import edited

QUERIES = ["an orange cat napping", "two blue balls under a tree", "a dog"]


def shard(embedded: Manifest, name: str) -> Any:
    files = sorted((embedded.path / f"{name}_emb").glob("*.npy"), key=lambda f: int(f.stem.rsplit("_", 1)[1]))
    return np.concatenate([np.load(f) for f in files]).astype(np.float64)


@pytest.fixture(scope="module")
def weighted(index: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same index, as if validation had given the cross branch a say."""
    return changed(index, tmp_path_factory.mktemp("w") / "w.idx", weight=2.0, headline="two-stage")


def changed(index: Path, copy: Path, *, alpha: float = 1.0, **facts: Any) -> Path:
    shutil.copytree(index, copy)
    with edited(copy) as body:
        body["facts"] |= facts
        body["config"]["loss"]["alpha"] = alpha
    return copy


def test_a_number_beyond_reason_is_refused(index: Path, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="unreadable manifest"):
        Index(changed(index, tmp_path / "x.idx", rows={"image": float("inf"), "text": 1}))


def test_answers_equal_brute_force_over_the_shards(embedded: Manifest, index: Path) -> None:
    opened = Index(index)
    query = encode_query(opened, "text", QUERIES)
    table = query.z.numpy() @ (lambda v: v / np.linalg.norm(v, axis=1, keepdims=True))(shard(embedded, "img")).T
    for hits, scores in zip(search(opened, "text", query, SearchOptions(10, rerank=0)), table, strict=True):
        assert [h.rank for h in hits] == list(range(1, 11))
        assert [h.score for h in hits] == pytest.approx(np.sort(scores)[::-1][:10], abs=1e-5)
        assert [scores[h.row] for h in hits] == pytest.approx([h.score for h in hits], abs=1e-5)
        assert all(h.match is None and h.score == h.cosine for h in hits)
        assert [h.item["id"] for h in hits] == [opened.sides["image"].item(h.row)["id"] for h in hits]


def test_a_test_pictures_own_vector_finds_the_captions_as_brute_force_does(
    embedded: Manifest, index: Path, data_root: Path
) -> None:
    opened = Index(index)
    data = shards.open(data_root / "scenes").split("test").media("image", [5])[0]
    query = encode_query(opened, "image", [Image.open(io.BytesIO(data)).convert("RGB")])
    assert query.z.numpy()[0] == pytest.approx(shard(embedded, "img")[5], abs=2e-3)
    hits = search(opened, "image", query, SearchOptions(200, rerank=0))[0]
    assert sorted(h.row for h in hits) == list(range(125)), "no more than there are"
    wanted = query.z.numpy()[0] @ (lambda v: v / np.linalg.norm(v, axis=1, keepdims=True))(shard(embedded, "text")).T
    assert [wanted[h.row] for h in hits] == pytest.approx(np.sort(wanted)[::-1], abs=1e-5)
    assert isinstance(hits[0].item["text"], str)


@pytest.mark.parametrize("modality", ["text", "image"])
def test_rerank_reorders_the_first_n_and_leaves_the_rest(
    weighted: Path, run: Path, data_root: Path, modality: str
) -> None:
    opened = Index(weighted)
    aligner, towers, config, _ = load_run(run, "cpu")
    data = shards.open(data_root / "scenes")
    sides = {
        m: encode(aligner, m, c, local_tokens=True)
        for m, c in columns(data, "test", aligner, towers, config.model).items()
    }
    if modality == "text":
        queries: list[Any] = [data.split("test").captions[17]]
    else:
        queries = [Image.open(io.BytesIO(data.split("test").media("image", [17])[0])).convert("RGB")]
    query = encode_query(opened, modality, queries)
    plain, hits = (search(opened, modality, query, SearchOptions(12, rerank=n))[0] for n in (0, 6))
    assert {h.row for h in hits[:6]} == {h.row for h in plain[:6]}
    assert [h.row for h in hits[6:]] == [h.row for h in plain[6:]]
    assert all(h.match is None for h in hits[6:])
    for hit in hits[:6]:
        pair = [17, hit.row] if modality == "image" else [hit.row, 17]
        wanted = match_logits(aligner, sides["image"].local_tokens, sides["text"].local_tokens, np_index(pair)).item()
        assert hit.match == pytest.approx(wanted, abs=0.02)
        assert hit.score == pytest.approx(
            float(aligner.logit_scale().detach()) * hit.cosine + 2.0 * hit.match, abs=1e-3
        )
    assert [h.score for h in hits[:6]] == sorted((h.score for h in hits[:6]), reverse=True)
    assert [h.rank for h in hits] == list(range(1, 13))


def np_index(pair: list[int]) -> Any:
    import torch

    return torch.tensor([pair])


def test_by_default_as_many_as_in_the_runs_evaluation(weighted: Path) -> None:
    opened = Index(weighted)
    hits = search(opened, "text", encode_query(opened, "text", QUERIES[:1]), SearchOptions(25))[0]
    assert sum(h.match is not None for h in hits) == opened.model[2].eval.shortlist == 8
    hits = search(opened, "text", encode_query(opened, "text", QUERIES[:1]), SearchOptions(3, rerank=20))[0]
    assert hits[0].match is not None


def test_a_cross_branch_without_weight_is_not_called(index: Path, tmp_path: Path) -> None:
    opened = Index(changed(index, tmp_path / "x.idx", weight=0.0, headline="cosine"))
    hits = search(opened, "text", encode_query(opened, "text", QUERIES[:1]), SearchOptions(5, rerank=5))[0]
    assert all(h.match is None for h in hits)


def test_a_model_without_contrastive_half_scores_everything_by_the_cross_branch(index: Path, tmp_path: Path) -> None:
    opened = Index(changed(index, tmp_path / "x.idx", weight=0.0, headline="cross", alpha=0.0))
    hits = search(opened, "text", encode_query(opened, "text", QUERIES[:1]), SearchOptions(25))[0]
    assert [h.score for h in hits] == [h.match for h in hits] == sorted((h.score for h in hits), reverse=True)
    assert len({h.row for h in hits}) == 25


def test_queries_together_equal_queries_alone(weighted: Path) -> None:
    opened = Index(weighted)
    batched = search(opened, "text", encode_query(opened, "text", QUERIES), SearchOptions(5))
    for text, hits in zip(QUERIES, batched, strict=True):
        alone = search(opened, "text", encode_query(opened, "text", [text]), SearchOptions(5))[0]
        assert [h.row for h in alone] == [h.row for h in hits]
        assert [h.score for h in alone] == pytest.approx([h.score for h in hits], abs=1e-3)


@pytest.mark.parametrize("stored", ["image", "text"])
def test_an_index_of_one_side_answers_queries_of_both_modalities(weighted: Path, tmp_path: Path, stored: str) -> None:
    rows = Index(weighted).manifest.facts["rows"][stored]
    opened = Index(changed(weighted, tmp_path / "x.idx", rows={stored: rows}))
    assert set(opened.sides) == {stored}
    assert {opened.targets(modality) for modality in ("image", "text")} == {(stored,)}
    picture = Image.open(io.BytesIO(Index(weighted).sides["image"].item(3)["thumbnail"]))
    samples = {"image": picture, "text": opened.sides["text"].item(3)["text"] if stored == "text" else "a red cat"}
    for modality, sample in samples.items():
        hits = search(opened, modality, encode_query(opened, modality, [sample]), SearchOptions(6))[0]
        assert len(hits) == 6
        same = modality == stored
        assert all((hit.match is None) == same for hit in hits), "the cross branch scores pairs of two modalities"
        if same:
            assert hits[0].cosine == pytest.approx(1, abs=2e-2)
            assert [h.score for h in hits] == [h.cosine for h in hits] == sorted((h.cosine for h in hits), reverse=True)
    with pytest.raises(DataError, match="no items of the modality"):
        opened.targets(stored, "text" if stored == "image" else "image")


def test_an_index_without_any_side_is_refused(index: Path, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="unreadable manifest"):
        Index(changed(index, tmp_path / "x.idx", rows={}))
