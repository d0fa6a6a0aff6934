"""Ranks of both directions from one pass over the score matrix, tile by tile: each product is computed once, and
the full matrix is never in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import isqrt
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ccaco_cli.core import runtime
from ccaco_cli.core.evaluation.metrics import RankResult, above_and_tied, positives, ranks_from_counts, similarity_ranks

if TYPE_CHECKING:
    import torch
    from numpy.typing import ArrayLike, NDArray

    from ccaco_cli.core.evaluation.metrics import Array

TILE_SCORES = 2**18
"""Scores of one tile on a CPU: 1 MiB in float32. A GPU has larger ones, as its free memory allows."""
_MAX_TILE_SCORES = 2**26  # of a GPU, which is busy enough with these
_SCORE_BYTES = 32  # memory of one score of a tile on a GPU: in float64 and float32, and what is compared
MAX_POSITIVES = 16
"""Largest number of positives per query for which tiles are used: each is compared with every score that reaches the
lowest of them.
"""
_SORT_SHARE = 16  # sorting is faster when at least one score in 16 has to be compared
_PAIR_VALUES = 2**17  # values of the pairs that are multiplied at once: 1 MiB in float64
_ROUNDING = 2.0**-24  # of float32


def both_ranks(
    z_a: Array, z_b: Array, group_a: ArrayLike, group_b: ArrayLike, tile_scores: int | None = None
) -> tuple[RankResult, RankResult]:
    """``similarity_ranks`` of a to b and of b to a, with the same result, for one product instead of two, and on a CPU
    in float32. Computed on the device of ``z_a``; None = ``tile_size``.

    z_a [A, E], z_b [B, E] float of any width, unit norm; group_a [A], group_b [B]: rows of equal group are each other's
    positives

    A float32 product is wrong by less than (E + 8) 2^-24 of the norms (Higham, Accuracy and Stability of Numerical
    Algorithms, 2002, section 3.1). A score that differs by more from every positive of its query is certainly above or
    below it; the few other scores are computed again in float64, like those of the positives, so that equal vectors
    stay tied.

    Returns:
        (a to b, b to a)
    Raises:
        DataError: as ``ranks``
    """
    import torch

    a, b = (torch.as_tensor(z).detach() for z in (z_a, z_b))
    ids = np.asarray(group_a), np.asarray(group_b)
    places = positives(*ids), positives(*ids[::-1])
    if max(int(n.max()) for _, n in places) > MAX_POSITIVES or a.device.type == "mps":  # Apple's GPUs have no float64
        return similarity_ranks(a, b, *ids), similarity_ranks(b, a, *ids[::-1])
    b = b.to(a.device)
    side_a, side_b = _Side(a, b, ids[0], *places[0]), _Side(b, a, ids[1], *places[1])
    bound = (a.shape[1] + 8) * _ROUNDING * side_a.norm * side_b.norm  # 0 on a GPU
    crowded, side = False, isqrt(tile_scores or tile_size(a.device))
    for rows in _blocks(len(a), side):
        for columns in _blocks(len(b), side):
            tile = _Tile(a[rows], b[columns], 0.0 if crowded else bound)
            side_a.count(tile, rows)
            side_b.count(tile, columns, transposed=True)
            crowded = tile.crowded  # and the next tile probably is, too
    return side_a.result(len(b)), side_b.result(len(a))


def tile_size(device: torch.device) -> int:
    """Scores of one tile: ``TILE_SCORES``, or on a GPU what an eighth of its free memory holds."""
    if device.type != "cuda":
        return TILE_SCORES
    return max(TILE_SCORES, min(_MAX_TILE_SCORES, runtime.free_memory(device) // (8 * _SCORE_BYTES)))


class _Side:
    """One modality as queries [n, E], with the counts over the tiles so far.

    Attributes:
        score, above, tied: [n, P]: of every positive its score, and how many of the other side score above it and equal
            to it; on the device of the vectors
        norm: the largest that is finite; 0 on a GPU, whose products are exact
    """

    def __init__(
        self,
        z: torch.Tensor,
        gallery: torch.Tensor,
        group: NDArray[Any],
        places: NDArray[Any],
        n_positives: NDArray[Any],
    ):
        import torch

        self.group, self.n_positives = group, n_positives
        row, column = np.nonzero(np.arange(places.shape[1]) < n_positives[:, None])
        cells = torch.as_tensor(row, device=z.device), torch.as_tensor(column, device=z.device)
        self.score = torch.full(places.shape, torch.inf, device=z.device)
        self.score[cells] = _products(z, gallery, row, places[row, column])
        self.above, self.tied = (torch.zeros(places.shape, dtype=torch.int64, device=z.device) for _ in range(2))
        self.norm = 0.0
        if runtime.must_wait(z):
            return
        norms = torch.cat(
            [z[block].float().norm(dim=1) for block in _blocks(len(z), max(1, _PAIR_VALUES // z.shape[1]))]
        )
        if norms.isfinite().any():
            self.norm = float(norms[norms.isfinite()].max())

    def count(self, tile: _Tile, block: slice, transposed: bool = False) -> None:
        above, tied = tile.counts(self.score[block], transposed)
        self.above[block] += above
        self.tied[block] += tied

    def result(self, gallery: int) -> RankResult:
        score, above, tied = self.score.cpu(), self.above.cpu(), self.tied.cpu()
        return ranks_from_counts(score, self.n_positives, above, tied, self.group, gallery)


class _Tile:
    """Scores of rows [q, E] by columns [g, E], NaN read as +inf.

    Attributes:
        bound: largest error of a score; 0 = products in float64, rounded to float32
        crowded: True when so many scores were near a positive that they were sorted
    """

    def __init__(self, rows: torch.Tensor, columns: torch.Tensor, bound: float):
        self.rows, self.columns, self.bound, self.crowded = rows, columns, bound, False
        self.scores = _valid(rows.float() @ columns.float().T) if bound else self._exact()

    def _exact(self) -> torch.Tensor:
        return _valid((self.rows.double() @ self.columns.double().T).float())

    def counts(self, value: torch.Tensor, transposed: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Of each row (of each column, if ``transposed``), how many scores are above and equal to each of its values
        [q, P].
        """
        import torch

        scores = self.scores.T if transposed else self.scores
        if runtime.must_wait(scores):
            above, tied = (
                torch.stack([sign(scores, v[:, None]).sum(1) for v in value.unbind(1)], 1)
                for sign in (torch.gt, torch.eq)
            )
            return above, tied
        table, values = scores.numpy(), value.numpy()
        low, high = values - self.bound, values + self.bound
        reach = table >= low.min(1, keepdims=True)  # few for a trained model
        if np.count_nonzero(reach) * _SORT_SHARE > reach.size:
            if self.bound:
                self.scores, self.bound = self._exact(), 0.0
            self.crowded = True
            return above_and_tied(self.scores.T if transposed else self.scores, scores.shape[1], value)
        order: Literal["C", "F"] = "C" if reach.flags.c_contiguous else "F"
        rows, columns = np.unravel_index(np.flatnonzero(reach.ravel(order)), reach.shape, order)
        scores_in_reach = table[rows, columns]
        if self.bound:
            near = ((scores_in_reach[:, None] >= low[rows]) & (scores_in_reach[:, None] <= high[rows])).any(1)
            pairs = (self.columns, self.rows) if transposed else (self.rows, self.columns)
            scores_in_reach[near] = _products(*pairs, rows[near], columns[near]).numpy()
        above, tied = (
            torch.from_numpy(
                np.stack([np.bincount(rows[sign(scores_in_reach, v[rows])], minlength=len(table)) for v in values.T], 1)
            )
            for sign in (np.greater, np.equal)
        )
        return above, tied


def _blocks(count: int, step: int) -> Iterator[slice]:
    step = max(1, step)
    return (slice(first, min(first + step, count)) for first in range(0, count, step))


def _products(a: torch.Tensor, b: torch.Tensor, rows: Any, columns: Any) -> torch.Tensor:
    """[n] float32: of pairs of rows of a [A, E] and b [B, E], in float64 and rounded once. The product of a pair does
    not depend on the other pairs.
    """
    import torch

    rows, columns = (torch.as_tensor(index, device=a.device) for index in (rows, columns))
    scores = torch.empty(
        len(rows), device=a.device
    )  # filled in place: small results kept one by one pin the heap they lie in
    for block in _blocks(len(rows), _PAIR_VALUES // max(1, a.shape[1])):
        scores[block] = (a[rows[block]].double() * b[columns[block]].double()).sum(1)
    return _valid(scores)


def _valid(scores: torch.Tensor) -> torch.Tensor:
    import torch

    return scores.nan_to_num_(torch.inf, torch.inf, -torch.inf)
