"""Conditions, targets, composed queries and near-duplicates of a search, against brute force."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ccaco_cli.core.data import shards
from ccaco_cli.core.errors import ConfigError, DataError, FilterError
from ccaco_cli.core.retrieval import search as search_module
from ccaco_cli.core.retrieval.index import Index
from ccaco_cli.core.retrieval.search import (
    SearchOptions,
    ask,
    encode_query,
    search,
    similar_items,
    stored_query,
)
from ccaco_cli.core.retrieval.vector_duplicates import group_duplicates
from tests.manifests import edited

TEXTS = ["an orange cat napping", "a dog"]


def changed(index: Path, copy: Path, alpha: float = 1.0, **facts: Any) -> Path:
    shutil.copytree(index, copy)
    with edited(copy) as body:
        body["facts"] |= facts
        body["config"]["loss"]["alpha"] = alpha
    return copy


@pytest.fixture(scope="module")
def weighted(index: Path, tmp_path_factory: pytest.TempPathFactory) -> Index:
    """The index, opened as if the cross branch counted."""
    return Index(changed(index, tmp_path_factory.mktemp("w") / "w.idx", weight=2.0, headline="two-stage"))


def vectors(opened: Index, modality: str) -> Any:
    side = opened.sides[modality]
    return side.vectors.read(np.arange(side.vectors.ntotal)).astype(np.float64)


def picture(opened: Index, row: int) -> Any:
    return Image.open(io.BytesIO(opened.sides["image"].item(row)["thumbnail"])).convert("RGB")


def z(opened: Index, modality: str, sample: Any) -> Any:
    return encode_query(opened, modality, [sample]).z.numpy()[0].astype(np.float64)


@pytest.mark.parametrize(
    ("modality", "where", "column"),
    [("text", "place = 'street' or things > 2", "place"), ("image", "text like '%cat%'", "text")],
)
@pytest.mark.parametrize("rerank", [0, 8])
def test_a_condition_selects_before_the_ranking(
    weighted: Index, modality: str, where: str, column: str, rerank: int
) -> None:
    sample = TEXTS[0] if modality == "text" else picture(weighted, 3)
    (target,) = weighted.targets(modality)
    items = weighted.sides[target].items.to_pylist()
    if column == "place":
        allowed = [i for i, item in enumerate(items) if item["place"] == "street" or item["things"] > 2]
    else:
        allowed = [i for i, item in enumerate(items) if "cat" in item["text"]]
    assert 0 < len(allowed) < len(items)
    scores = vectors(weighted, target)[allowed] @ z(weighted, modality, sample)
    first = [allowed[i] for i in np.argsort(-scores, kind="stable")]
    (hits,) = search(
        weighted, modality, encode_query(weighted, modality, [sample]), SearchOptions(len(items), rerank, where=where)
    )
    assert sorted(hit.row for hit in hits) == allowed
    assert {hit.row for hit in hits[:rerank]} == set(first[: len(hits[:rerank])])
    assert [hit.row for hit in hits[rerank:]] == first[rerank:]
    assert [hit.match is not None for hit in hits] == [i < rerank for i in range(len(hits))]


def test_an_empty_selection_has_no_hits_and_a_broken_condition_is_an_error(weighted: Index) -> None:
    options = SearchOptions(where="things > 1000")
    assert ask(weighted, "text", TEXTS, options) == [[], []]
    assert ask(weighted, "text", TEXTS, SearchOptions(where="things > 1000", dedup=0.9)) == [[], []]
    with pytest.raises(FilterError, match="did you mean things"):
        ask(weighted, "text", TEXTS, SearchOptions(where="thing > 1"))


def test_a_cross_branch_alone_scores_every_selected_item(index: Path, tmp_path: Path) -> None:
    opened = Index(changed(index, tmp_path / "x.idx", alpha=0.0, weight=0.0, headline="cross"))
    (hits,) = ask(opened, "text", TEXTS[:1], SearchOptions(100, where="things > 1"))
    (every,) = ask(opened, "text", TEXTS[:1], SearchOptions(100))
    assert [hit.row for hit in hits] == [hit.row for hit in every if hit.item["things"] > 1]
    assert all(hit.match == hit.score for hit in hits)


@pytest.mark.parametrize("modality", ["image", "text"])
def test_a_target_of_the_modality_of_the_query_is_ranked_by_the_cosine(weighted: Index, modality: str) -> None:
    sample = picture(weighted, 3) if modality == "image" else weighted.sides["text"].item(3)["text"]
    (hits,) = ask(weighted, modality, [sample], SearchOptions(500, target=modality))
    cosines = vectors(weighted, modality) @ z(weighted, modality, sample)
    assert hits[0].row == 3 and hits[0].cosine > 0.99, "the item itself comes first"
    assert [hit.cosine for hit in hits] == pytest.approx(np.sort(cosines)[::-1], abs=1e-5)
    assert all(hit.match is None and hit.score == hit.cosine for hit in hits)


def test_a_target_that_the_index_does_not_hold(weighted: Index) -> None:
    with pytest.raises(DataError, match=r"no items of the modality 'audio'.*expected one of image, text"):
        ask(weighted, "text", TEXTS, SearchOptions(target="audio"))


def mixed(opened: Index, modality: str, sample: Any, plus: list[str], minus: list[str], mix_weight: float) -> Any:
    total = z(opened, modality, sample)
    for texts, weight in ((plus, mix_weight), (minus, -mix_weight)):
        total = total + sum(weight * z(opened, "text", text) for text in texts)
    return total


@pytest.mark.parametrize(("plus", "minus"), [(["at night"], []), ([], ["a dog"]), (["red", "a ball"], ["a dog"])])
@pytest.mark.parametrize(("modality", "target"), [("text", "image"), ("image", "image"), ("image", "text")])
@pytest.mark.parametrize("mix_weight", [1.0, 0.4])
def test_a_composed_query_is_the_weighted_sum_of_its_parts(
    weighted: Index, modality: str, target: str, plus: list[str], minus: list[str], mix_weight: float
) -> None:
    sample = TEXTS[0] if modality == "text" else picture(weighted, 3)
    total = mixed(weighted, modality, sample, plus, minus, mix_weight)
    norm = np.linalg.norm(total)
    options = SearchOptions(200, rerank=6, target=target, plus=tuple(plus), minus=tuple(minus), mix_weight=mix_weight)
    (hits,) = ask(weighted, modality, [sample], options)
    cosines = vectors(weighted, target) @ (total / norm)
    assert [hit.cosine for hit in hits] == pytest.approx([cosines[hit.row] for hit in hits], abs=1e-3)
    assert {hit.row for hit in hits[:6]} == set(np.argsort(-cosines)[:6])
    parts = [
        (modality, sample, 1.0),
        *(("text", t, mix_weight) for t in plus),
        *(("text", t, -mix_weight) for t in minus),
    ]
    crossing = [part for part in parts if part[0] != target]
    assert [hit.match is not None for hit in hits] == [bool(crossing) and i < 6 for i in range(len(hits))]
    if not crossing:
        return
    logits = np.zeros(len(cosines))
    for part_modality, part, weight in crossing:
        (answers,) = ask(weighted, part_modality, [part], SearchOptions(200, rerank=200, target=target))
        for hit in answers:
            logits[hit.row] += weight * (hit.match or 0.0) / norm
    scale = weighted.scorer.scale
    assert [hit.match for hit in hits[:6]] == pytest.approx([logits[hit.row] for hit in hits[:6]], abs=0.02)
    assert [hit.score for hit in hits[:6]] == pytest.approx(
        [scale * cosines[hit.row] + 2.0 * logits[hit.row] for hit in hits[:6]], abs=0.05
    )
    assert [hit.score for hit in hits[:6]] == sorted((hit.score for hit in hits[:6]), reverse=True)


def test_composed_queries_together_equal_queries_alone(weighted: Index) -> None:
    options = SearchOptions(5, plus=("a ball",), minus=("a box",))
    for text, hits in zip(TEXTS, ask(weighted, "text", TEXTS, options), strict=True):
        (alone,) = ask(weighted, "text", [text], options)
        assert [hit.row for hit in hits] == [hit.row for hit in alone]
        assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in alone], abs=1e-3)


def test_parts_that_cancel_each_other_out(weighted: Index) -> None:
    with pytest.raises(DataError, match="cancel each other out"):
        ask(weighted, "text", ["a dog"], SearchOptions(minus=("a dog",)))
    with pytest.raises(DataError, match="cancel each other out"):
        ask(weighted, "text", ["a dog"], SearchOptions(minus=("a dog", "a dog"), mix_weight=0.5))


def test_numbers_out_of_range(weighted: Index) -> None:
    for options in (
        SearchOptions(0),
        SearchOptions(1, rerank=-1),
        SearchOptions(1, dedup=1.5),
        SearchOptions(1, dedup=-0.1),
        SearchOptions(1, mix_weight=0),
    ):
        with pytest.raises(ConfigError, match="out of range"):
            ask(weighted, "text", TEXTS, options)


def test_items_like_an_item(weighted: Index, data_root: Path) -> None:
    table = vectors(weighted, "image")
    wanted = [row for row in np.argsort(-(table @ table[4]), kind="stable") if row != 4][:5]
    hits = similar_items(weighted, "image", 4, SearchOptions(5))
    assert [hit.row for hit in hits] == wanted and [hit.rank for hit in hits] == [1, 2, 3, 4, 5]
    captions = similar_items(weighted, "image", 4, SearchOptions(5, rerank=8, target="text"))
    (by_picture,) = search(
        weighted, "image", stored_query(weighted, "image", np.array([4])), SearchOptions(5, rerank=8)
    )
    assert captions == by_picture and captions[0].match is not None
    file = shards.open(data_root / "scenes").split("test").media("image", [4])[0]
    (encoded,) = ask(weighted, "image", [file], SearchOptions(5, rerank=8))
    assert [hit.score for hit in captions] == pytest.approx([hit.score for hit in encoded], abs=0.05)


def greedy(z: Any, threshold: float, k: int) -> list[list[int]]:
    """Groups around the best ones, one vector after the other."""
    groups: list[list[int]] = []
    for row in range(len(z)):
        near = next((group for group in groups if z[group[0]] @ z[row] >= threshold), None)
        if near is not None:
            near.append(row)
        else:
            groups.append([row])
    return groups[:k]


def test_groups_form_around_the_best() -> None:
    rng = np.random.default_rng(0)
    points = rng.normal(size=(40, 8))
    points = points[rng.integers(40, size=300)] + 0.2 * rng.normal(size=(300, 8))
    points = (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)
    for threshold in (0.5, 0.9, 0.97, 1.0):
        for k in (1, 10, 1000):
            groups = group_duplicates(points, threshold, k)
            wanted = greedy(points, threshold - 1e-5, k)
            assert [np.flatnonzero(groups == n).tolist() for n in range(groups.max() + 1)] == wanted
    assert group_duplicates(points[:0], 0.9, 3).tolist() == []


@pytest.mark.parametrize("threshold", [0.7, 0.97, 1.0])
@pytest.mark.parametrize("k", [1, 4, 200])
@pytest.mark.parametrize("candidates", [4, 1000])
def test_near_duplicates_are_one_hit_with_their_count(
    weighted: Index, monkeypatch: pytest.MonkeyPatch, threshold: float, k: int, candidates: int
) -> None:
    monkeypatch.setattr(search_module, "CANDIDATES", candidates)
    table = vectors(weighted, "text")
    (ranked,) = ask(weighted, "image", [picture(weighted, 3)], SearchOptions(500, rerank=8))
    groups = greedy(table[[hit.row for hit in ranked]], threshold - 1e-5, k)
    (hits,) = ask(weighted, "image", [picture(weighted, 3)], SearchOptions(k, rerank=8, dedup=threshold))
    assert [hit.row for hit in hits] == [ranked[group[0]].row for group in groups]
    assert [hit.rank for hit in hits] == list(range(1, len(groups) + 1))
    assert all(hit.duplicates <= len(group) - 1 for hit, group in zip(hits, groups, strict=True))
    if candidates == 1000:
        assert [hit.duplicates for hit in hits] == [len(group) - 1 for group in groups]


def test_copies_of_a_file_are_one_hit(index: Path, tmp_path: Path) -> None:
    copy = tmp_path / "x.idx"
    shutil.copytree(index, copy)
    file = next(copy.glob("*/image/vectors.npy"))
    table = np.load(file)
    table[:20] = table[7]  # the same file, twenty times
    np.save(file, table)
    opened = Index(copy)
    (hits,) = ask(opened, "image", [picture(opened, 7)], SearchOptions(5, target="image", dedup=1.0))
    query = z(opened, "image", picture(opened, 7))
    remaining = 20 + np.argsort(-(table[20:] @ query), kind="stable")
    assert hits[0].row == 0 and hits[0].duplicates == 19
    assert [hit.row for hit in hits[1:]] == remaining[:4].tolist() and not any(hit.duplicates for hit in hits[1:])
    (selected,) = ask(
        opened, "image", [picture(opened, 7)], SearchOptions(5, target="image", dedup=1.0, where="things >= 0")
    )
    assert selected == hits
