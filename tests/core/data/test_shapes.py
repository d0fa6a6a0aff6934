"""The generated point clouds: their captions are true of them, twins differ in one thing, and no split leaks."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import numpy as np
import pytest

from ccaco_cli.core.data import arrays, shapes
from ccaco_cli.core.data.scene_figures import COLOURS
from ccaco_cli.core.types import PairRecord


def read(record: PairRecord) -> Any:
    media: Any = record.media["array"]
    return arrays.decode(media())


@pytest.fixture(scope="module")
def records() -> dict[str, list[PairRecord]]:
    return {split: list(shapes.records(split, 60, seed=3)) for split in ("train", "test")}


def test_the_same_arguments_give_the_same_bytes(records: Any) -> None:
    again = list(shapes.records("train", 60, seed=3))
    for first, second in zip(again, records["train"], strict=True):
        assert (first.id, first.captions, first.meta) == (second.id, second.captions, second.meta)
        assert first.media["array"]() == second.media["array"]()  # type: ignore[operator]
    other_seed = next(shapes.records("train", 60, seed=4))
    assert other_seed.media["array"]() != again[0].media["array"]()  # type: ignore[operator]


def test_a_cloud_has_the_colours_and_the_places_of_its_facts(records: Any) -> None:
    for record in records["train"]:
        rows, facts, relation = read(record), record.meta["facts"], record.meta["relation"]
        assert shapes.POINTS[0] <= len(rows) <= shapes.POINTS[1] and rows.shape[1] == 6
        assert rows[:, 3:].min() >= 0 and rows[:, 3:].max() <= 1
        palette = np.array([COLOURS[fact["colour"]] for fact in facts]) / 255
        part = np.linalg.norm(rows[:, None, 3:] - palette, axis=2).argmin(1)
        assert set(part) == set(range(len(facts)))
        low, high = (np.stack([f(rows[part == i, :3], 0) for i in range(len(facts))]) for f in (np.min, np.max))
        for i, fact in enumerate(facts):
            height = high[i, 2] - low[i, 2]
            assert (height > 0.72) == (fact["size"] == "large"), (fact, height)
        if relation == "left":
            assert high[0, 0] < low[1, 0], "object 0 is left of object 1"
        elif relation in ("on", "above"):
            gap = low[0, 2] - high[1, 2]
            assert (gap > 0.2) == (relation == "above") and gap > -0.25
        else:
            assert min(abs(low[0, 0] - high[1, 0]), abs(low[1, 0] - high[0, 0])) < 0.25


@pytest.mark.parametrize("noun", shapes.SOLIDS)
def test_a_solid_fills_its_cube_and_no_more(noun: str) -> None:
    points = shapes.SOLIDS[noun](np.random.default_rng(0), 4000)
    assert points.shape == (4000, 3) and np.abs(points).max() <= 0.5 + 1e-9
    assert np.ptp(points[:, 2]) > 0.95 and np.ptp(points[:, 0]) > 0.95


@pytest.mark.parametrize("kind", [kind for kind in shapes.KINDS if kind])
def test_twins_exchange_one_thing(kind: str) -> None:
    name = {"colour": "colour", "size": "size", "shape": "noun"}.get(kind)
    for seed in range(30):
        first, second = shapes.compose(random.Random(seed), kind)
        a, b = first.objects[:2]
        if name is None:
            assert second.objects[:2] == (b, a)
        else:
            assert [getattr(t, name) for t in second.objects[:2]] == [getattr(b, name), getattr(a, name)]
            assert getattr(a, name) != getattr(b, name), "the swap changes the cloud"
        assert shapes.render(first) != shapes.render(second)


def test_a_binding_caption_has_the_words_of_the_other_twin(records: Any) -> None:
    pairs = [pair for record in records["train"] for pair in record.meta["binding"]]
    assert len(pairs) > 50
    for true, false in pairs:
        assert (true != false and Counter(true.split()) == Counter(false.split())) or "an " in true + false
    twins = [record for record in records["train"] if record.meta["twin"]]
    families = Counter(record.family for record in twins)
    assert set(families.values()) == {2} and {r.meta["twin"]["kind"] for r in twins} == set(shapes.KINDS) - {""}


def test_held_out_pairs_are_in_test_only(records: Any) -> None:
    assert not any(record.meta["heldout"] for record in records["train"])
    assert any(record.meta["heldout"] for record in records["test"])


def test_captions_name_size_and_colour(records: Any) -> None:
    for record in records["train"]:
        assert len(record.captions) == shapes.CAPTIONS
        for caption in record.captions:
            assert any(word in caption for word in ("small", "little", "tiny", "large", "big", "huge")), caption
            assert "picture" not in caption and "  " not in caption
