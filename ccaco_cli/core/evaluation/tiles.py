"""Ranks of both directions from one pass over the score matrix, tile by tile: each product is taken once, and the matrix never exists."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ccaco_cli.core.evaluation.metrics import RankResult, above_and_tied, finish, positives, similarity_ranks

if TYPE_CHECKING:
    import torch
    from numpy.typing import ArrayLike, NDArray

    from ccaco_cli.core.evaluation.metrics import Array

TILE_SCORES = 2**18
"""Scores of one tile: 2 MiB in float64, and half of that in float32. Twice as large ones are a tenth quicker."""
FEW = 16
"""Most positives a query for which tiles are used: each is compared with every score that reaches the lowest of them."""
_FEW_REACH = 64  # when one score in so many, or more, has to be looked at, sorting is quicker


def both_ranks(
    z_a: Array, z_b: Array, group_a: ArrayLike, group_b: ArrayLike, tile_scores: int = TILE_SCORES
) -> tuple[RankResult, RankResult]:
    """``similarity_ranks`` of a to b and of b to a, with the same result, for one product instead of two.

    z_a [A, E], z_b [B, E] float of any width, unit norm; group_a [A], group_b [B]: rows of equal group are each other's positives
    Returns  (a to b, b to a)
    Raises   DataError: as ``ranks``

    Rows are taken in the order of their groups, and tiles end where groups end, so all positives lie in the tiles of the diagonal. These
    come first: what a score is compared with comes out of the same kind of product as itself, and equal vectors stay tied.
    """
    import torch

    a, b = (torch.as_tensor(z).detach() for z in (z_a, z_b))
    ids = np.asarray(group_a), np.asarray(group_b)
    places = positives(*ids), positives(*ids[::-1])
    if max(int(n.max()) for _, n in places) > FEW or a.device.type == "mps":  # Apple's GPUs have no float64
        return similarity_ranks(a, b, *ids), similarity_ranks(b, a, *ids[::-1])
    one, other = (_Side(z, group, *found) for z, group, found in zip((a, b.to(a.device)), ids, places, strict=True))
    cuts = _cuts(one, other, tile_scores)
    for rows, columns in cuts:
        tile = (one.take(rows) @ other.take(columns).T).float()
        _remember(tile, one, rows, other, columns)
        _remember(tile.T, other, columns, one, rows)
        _compare(tile, one, rows, other, columns)
    for number, (rows, _) in enumerate(cuts):
        taken = one.take(rows)
        for columns in (columns for place, (_, columns) in enumerate(cuts) if place != number):
            _compare((taken @ other.take(columns).T).float(), one, rows, other, columns)
    return one.result(len(other.group)), other.result(len(one.group))


class _Side:
    """One modality in the order of its groups: what is known of its rows as queries so far.

    score, above, tied  [n, P]: of every positive its score, and how many of the other side score above it and equal to it
    """

    def __init__(self, z: torch.Tensor, group: NDArray[Any], places: NDArray[Any], n_positives: NDArray[Any]):
        import torch

        self.z, self.group, self.places, self.n_positives = z, group, places, n_positives
        self.order = np.argsort(group, kind="stable")
        self.ordered = bool((self.order[:-1] < self.order[1:]).all())
        self.rank_of = np.empty(len(group), np.int64)  # where each row stands in that order
        self.rank_of[self.order] = np.arange(len(group))
        self.score = torch.full(places.shape, torch.inf)
        self.above, self.tied = (torch.zeros(places.shape, dtype=torch.int64) for _ in range(2))

    def take(self, block: slice) -> torch.Tensor:
        """Rows of a block in float64: float32 products give equal vectors unequal scores in different corners of the matrix."""
        import torch

        taken = self.z[block] if self.ordered else self.z[torch.from_numpy(self.order[block]).to(self.z.device)]
        return taken.double()

    def result(self, gallery: int) -> RankResult:
        return finish(self.score, self.n_positives, self.above, self.tied, self.group, gallery)


def _cuts(one: _Side, other: _Side, tile_scores: int) -> list[tuple[slice, slice]]:
    """Runs of groups: (rows of one side, rows of the other), every product of sizes about ``tile_scores``."""
    groups = np.unique(one.group)
    count = max(1, round((len(one.group) * len(other.group) / tile_scores) ** 0.5))
    firsts = groups[np.unique(np.linspace(0, len(groups), count + 1).astype(int)[:-1])]
    edges = [np.append(np.searchsorted(side.group[side.order], firsts), len(side.group)) for side in (one, other)]
    return [(slice(*rows), slice(*columns)) for rows, columns in zip(*map(pairwise, edges), strict=True)]


def _remember(tile: torch.Tensor, side: _Side, block: slice, other: _Side, columns: slice) -> None:
    """Scores of the positives of a block of queries, out of its diagonal tile [q, g]."""
    import torch

    rows = side.order[block]
    real = np.arange(side.places.shape[1]) < side.n_positives[rows, None]
    where = np.where(real, other.rank_of[side.places[rows]] - columns.start, 0)
    found = tile.cpu().gather(1, torch.from_numpy(where))
    side.score[rows] = torch.where(torch.from_numpy(real), found, torch.inf)


def _compare(tile: torch.Tensor, one: _Side, rows: slice, other: _Side, columns: slice) -> None:
    """Adds what a tile tells of the queries of both its sides. A score that is NaN stands above everything."""
    import torch

    tile = tile.nan_to_num_(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
    for scores, side, block in ((tile, one, rows), (tile.T, other, columns)):
        chosen = side.order[block]
        above, tied = _counts(scores, side.score[chosen].to(tile.device))
        side.above[chosen] += above.cpu()
        side.tied[chosen] += tied.cpu()


def _counts(scores: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each row of scores [q, g], how many are above and equal to each of its values [q, P].

    On a CPU a model that has learned leaves few scores to look at: those that reach the lowest value of their row.
    """
    import torch

    if scores.device.type != "cpu":
        above, tied = (torch.stack([sign(scores, v[:, None]).sum(1) for v in value.unbind(1)], 1) for sign in (torch.gt, torch.eq))
        return above, tied
    table, values = scores.numpy(), value.numpy()
    reach = table >= np.fmin.reduce(values, axis=1, keepdims=True)  # which passes over NaN
    if np.count_nonzero(reach) * _FEW_REACH > reach.size:
        return above_and_tied(scores, scores.shape[1], value)
    order: Literal["C", "F"] = "C" if reach.flags.c_contiguous else "F"
    rows, columns = np.unravel_index(np.flatnonzero(reach.ravel(order)), reach.shape, order)
    found = table[rows, columns]
    above, tied = (
        torch.from_numpy(np.stack([np.bincount(rows[sign(found, v[rows])], minlength=len(table)) for v in values.T], 1))
        for sign in (np.greater, np.equal)
    )
    return above, tied
