from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ccaco_cli.core.config import EvalConfig
from ccaco_cli.core.encoding.encode import encode
from ccaco_cli.core.evaluation.metrics import similarity_ranks
from ccaco_cli.core.retrieval import match
from ccaco_cli.core.retrieval.match import match_logits
from ccaco_cli.core.retrieval.rerank import Scorer
from ccaco_cli.core.scoring.two_stage import Shortlist, choose_weight, exhaustive, shortlists, two_stage
from ccaco_cli.core.types import Crossed, Embedding, EncodedSamples, LocalTokens

GROUPS = np.arange(24), np.repeat(np.arange(24), 2)


def weighted(weight: float, scale: float = 10.0) -> Scorer:
    return Scorer("two-stage", scale, weight)


class ByTable(torch.nn.Module):
    """An aligner whose match logits are a table; row and column travel in the tokens."""

    modalities = ("image", "text")

    def __init__(self, table: torch.Tensor, scale: float = 1.0) -> None:
        super().__init__()
        self.table, self.scale = torch.nn.Parameter(table), scale

    def logit_scale(self) -> torch.Tensor:
        return torch.tensor(self.scale)

    def cross(self, a: LocalTokens, b: LocalTokens, index: torch.Tensor) -> Crossed:
        row, column = (x.tokens[:, 0, 0].long() for x in (a[index[:, 0]], b[index[:, 1]]))
        return Crossed(self.table[row, column])


def side(z: torch.Tensor) -> EncodedSamples:
    numbers = torch.arange(float(len(z)))[:, None, None]
    return EncodedSamples(Embedding(z, z), LocalTokens(numbers, torch.ones(len(z), 1, dtype=torch.bool)))


def unit(*angles: float) -> torch.Tensor:
    return torch.tensor([[np.cos(np.radians(a)), np.sin(np.radians(a))] for a in angles], dtype=torch.float32)


@pytest.fixture
def model(toy: Any) -> Any:
    return toy.aligner(toy.config(model__fusion__scale=3.0)).eval()


@pytest.fixture
def sides(toy: Any, model: Any) -> tuple[EncodedSamples, EncodedSamples]:
    a, b = (encode(model, m, c, local_tokens=True) for m, c in zip(("image", "text"), toy.columns(), strict=True))
    return a, b


def test_match_is_the_cross_branch_pair_by_pair(
    model: Any, sides: tuple[EncodedSamples, EncodedSamples], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = (side.local_tokens for side in sides)
    index = torch.tensor([[0, 5], [23, 1], [2, 2], [2, 47], [7, 7]])
    monkeypatch.setattr(match, "PAIRS_AT_ONCE", 2)
    logits = match_logits(model.train(), a, b, index)
    wanted = [
        model.eval().cross(a[[i]].map(_float), b[[j]].map(_float), torch.tensor([[0, 0]])).match_logit.item()
        for i, j in index.tolist()
    ]
    assert logits.tolist() == pytest.approx(wanted, abs=1e-5)


def _float(x: torch.Tensor) -> torch.Tensor:
    return x.float() if x.is_floating_point() else x


def test_weight_zero_equals_plain_cosine(model: Any, sides: tuple[EncodedSamples, EncodedSamples]) -> None:
    a, b = sides
    a_to_b, b_to_a = shortlists(model, a, b, GROUPS, EvalConfig(shortlist=5, shortlist_back=7))
    assert a_to_b.columns.shape == (24, 7)
    assert b_to_a.columns.shape == (48, 5)
    for stage, wanted in (
        (a_to_b, similarity_ranks(a.z, b.z, *GROUPS)),
        (b_to_a, similarity_ranks(b.z, a.z, *reversed(GROUPS))),
    ):
        assert np.array_equal(stage.ranks(weighted(0.0)).rank, wanted.rank)
        assert not np.array_equal(stage.ranks(weighted(5.0)).rank, wanted.rank)
        with_nan = replace(stage, match=torch.full_like(stage.match, torch.nan))
        assert np.array_equal(with_nan.ranks(weighted(0.0)).rank, wanted.rank), "without weight only cosines count"


def test_the_shortlist_is_reordered_by_hand() -> None:
    gallery = unit(0, 10, 20, 30, 40)  # cosine order for the query: 0 1 2 3 4
    columns, logits = torch.tensor([[0, 1, 2]]), torch.tensor([[0.0, 5.0, 9.0]])

    def rank_of(positive: int, weight: float) -> float:
        groups = np.full(5, -1)
        groups[positive] = 7
        return float(
            Shortlist(unit(0), gallery, np.array([7]), groups, columns, logits).ranks(weighted(weight)).rank[0]
        )

    assert [rank_of(i, 1.0) for i in range(5)] == [
        3,
        2,
        1,
        4,
        5,
    ]  # scores 10, 14.8, 18.4; behind the shortlist cosine goes on
    assert [rank_of(i, 0.0) for i in range(5)] == [1, 2, 3, 4, 5]
    assert [rank_of(i, -100.0) for i in range(5)] == [
        1,
        2,
        3,
        4,
        5,
    ]  # even a dreadful score stays ahead of what nobody looked at
    assert [rank_of(i, 0.09) for i in range(5)] == [3, 1, 2, 4, 5]  # 10, 10.298, 10.207


def test_each_direction_asks_about_its_own_pairs() -> None:
    torch.manual_seed(0)
    table = torch.randn(3, 4)
    a, b = side(unit(0, 50, 90)), side(unit(10, 24, 60, 80))
    a_to_b, b_to_a = shortlists(
        ByTable(table), a, b, (np.arange(3), np.array([0, 0, 1, 2])), EvalConfig(shortlist=2, shortlist_back=3)
    )  # type: ignore[arg-type]
    assert a_to_b.columns.tolist() == [[0, 1, 2], [2, 1, 3], [3, 2, 1]]
    assert b_to_a.columns.tolist() == [[0, 1], [0, 1], [1, 2], [2, 1]]
    assert torch.equal(a_to_b.match, table.gather(1, a_to_b.columns))
    assert torch.equal(b_to_a.match, table.T.gather(1, b_to_a.columns))
    assert (a_to_b.group_query.tolist(), a_to_b.group_gallery.tolist()) == ([0, 1, 2], [0, 0, 1, 2])
    assert (b_to_a.group_query.tolist(), b_to_a.group_gallery.tolist()) == ([0, 0, 1, 2], [0, 1, 2])


def cosines(rows: int) -> tuple[EncodedSamples, EncodedSamples]:
    z = F.normalize(torch.randn(2, rows, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
    return side(z[0]), side(z[1])


def chosen(table: torch.Tensor, weights: tuple[float, ...]) -> tuple[float, dict[float, float]]:
    rows = np.arange(len(table))
    config = EvalConfig(shortlist=len(table), shortlist_back=len(table), rerank_weights=weights)
    return choose_weight(*shortlists(ByTable(table), *cosines(len(table)), (rows, rows), config), config, 1.0)  # type: ignore[arg-type]


def test_the_weight_with_the_best_validation_figure_wins() -> None:
    weight, sums = chosen(10 * torch.eye(12), (0.0, 0.001, 1.0, 2.0))
    assert weight == 1.0
    assert sums[1.0] == sums[2.0] == pytest.approx(600)
    assert sums[0.0] < sums[1.0]


@pytest.mark.parametrize(
    "table",
    [-10 * torch.eye(12), torch.full((12, 12), torch.nan), torch.zeros(12, 12)],
    ids=["harmful", "nan", "useless"],
)
def test_a_weight_that_does_not_help_is_never_chosen(table: torch.Tensor) -> None:
    weight, sums = chosen(table, (0.5, 1.0))
    assert weight == 0.0, "0 is always among the candidates"
    assert all(sums[0.0] >= s for s in sums.values())


def test_two_stage_under_a_protocol(model: Any, sides: tuple[EncodedSamples, EncodedSamples]) -> None:
    config = EvalConfig(shortlist=5, shortlist_back=7, protocol="full")
    a_to_b, b_to_a = shortlists(model, *sides, GROUPS, config)
    stages = two_stage(model, *sides, GROUPS, config, 2.0)
    scorer = weighted(2.0, float(model.logit_scale()))
    assert stages.metrics["image_to_text_R@1"] == pytest.approx(a_to_b.ranks(scorer).hits(1).mean())
    assert stages.metrics["text_to_image_R@1"] == pytest.approx(b_to_a.ranks(scorer).hits(1).mean())
    assert stages.pools == ((24, 48),)


def test_exhaustive_scores_every_pair() -> None:
    table = torch.tensor([[3.0, 1.0, 2.0], [9.0, 0.0, 4.0], [5.0, 6.0, 7.0]])
    evaluation = exhaustive(ByTable(table), *cosines(3), (np.arange(3), np.arange(3)), "full")  # type: ignore[arg-type]
    assert evaluation.a_to_b[0].rank.tolist() == [1, 3, 1]
    assert evaluation.b_to_a[0].rank.tolist() == [3, 3, 1]
    assert evaluation.metrics["image_to_text_R@1"] == pytest.approx(2 / 3)
    assert evaluation.metrics["text_to_image_R@1"] == pytest.approx(1 / 3)


def test_exhaustive_equals_a_full_shortlist_without_cosine(
    model: Any, sides: tuple[EncodedSamples, EncodedSamples]
) -> None:
    evaluation = exhaustive(model, *sides, GROUPS, "full")
    a_to_b, b_to_a = shortlists(model, *sides, GROUPS, EvalConfig(shortlist=24, shortlist_back=48))
    assert np.array_equal(evaluation.a_to_b[0].rank, a_to_b.ranks(Scorer.of("cross")).rank)
    assert np.array_equal(evaluation.b_to_a[0].rank, b_to_a.ranks(Scorer.of("cross")).rank)


@pytest.mark.parametrize("weight", [0.0, 0.3, 5.0])
@pytest.mark.parametrize("with_nan", [False, True])
def test_recalls_of_a_shortlist_are_those_of_the_whole_ranking(weight: float, with_nan: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    query, gallery = (F.normalize(torch.randn(n, 3, generator=generator), dim=-1) for n in (40, 80))
    gallery[10:20] = gallery[0]  # equal cosines
    groups = np.arange(40), np.repeat(np.arange(40), 2)
    columns = (query @ gallery.T).topk(12, 1).indices
    logits = torch.randn(40, 12, generator=generator).round()
    if with_nan:
        logits[3], logits[4, 2], logits[5, :6] = torch.nan, torch.inf, -torch.inf
    stage = Shortlist(query, gallery, *groups, columns, logits)
    assert stage.recall_sum(weighted(weight)) == pytest.approx(
        sum(100 * stage.ranks(weighted(weight)).hits(k).mean() for k in (1, 5, 10)), abs=1e-9
    )
    narrow = replace(stage, columns=columns[:, :4], match=logits[:, :4])
    assert narrow.recall_sum(weighted(weight)) == pytest.approx(
        sum(100 * narrow.ranks(weighted(weight)).hits(k).mean() for k in (1, 5, 10)), abs=1e-9
    )
