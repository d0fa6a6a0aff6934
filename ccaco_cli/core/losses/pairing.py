"""Which pairs of a batch the cross branch looks at."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

HARDNESS = 10.0
"""Negatives are drawn in proportion to exp(HARDNESS * cosine) (SCIENCE, corrections)."""


@dataclass(frozen=True)
class Pairs:
    """Rows of a batch and pairs among them.

    rows   [R] int64, rows of the batch that take part
    index  [M, 2] int64 into ``rows`` (side a, side b), or None for all R x R pairs
    label  [M] bool, or None for all pairs
    """

    rows: Tensor
    index: Tensor | None = None
    label: Tensor | None = None


def hard_negatives(
    similarity: Tensor,
    group: Tensor,
    count: int,
    generator: torch.Generator | None = None,
    query_group: Tensor | None = None,
) -> Tensor:
    """Draws ``count`` negatives for every query, without replacement, in proportion to exp(10 * cosine); the same group is never drawn.

    similarity   [Q, B] cosines, query i against candidate j
    group        [B] int64, of the candidates
    query_group  [Q] int64; None = the queries are the candidates' own pairs
    Returns      [Q, count] int64 candidate columns; queries with fewer negatives than ``count`` repeat theirs, those with none get -1
    """
    allowed = (group if query_group is None else query_group)[:, None] != group[None, :]
    noise = torch.rand(similarity.shape, generator=generator, device=similarity.device).clamp_min(1e-20)
    gumbel = -torch.log(-torch.log(noise))
    keys = (HARDNESS * similarity.detach().float() + gumbel).masked_fill(~allowed, -torch.inf)
    width = min(count, similarity.shape[1])
    best, columns = keys.topk(width, dim=1)
    found = torch.isfinite(best)
    available = found.sum(1, keepdim=True).clamp_min(1)
    cycle = torch.arange(count, device=keys.device)[None, :] % available
    picked = columns.gather(1, cycle)
    return picked.masked_fill(~found.any(1, keepdim=True), -1)


def all_pairs(
    z_a: Tensor, z_b: Tensor, group: Tensor, size: int, count: int, generator: torch.Generator | None = None
) -> Pairs:
    """A sub-batch, everyone against everyone (``count`` unused)."""
    return Pairs(rows=_subset(group, size, generator))


def aligned(
    z_a: Tensor, z_b: Tensor, group: Tensor, size: int, count: int, generator: torch.Generator | None = None
) -> Pairs:
    """A sub-batch, true pairs only: for losses that have no negatives."""
    rows = _subset(group, size, generator)
    diagonal = torch.arange(len(rows), device=rows.device)
    return Pairs(rows, torch.stack([diagonal, diagonal], 1), torch.ones_like(diagonal, dtype=torch.bool))


def with_hard_negatives(
    z_a: Tensor, z_b: Tensor, group: Tensor, size: int, count: int, generator: torch.Generator | None = None
) -> Pairs:
    """True pairs, and for both sides ``count`` hard negatives each; ordered so that each run of 1 + count is one query."""
    chosen = _subset(group, size, generator)
    index: list[Tensor] = []
    for flip in (False, True):
        asked, candidates = (z_b, z_a) if flip else (z_a, z_b)
        # only the rows of those who ask: the whole matrix would not fit beside a large batch
        negatives = hard_negatives(asked[chosen] @ candidates.T, group, count, generator, group[chosen])
        keep = negatives[:, 0] >= 0
        query, listed = chosen[keep], torch.cat([chosen[keep, None], negatives[keep]], 1)
        pairs = torch.stack([query[:, None].expand_as(listed), listed], -1).reshape(-1, 2)
        index.append(pairs.flip(1) if flip else pairs)
    both = torch.cat(index)
    rows, local = torch.unique(both, return_inverse=True)
    label = torch.zeros(len(both), dtype=torch.bool, device=both.device)
    label[:: count + 1] = True
    return Pairs(rows, local, label)


def _subset(group: Tensor, size: int, generator: torch.Generator | None) -> Tensor:
    """Neighbours in the batch: the loader shuffles, but keeps families (swapped twins) side by side, and they are the hardest negatives."""
    batch = len(group)
    every = torch.arange(batch, device=group.device)
    if size <= 0 or size >= batch:
        return every
    start = torch.randint(batch, (1,), generator=generator, device=group.device)
    return (every[:size] + start) % batch
