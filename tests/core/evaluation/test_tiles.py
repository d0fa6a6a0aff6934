from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch

from ccaco_cli.core.errors import DataError
from ccaco_cli.core.evaluation import tiles
from ccaco_cli.core.evaluation.metrics import RankResult, similarity_ranks
from ccaco_cli.core.evaluation.tiles import both_ranks


def unit(rng: np.random.Generator, n: int, width: int = 8) -> Any:
    z = rng.standard_normal((n, width))
    return (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)


def same(actual: RankResult, wanted: RankResult) -> None:
    for field in fields(RankResult):
        assert np.array_equal(getattr(actual, field.name), getattr(wanted, field.name)), field.name


def held_against_the_plain_way(a: Any, b: Any, group_a: Any, group_b: Any, tile_scores: int) -> None:
    a_to_b, b_to_a = both_ranks(a, b, group_a, group_b, tile_scores)
    same(a_to_b, similarity_ranks(a, b, group_a, group_b))
    same(b_to_a, similarity_ranks(b, a, group_b, group_a))


@pytest.mark.parametrize("tile_scores", [1, 700, 2**22])
@pytest.mark.parametrize("captions", [1, 2, 5])
def test_equals_one_direction_at_a_time(tile_scores: int, captions: int) -> None:
    rng = np.random.default_rng(captions)
    group_a, group_b = rng.permutation(60), rng.permutation(np.repeat(np.arange(60), captions))
    held_against_the_plain_way(unit(rng, 60), unit(rng, 60 * captions), group_a, group_b, tile_scores)


@pytest.mark.parametrize("tile_scores", [50, 2**22])
def test_ragged_groups_ties_and_sick_scores(tile_scores: int) -> None:
    rng = np.random.default_rng(0)
    group_a = rng.integers(20, size=50)
    group_b = np.concatenate([np.unique(group_a), rng.choice(group_a, 40)])
    a, b = unit(rng, 50, 2).round(1), unit(rng, len(group_b), 2).round(1)  # coarse, so that many scores are equal
    a[3], b[7], a[9, 0], b[11] = np.nan, np.nan, np.inf, 0
    held_against_the_plain_way(a, b, group_a, group_b, tile_scores)


def test_a_trained_model_is_sampled_where_scores_are_high(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    group = np.arange(400)
    owner = np.repeat(group, 2)
    a = unit(rng, 400, 64)
    b = (a[owner] + 0.5 * unit(rng, 800, 64)).astype(np.float32)
    a[1], b[4], b[10], b[500, 0], b[600:602] = (
        a[0],
        b[0],
        np.nan,
        np.inf,
        np.nan,
    )  # ties, one sick positive of two, both of them sick
    sorted_rows: list[int] = []
    plain = tiles.above_and_tied
    with monkeypatch.context() as patch:
        patch.setattr(
            tiles, "above_and_tied", lambda row, *arguments: (sorted_rows.append(len(row)), plain(row, *arguments))[1]
        )
        a_to_b, b_to_a = both_ranks(a, b, group, owner, 400 * 800 // 4)
    assert not sorted_rows
    same(a_to_b, similarity_ranks(a, b, group, owner))
    same(b_to_a, similarity_ranks(b, a, owner, group))


@pytest.mark.parametrize("width", [3, 512])
def test_a_constant_encoder_scores_chance(width: int) -> None:
    rng = np.random.default_rng(1)
    a, b = (np.tile(unit(rng, 1, width), (n, 1)) for n in (40, 200))
    a_to_b, b_to_a = both_ranks(a, b, np.arange(40), np.repeat(np.arange(40), 5), tile_scores=400)
    assert np.allclose(b_to_a.hits(1), 1 / 40)
    assert np.allclose(a_to_b.hits(1), 1 / 40)
    assert (a_to_b.tied_negatives == 195).all()


def test_many_positives_and_lost_queries() -> None:
    rng = np.random.default_rng(2)
    label_a, label_b = rng.integers(3, size=80), rng.integers(3, size=90)
    assert np.bincount(label_b).max() > tiles.MAX_POSITIVES
    held_against_the_plain_way(unit(rng, 80), unit(rng, 90), label_a, label_b, 100)
    with pytest.raises(DataError, match="no positive"):
        both_ranks(unit(rng, 3), unit(rng, 2), [0, 1, 2], [0, 1])
    with pytest.raises(DataError, match="no queries"):
        both_ranks(unit(rng, 0), unit(rng, 0), [], [])


def test_names_as_groups_and_tensors_as_vectors() -> None:
    rng = np.random.default_rng(3)
    a, b = torch.from_numpy(unit(rng, 12)), torch.from_numpy(unit(rng, 24))
    names = np.array([f"n{i:02d}" for i in range(12)])
    held_against_the_plain_way(a.half(), b.half(), names, np.repeat(names, 2), 30)


def test_every_product_is_taken_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    class Counted(tiles._Tile):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            sizes.append(self.scores.numel())

    monkeypatch.setattr(tiles, "_Tile", Counted)
    rng = np.random.default_rng(4)
    both_ranks(unit(rng, 50), unit(rng, 150), np.arange(50), np.repeat(np.arange(50), 3), tile_scores=300)
    assert sum(sizes) == 50 * 150
    assert max(sizes) <= 300


def test_scores_that_float32_cannot_tell_apart_are_taken_again(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(6)
    z = np.tile(unit(rng, 300, 512), (2, 1))
    z[300:, 0] += 1e-6 * rng.standard_normal(300)  # every twin as near as its own double, but for rounding
    group = np.arange(600)
    with monkeypatch.context() as patch:
        patch.setattr(tiles._Tile, "_exact", lambda tile: pytest.fail("few pairs are near: no tile is taken again"))
        a_to_b, b_to_a = both_ranks(z, z, group, group)
    assert a_to_b.above.sum() + a_to_b.tied_negatives.sum() > 100
    same(a_to_b, similarity_ranks(z, z, group, group))
    same(b_to_a, a_to_b)
