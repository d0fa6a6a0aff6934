"""InfoNCE without the B x B matrix: scores are computed in tiles, and computed again in the backward pass."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ccaco_cli.core import runtime
from ccaco_cli.core.losses.precision import in_float32

MAX_MATRIX_SCORES = 2**22
"""Largest score matrix that ``contrastive`` keeps in memory (16 MiB in float32); larger ones are computed here."""
TILE = 1024
"""Rows and columns of a tile of scores on a CPU: 4 MiB in float32, which stay in its cache after the product."""
TILE_ON_GPU = 4096
"""Rows and columns of a tile on a GPU: 64 MiB, enough work for one kernel launch; fewer where memory is scarce."""
_SCORE_BYTES = 16
"""Memory of one score of a tile in float32, with its copies."""
_MAX_EXPONENT = 75.0
"""exp(75) summed over more than 60,000 rows still fits float32."""


@in_float32
def info_nce(z_a: Tensor, z_b: Tensor, group: Tensor, logit_scale: Tensor, query_rows: slice | None = None) -> Tensor:
    """``contrastive.info_nce`` with one tile of the matrix at a time, exact to float rounding.

    The loss of a query is logsumexp over all candidates minus the mean score of its positives. That mean needs no
    matrix: it is the query times the mean vector of its group on the other side.

    Args:
        z_a, z_b, group, logit_scale: as for ``contrastive.info_nce``, which checks them.
        query_rows: rows that are queries, in both directions (those of one process); None = all.
    Returns:
        Scalar in nats.
    """
    position, size = _group_positions(group)
    mean_a, mean_b = ((torch.zeros_like(z).index_add(0, position, z) / size[:, None])[position] for z in (z_a, z_b))
    if query_rows is None:
        positive = (z_a * mean_b).sum() / len(group)  # z_b * mean_a has the same sum
        log_sums: Tensor = _LogSums.apply(z_a, z_b, logit_scale, True)  # type: ignore[no-untyped-call]
        loss: Tensor = log_sums / 2 - logit_scale * positive
        return loss
    directions = ((z_a[query_rows], z_b, mean_b[query_rows]), (z_b[query_rows], z_a, mean_a[query_rows]))
    losses = [
        _LogSums.apply(queries, candidates, logit_scale, False) - logit_scale * (queries * mean).sum(1).mean()  # type: ignore[no-untyped-call]
        for queries, candidates, mean in directions
    ]
    return torch.stack(losses).mean()


class _LogSums(torch.autograd.Function):
    """mean_i logsumexp_j(scale a_i . b_j), plus mean_j logsumexp_i of the same if ``both``; for unit vectors.

    The cost is one product of 2 B^2 E operations forward and three backward; a stored matrix that is multiplied in both
    directions needs six. On a CPU one constant shift, which bounds every logit, replaces the running maxima, and one
    exp serves rows and columns. Where all candidates of a query point away from it, its sum would be zero; to know
    that, the program would wait for a GPU, which therefore computes every sum with its own maximum.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, scale: Tensor, both: bool) -> Tensor:
        with torch.autocast(a.device.type, enabled=False):
            sums = None if runtime.must_wait(a) else _shifted_log_sums(a, b, scale, both)
            ctx.constant_shift = sums is not None
            sums = sums or _log_sums(a, b, scale, both)
            ctx.save_for_backward(a, b, scale, *sums)
            return torch.stack([part.mean() for part in sums]).sum()

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        a, b, scale, rows, *columns = ctx.saved_tensors
        softmax = _shifted_softmax if ctx.constant_shift else _softmax
        grad_a, grad_b = torch.zeros_like(a), torch.zeros_like(b)
        with torch.autocast(a.device.type, enabled=False):
            for i, j in _tiles(a, b):
                weight = softmax(_logits(a[i], b[j], scale), scale, rows[i], columns[0][j] if columns else None)
                grad_a[i].addmm_(weight, b[j])
                grad_b[j].addmm_(weight.T, a[i])
        grad = grad / len(a)
        # the gradient of the scale, sum_ij w_ij a_i . b_j, is the inner product of a with grad_a
        return grad * scale * grad_a, grad * scale * grad_b, grad * (a * grad_a).sum(), None


def _logits(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    return torch.mm(a * scale, b.T)


def _log_sums(a: Tensor, b: Tensor, scale: Tensor, both: bool) -> tuple[Tensor, ...]:
    """logsumexp of every row [A] and, if ``both``, of every column [B] of the logits; of any scale, without a wait."""
    rows, columns = (x.new_full((len(x),), -math.inf) for x in (a, b))
    for i, j in _tiles(a, b):
        logits = _logits(a[i], b[j], scale)
        rows[i] = torch.logaddexp(rows[i], logits.logsumexp(1))
        if both:
            columns[j] = torch.logaddexp(columns[j], logits.logsumexp(0))
    return (rows, columns) if both else (rows,)


def _softmax(logits: Tensor, scale: Tensor, rows: Tensor, columns: Tensor | None) -> Tensor:
    """The softmax over the rows [A, B], plus the one over the columns; ``rows`` and ``columns`` are their logsumexp."""
    weight = (logits - rows[:, None]).exp_()
    return weight if columns is None else weight.add_(logits.sub_(columns).exp_())


def _shift(scale: Tensor) -> Tensor:
    return (scale - _MAX_EXPONENT).clamp_min(0.0)


def _shifted_exp(logits: Tensor, shift: Tensor) -> Tensor:
    return (logits.sub_(shift) if shift else logits).exp_()


def _shifted_log_sums(a: Tensor, b: Tensor, scale: Tensor, both: bool) -> tuple[Tensor, ...] | None:
    """``_log_sums`` with one exp for both directions; None where a sum is too small for float32."""
    shift = _shift(scale)
    rows, columns = (x.new_zeros(len(x)) for x in (a, b))
    for i, j in _tiles(a, b):
        weight = _shifted_exp(_logits(a[i], b[j], scale), shift)
        rows[i] += weight.sum(1)
        if both:
            columns[j] += weight.sum(0)
    sums = (rows, columns) if both else (rows,)
    in_range = all(part.min() >= torch.finfo(a.dtype).tiny for part in sums)
    return tuple(part.log() + shift for part in sums) if in_range else None


def _shifted_softmax(logits: Tensor, scale: Tensor, rows: Tensor, columns: Tensor | None) -> Tensor:
    """``_softmax`` with one exp for both directions; no sum is too small for float32."""
    shift = _shift(scale)
    norm = (shift - rows).exp()[:, None]
    return _shifted_exp(logits, shift).mul_(norm if columns is None else norm + (shift - columns).exp())


def _group_positions(group: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers the groups in ascending order.

    Unlike ``torch.unique`` it does not wait for a GPU, because the shape of its result does not depend on the values.

    Args:
        group: [B] int64.
    Returns:
        [B] int64, the number of the group of each row; and [B] int64, the sizes of the groups (1 behind the last one).
    """
    ordered, order = group.sort(stable=True)
    begins = torch.ones_like(ordered, dtype=torch.bool)
    begins[1:] = ordered[1:] != ordered[:-1]
    position = torch.empty_like(group).scatter_(0, order, begins.cumsum(0) - 1)
    size = torch.zeros_like(group).scatter_add_(0, position, torch.ones_like(group))
    return position, size.clamp_min(1)


def tile_side(device: torch.device) -> int:
    """Rows and columns of a tile: on a GPU as many as an eighth of its free memory holds, at most ``TILE_ON_GPU``."""
    if device.type != "cuda":
        return TILE
    return max(TILE // 4, min(TILE_ON_GPU, math.isqrt(runtime.free_memory(device) // (8 * _SCORE_BYTES))))


def _tiles(a: Tensor, b: Tensor) -> Iterator[tuple[slice, slice]]:
    """Row slices of a and b that cover the score matrix."""
    side = tile_side(a.device)
    for first, start in itertools.product(range(0, len(a), side), range(0, len(b), side)):
        yield slice(first, first + side), slice(start, start + side)
