"""Two-stage scores: a shortlist by cosine, reordered by cosine and cross-attention together; or the cross branch alone, exhaustively."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ccaco_cli.core.config import EvalConfig
from ccaco_cli.core.evaluation.metrics import RECALLS, RankResult, ranks
from ccaco_cli.core.evaluation.protocols import Evaluation, Pool, evaluate
from ccaco_cli.core.model.aligner import Aligner
from ccaco_cli.core.retrieval.query import PAIRS_AT_ONCE
from ccaco_cli.core.types import EncodedSamples, LocalTokens

TOKENS_AT_ONCE = 1 << 18
"""Tokens of both sides that go to the device at once: fewer pairs of what is long."""
LIKE_LENGTH = 8
"""Pairs whose lengths differ by less go together."""
BELOW = 1e6
"""Subtracted from what is not on the shortlist, so that it stands behind it in its own order."""


@torch.inference_mode()
def match(aligner: Aligner, a: LocalTokens, b: LocalTokens, index: Tensor) -> Tensor:
    """Match logits of listed pairs: a, b on the CPU, index [M, 2] -> [M] float32 on the CPU."""
    aligner.eval()
    device = next(aligner.parameters()).device
    out = torch.empty(len(index))
    step = max(1, min(PAIRS_AT_ONCE, TOKENS_AT_ONCE // max(1, a.mask.shape[1] + b.mask.shape[1])))
    # Pairs of like length go together, for a batch costs what its longest costs; and of these the pairs of one row, which is read once.
    length = (a.mask.sum(1)[index[:, 0]] + b.mask.sum(1)[index[:, 1]]) // LIKE_LENGTH
    order = index[:, 0].argsort(stable=True)
    for chunk in torch.split(order[length[order].argsort(stable=True)], step):
        (rows_a, place_a), (rows_b, place_b) = (
            torch.unique(rows, return_inverse=True) for rows in index[chunk].unbind(1)
        )
        # only the rows of this chunk go to the device, and no further than their longest token
        one, other = (
            _trim(x[rows]).to(device).map(lambda t: t.float() if t.is_floating_point() else t)
            for x, rows in ((a, rows_a), (b, rows_b))
        )
        out[chunk] = aligner.cross(one, other, torch.stack([place_a, place_b], 1).to(device)).match_logit.float().cpu()
    return out


def _trim(local: LocalTokens) -> LocalTokens:
    longest = int(local.mask.any(0).nonzero().max()) + 1 if local.mask.any() else 0
    return LocalTokens(local.tokens[:, :longest], local.mask[:, :longest])


@dataclass(frozen=True)
class Shortlist:
    """One direction of a pool, with everything that does not depend on the weight.

    cosine     [Q, G] is never kept: ``z_query`` and ``z_gallery`` are
    columns    [Q, K] int64, the shortlist of each query
    match      [Q, K] float, its cross scores
    """

    z_query: Tensor
    z_gallery: Tensor
    group_query: Any
    group_gallery: Any
    columns: Tensor
    match: Tensor
    scale: float

    def ranks(self, weight: float) -> RankResult:
        """Ranks by ``scale * cosine + weight * match`` within the shortlist, by cosine behind it."""

        def block(rows: slice) -> Tensor:
            score = self.scale * (self.z_query[rows].double() @ self.z_gallery.double().T).float().double()
            best = score.gather(1, self.columns[rows])
            if weight:  # at 0 the cross branch has no say, not even when it is NaN
                best = best + weight * self.match[rows].double()
            return (score - BELOW).scatter(1, self.columns[rows], best)

        return ranks(block, self.group_query, self.group_gallery)

    def recalls(self, weight: float) -> float:
        """Sum of R@1, R@5 and R@10 in percent, as ``ranks(weight)`` has them, from the shortlists alone where these hold ten or more."""
        if self.columns.shape[1] < max(RECALLS):
            return _r_sum(self.ranks(weight))
        score = self.scale * self._cosines
        if weight:
            score = score + weight * self.match.double()
        score = score.nan_to_num(torch.inf, torch.inf, -torch.inf)  # sick scores stand ahead of all, and are no hit
        positive = torch.from_numpy(
            np.asarray(self.group_gallery)[self.columns.numpy()] == np.asarray(self.group_query)[:, None]
        )
        sound = positive & (score < torch.inf)
        best = torch.where(sound, score, -torch.inf).amax(1, keepdim=True)
        chosen = (score > best) & ~positive, (score == best) & ~positive, (score == best) & sound
        above, tied, own = (found.sum(1).numpy() for found in chosen)
        return _r_sum(
            RankResult(
                above + 1.0, above, tied, own, above * 0.0, own, np.asarray(self.group_query), len(self.z_gallery)
            )
        )

    @cached_property
    def _cosines(self) -> Tensor:
        """[Q, K] float64, rounded as in ``ranks``."""
        parts = zip(torch.split(self.z_query, 128), torch.split(self.columns, 128), strict=True)
        return torch.cat(
            [torch.einsum("qe,qke->qk", z.double(), self.z_gallery[c].double()).float().double() for z, c in parts]
        )


def stages(
    aligner: Aligner, a: EncodedSamples, b: EncodedSamples, group_a: Any, group_b: Any, config: EvalConfig
) -> tuple[Shortlist, Shortlist]:
    """Shortlists and cross scores of both directions (a to b, b to a); a, b encoded with tokens."""
    scale = float(aligner.logit_scale().detach())
    found = []
    for query, gallery, groups, size, flipped in (
        (a, b, (group_a, group_b), config.shortlist_back, False),
        (b, a, (group_b, group_a), config.shortlist, True),
    ):
        columns = torch.cat(
            [(z @ gallery.z.T).topk(min(size, len(gallery.z)), 1).indices for z in torch.split(query.z, 1024)]
        )
        pairs = torch.stack([torch.arange(len(columns))[:, None].expand_as(columns), columns], -1).flatten(0, 1)
        logits = match(aligner, a.local_tokens, b.local_tokens, pairs.flip(1) if flipped else pairs)
        found.append(Shortlist(query.z, gallery.z, *groups, columns, logits.view_as(columns), scale))
    return found[0], found[1]


def choose_weight(one: Shortlist, other: Shortlist, config: EvalConfig) -> tuple[float, dict[float, float]]:
    """The weight of the cross score with the highest R-sum (on validation); ties go to the smaller weight, NaN never wins."""
    sums = {w: one.recalls(w) + other.recalls(w) for w in sorted({0.0, *config.rerank_weights})}
    return max(sums, key=lambda w: (np.nan_to_num(sums[w], nan=-1.0), -w)), sums


def _r_sum(result: RankResult) -> float:
    return sum(100 * float(result.hits(k).mean()) for k in RECALLS)


def two_stage(
    aligner: Aligner,
    a: EncodedSamples,
    b: EncodedSamples,
    group_a: Any,
    group_b: Any,
    config: EvalConfig,
    weight: float,
    known: tuple[Shortlist, Shortlist] | None = None,
) -> Evaluation:
    """Recalls of the two-stage score under the config's protocol; ``known`` = the stages of its one pool, if there already."""

    def rank_pool(pool: Pool) -> tuple[RankResult, RankResult]:
        one, other = known or stages(aligner, a[pool.a], b[pool.b], group_a[pool.a], group_b[pool.b], config)
        return one.ranks(weight), other.ranks(weight)

    return evaluate(config.protocol, group_a, group_b, rank_pool, aligner.modalities)


def exhaustive(
    aligner: Aligner, a: EncodedSamples, b: EncodedSamples, group_a: Any, group_b: Any, protocol: str
) -> Evaluation:
    """Recalls of the cross branch alone, every pair scored: the price of a model without a contrastive half."""

    def rank_pool(pool: Pool) -> tuple[RankResult, RankResult]:
        table = _table(aligner, a.local_tokens[pool.a], b.local_tokens[pool.b])
        ids = group_a[pool.a], group_b[pool.b]
        return ranks(lambda rows: table[rows], *ids), ranks(lambda rows: table.T[rows], *reversed(ids))

    return evaluate(protocol, group_a, group_b, rank_pool, aligner.modalities)


def _table(aligner: Aligner, a: LocalTokens, b: LocalTokens) -> Tensor:
    """[A, B] match logits, float32; each pair is scored once and serves both directions."""
    columns = torch.arange(len(b.mask))
    rows = (torch.stack([torch.full_like(columns, row), columns], 1) for row in range(len(a.mask)))
    return torch.stack([match(aligner, a, b, pairs) for pairs in rows])
