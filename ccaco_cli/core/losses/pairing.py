"""Which pairs of a batch the cross branch scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ccaco_cli.core import runtime
from ccaco_cli.core.losses.precision import in_float32
from ccaco_cli.core.types import move_tensor

HARDNESS = 10.0
"""Negatives are drawn in proportion to exp(HARDNESS * cosine): hard, but seldom unlabelled positives."""


@dataclass(frozen=True)
class Pairs:
    """Rows of a batch and pairs among them.

    Attributes:
        rows: [R] int64, rows of the batch that take part.
        index: [M, 2] int64 into ``rows`` (side a, side b), or None for all R x R pairs.
        label: [M] bool, True = the pair belongs together; None for all pairs.
        has_negatives: [] bool on a GPU, False = all rows are of one group, so that the loss is not defined; None where
            the program need not wait to leave such queries out.
    """

    rows: Tensor
    index: Tensor | None = None
    label: Tensor | None = None
    has_negatives: Tensor | None = None


class PairSampler(Protocol):
    """Chooses pairs of a batch.

    Args:
        z_a, z_b: [B, E], row i of both is pair i.
        group: [B] int64.
        size: pairs of the batch that take part; 0 = all.
        negatives: false partners of each query, where the sampler draws any.
        generator: of the CPU for equal draws on every device; None = the default one of the device.
    """

    def __call__(
        self,
        z_a: Tensor,
        z_b: Tensor,
        group: Tensor,
        size: int,
        negatives: int,
        generator: torch.Generator | None = None,
    ) -> Pairs: ...


@in_float32
def sample_hard_negatives(
    similarity: Tensor,
    group: Tensor,
    count: int,
    generator: torch.Generator | None = None,
    query_group: Tensor | None = None,
) -> Tensor:
    """Draws ``count`` negatives per query without replacement, in proportion to exp(10 * cosine).

    Rows of the query's own group are never drawn.

    Args:
        similarity: [Q, B] cosines of query i and candidate j.
        group: [B] int64 of the candidates.
        count: negatives per query.
        query_group: [Q] int64; None = the queries are the partners of the candidates.
    Returns:
        [Q, count] int64 candidate columns. Queries with fewer negatives than ``count`` repeat them; queries with none
        get -1.
    """
    allowed = (group if query_group is None else query_group)[:, None] != group[None, :]
    drawn_on = similarity.device if generator is None else generator.device
    noise = torch.rand(similarity.shape, generator=generator, device=drawn_on)
    noise = move_tensor(noise, similarity.device).clamp_min(1e-20)
    gumbel = -torch.log(-torch.log(noise))  # the largest of logit + Gumbel noise are draws without replacement
    keys = (HARDNESS * similarity.detach() + gumbel).masked_fill(~allowed, -torch.inf)
    top, columns = keys.topk(min(count, similarity.shape[1]), dim=1)
    valid = torch.isfinite(top)
    available = valid.sum(1, keepdim=True).clamp_min(1)
    cycle = torch.arange(count, device=keys.device)[None, :] % available
    return columns.gather(1, cycle).masked_fill(~valid.any(1, keepdim=True), -1)


def all_pairs(
    z_a: Tensor, z_b: Tensor, group: Tensor, size: int, negatives: int, generator: torch.Generator | None = None
) -> Pairs:
    """All pairs of a sub-batch, each row with each; ``negatives`` is unused."""
    return Pairs(rows=_subset(group, size, generator))


def true_pairs(
    z_a: Tensor, z_b: Tensor, group: Tensor, size: int, negatives: int, generator: torch.Generator | None = None
) -> Pairs:
    """The true pairs of a sub-batch, for losses without negatives."""
    rows = _subset(group, size, generator)
    diagonal = torch.arange(len(rows), device=rows.device)
    return Pairs(rows, torch.stack([diagonal, diagonal], 1), torch.ones_like(diagonal, dtype=torch.bool))


@in_float32
def hard_negative_pairs(
    z_a: Tensor, z_b: Tensor, group: Tensor, size: int, negatives: int, generator: torch.Generator | None = None
) -> Pairs:
    """True pairs with hard negatives for both sides.

    Each run of 1 + ``negatives`` consecutive pairs has one query, its true pair first.
    """
    chosen, must_wait = _subset(group, size, generator), runtime.must_wait(group)
    index: list[Tensor] = []
    for flip in (False, True):
        queries, candidates = (z_b, z_a) if flip else (z_a, z_b)
        # similarities of the chosen queries only: the full matrix would not fit beside a large batch
        drawn = sample_hard_negatives(queries[chosen] @ candidates.T, group, negatives, generator, group[chosen])
        query = chosen
        if not must_wait:
            valid = drawn[:, 0] >= 0
            query, drawn = chosen[valid], drawn[valid]
        partners = torch.cat([query[:, None], drawn], 1)
        pairs = torch.stack([query[:, None].expand_as(partners), partners], -1).reshape(-1, 2)
        index.append(pairs.flip(1) if flip else pairs)
    both = torch.cat(index)
    label = torch.zeros(len(both), dtype=torch.bool, device=both.device)
    label[:: negatives + 1] = True
    if not must_wait:
        rows, local_index = torch.unique(both, return_inverse=True)
        return Pairs(rows, local_index, label)
    # shapes that do not depend on values, so that the program does not wait for the GPU: a query has no negative only
    # where all rows are of one group, and rows may repeat
    has_negatives, both = (both >= 0).all(), both.clamp_min(0)
    if both.numel() >= len(group):
        return Pairs(torch.arange(len(group), device=group.device), both, label, has_negatives)
    local_index = torch.arange(both.numel(), device=group.device).view_as(both)
    return Pairs(both.flatten(), local_index, label, has_negatives)


def _subset(group: Tensor, size: int, generator: torch.Generator | None) -> Tensor:
    """Consecutive rows of the batch: the loader shuffles, but keeps hard negatives (swapped twins) together."""
    batch = len(group)
    rows = torch.arange(batch, device=group.device)
    if size <= 0 or size >= batch:
        return rows
    drawn_on = group.device if generator is None else generator.device
    start = torch.randint(batch, (1,), generator=generator, device=drawn_on)
    return (rows[:size] + start.squeeze()) % batch  # a tensor without dimensions needs no copy to a GPU
