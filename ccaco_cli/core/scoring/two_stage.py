"""Evaluation by the cross branch: a shortlist by cosine that the two-stage score reorders, or every pair by the cross
branch alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ccaco_cli.core.config import EvalConfig
from ccaco_cli.core.evaluation.metrics import RECALLS, RankResult, ranks
from ccaco_cli.core.evaluation.protocols import Evaluation, Pool, evaluate
from ccaco_cli.core.model.aligner import Aligner
from ccaco_cli.core.retrieval.match import match_logits
from ccaco_cli.core.retrieval.rerank import TWO_STAGE, Scorer
from ccaco_cli.core.types import EncodedSamples, LocalTokens

Groups = tuple[Any, Any]
"""[A] and [B]: the group of every sample of both modalities."""
NOT_LISTED = 1e6
"""Subtracted from the scores of samples outside the shortlist: they rank behind it, in the order of their cosines."""


@dataclass(frozen=True)
class Shortlist:
    """The shortlists of all queries in one direction, with everything that does not depend on the weight of the match
    logit.

    Attributes:
        z_query: [Q, E] and z_gallery: [G, E] unit vectors; the cosines [Q, G] are computed when they are needed, on the
            device of the vectors.
        group_query: [Q] and group_gallery: [G].
        columns: [Q, K] int64, the samples of the gallery on the shortlist of each query.
        match: [Q, K] float, their match logits.
    """

    z_query: Tensor
    z_gallery: Tensor
    group_query: Any
    group_gallery: Any
    columns: Tensor
    match: Tensor

    def ranks(self, scorer: Scorer) -> RankResult:
        """Ranks by the score within the shortlist, by cosine behind it."""

        def block(rows: slice) -> Tensor:
            cosine = (self.z_query[rows].double() @ self.z_gallery.double().T).float().double()
            columns, match = (x[rows].to(cosine.device) for x in (self.columns, self.match))
            listed = scorer(cosine.gather(1, columns), match.double())
            return (scorer.scale * cosine - NOT_LISTED).scatter(1, columns, listed)

        return ranks(block, self.group_query, self.group_gallery)

    def top(self, scorer: Scorer) -> NDArray[np.int64]:
        """[Q] the sample of the gallery with the highest score; -1 where two have it, or where it is not finite."""
        score = scorer(self._cosines, self.match.double())
        highest, places = score.topk(min(2, score.shape[1]), 1)
        clear = highest[:, 0].isfinite()
        if highest.shape[1] > 1:
            clear &= highest[:, 0] > highest[:, 1]
        return torch.where(clear, self.columns.gather(1, places)[:, 0], -1).numpy()

    def recall_sum(self, scorer: Scorer) -> float:
        """Sum of R@1, R@5 and R@10 in percent as ``ranks`` gives them; from the shortlists alone where they hold ten
        samples.
        """
        if self.columns.shape[1] < max(RECALLS):
            return _recall_sum(self.ranks(scorer))
        score = scorer(self._cosines, self.match.double())
        score = score.nan_to_num(
            torch.inf, torch.inf, -torch.inf
        )  # scores that are not finite rank first and are no hit
        positive = torch.from_numpy(
            np.asarray(self.group_gallery)[self.columns.numpy()] == np.asarray(self.group_query)[:, None]
        )
        finite_positive = positive & (score < torch.inf)
        best = torch.where(finite_positive, score, -torch.inf).amax(1, keepdim=True)
        chosen = (score > best) & ~positive, (score == best) & ~positive, (score == best) & finite_positive
        above, tied_negatives, tied_positives = (cells.sum(1).numpy() for cells in chosen)
        return _recall_sum(
            RankResult(
                above + 1.0,
                above,
                tied_negatives,
                tied_positives,
                above * 0.0,
                tied_positives,
                np.asarray(self.group_query),
                len(self.z_gallery),
            )
        )

    @cached_property
    def _cosines(self) -> Tensor:
        """[Q, K] float64, rounded as in ``ranks``."""
        parts = zip(torch.split(self.z_query, 128), torch.split(self.columns, 128), strict=True)
        cosines = [
            torch.einsum("qe,qke->qk", z.double(), self.z_gallery[c.to(z.device)].double()).float().double()
            for z, c in parts
        ]
        return torch.cat(cosines).cpu()


def shortlists(
    aligner: Aligner, a: EncodedSamples, b: EncodedSamples, groups: Groups, config: EvalConfig
) -> tuple[Shortlist, Shortlist]:
    """Shortlists and match logits of both directions, a to b and b to a.

    Args:
        a, b: samples of both modalities, encoded with tokens.
    """
    device = next(aligner.parameters()).device
    by_direction = []
    for query, gallery, query_groups, size, flipped in (
        (a, b, groups, config.shortlist_back, False),
        (b, a, groups[::-1], config.shortlist, True),
    ):
        z_query, z_gallery = (samples.z.to(device) for samples in (query, gallery))
        columns = _nearest_columns(z_query, z_gallery, size)
        pairs = _listed_pairs(columns)
        logits = match_logits(aligner, a.local_tokens, b.local_tokens, pairs.flip(1) if flipped else pairs)
        by_direction.append(Shortlist(z_query, z_gallery, *query_groups, columns, logits.view_as(columns)))
    return by_direction[0], by_direction[1]


def top_answers(
    aligner: Aligner | None, a: EncodedSamples, b: EncodedSamples, scorer: Scorer, size: int
) -> NDArray[np.int64]:
    """The first answer to each query of modality b among the samples of modality a.

    Args:
        aligner: None for a model that has vectors only.
        scorer: of cosines, or of a two-stage score.
        size: samples on the shortlist of a query.
    Returns:
        [B] the sample of a; -1 where two have the highest score, or where it is not finite.
    """
    device = torch.device("cpu") if aligner is None else next(aligner.parameters()).device
    z_a, z_b = a.z.to(device), b.z.to(device)
    columns = _nearest_columns(z_b, z_a, size)
    match = torch.zeros(columns.shape)
    if aligner is not None and scorer.weight:
        pairs = _listed_pairs(columns).flip(1)
        match = match_logits(aligner, a.local_tokens, b.local_tokens, pairs).view_as(columns)
    return Shortlist(z_b, z_a, None, None, columns, match).top(scorer)


def _nearest_columns(z_query: Tensor, z_gallery: Tensor, size: int) -> Tensor:
    """[Q, K] int64 on the CPU: the samples of the gallery with the highest cosines, at most ``size``."""
    size = min(size, len(z_gallery))
    return torch.cat([(z @ z_gallery.T).topk(size, 1).indices for z in torch.split(z_query, 1024)]).cpu()


def _listed_pairs(columns: Tensor) -> Tensor:
    """[Q * K, 2] int64: (query, sample of the gallery) of every place of the shortlists [Q, K]."""
    return torch.stack([torch.arange(len(columns))[:, None].expand_as(columns), columns], -1).flatten(0, 1)


def choose_weight(
    a_to_b: Shortlist, b_to_a: Shortlist, config: EvalConfig, scale: float
) -> tuple[float, dict[float, float]]:
    """Chooses the weight of the match logit with the highest R-sum (of the validation split).

    Returns:
        The weight, and the R-sum of every weight that was tried. Ties go to the smaller weight; NaN is never chosen.
    """
    sums = {}
    for weight in sorted({0.0, *config.rerank_weights}):
        scorer = Scorer.of(TWO_STAGE, scale, weight)
        sums[weight] = a_to_b.recall_sum(scorer) + b_to_a.recall_sum(scorer)
    return max(sums, key=lambda w: (np.nan_to_num(sums[w], nan=-1.0), -w)), sums


def _recall_sum(result: RankResult) -> float:
    return sum(100 * float(result.hits(k).mean()) for k in RECALLS)


def two_stage(
    aligner: Aligner,
    a: EncodedSamples,
    b: EncodedSamples,
    groups: Groups,
    config: EvalConfig,
    weight: float,
    known: tuple[Shortlist, Shortlist] | None = None,
) -> Evaluation:
    """Recalls of the two-stage score under the config's protocol.

    Args:
        weight: of the match logit.
        known: the shortlists of the only pool, when they are computed already.
    """
    scorer = Scorer.of(TWO_STAGE, logit_scale(aligner), weight)

    def rank_pool(pool: Pool) -> tuple[RankResult, RankResult]:
        pool_groups = groups[0][pool.a], groups[1][pool.b]
        a_to_b, b_to_a = known or shortlists(aligner, a[pool.a], b[pool.b], pool_groups, config)
        return a_to_b.ranks(scorer), b_to_a.ranks(scorer)

    return evaluate(config.protocol, *groups, rank_pool, aligner.modalities)


def exhaustive(aligner: Aligner, a: EncodedSamples, b: EncodedSamples, groups: Groups, protocol: str) -> Evaluation:
    """Recalls of the cross branch alone: a model without a contrastive half has to score every pair."""

    def rank_pool(pool: Pool) -> tuple[RankResult, RankResult]:
        table = _table(aligner, a.local_tokens[pool.a], b.local_tokens[pool.b])
        pool_groups = groups[0][pool.a], groups[1][pool.b]
        return ranks(lambda rows: table[rows], *pool_groups), ranks(lambda rows: table.T[rows], *reversed(pool_groups))

    return evaluate(protocol, *groups, rank_pool, aligner.modalities)


def logit_scale(aligner: Aligner) -> float:
    """What multiplies the cosines of a trained model."""
    return float(aligner.logit_scale().detach())


def _table(aligner: Aligner, a: LocalTokens, b: LocalTokens) -> Tensor:
    """[A, B] match logits, float32; each pair is scored once and serves both directions."""
    columns = torch.arange(len(b.mask))
    rows = (torch.stack([torch.full_like(columns, row), columns], 1) for row in range(len(a.mask)))
    return torch.stack([match_logits(aligner, a, b, pairs) for pairs in rows])
