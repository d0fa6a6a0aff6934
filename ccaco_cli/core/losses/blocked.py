"""InfoNCE without the B x B matrix: scores are made tile by tile, and made again in the backward pass."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LARGE = 2**22
"""Most scores that are made as one matrix (16 MiB in float32); of more, the losses are computed here."""
TILE = 1024
"""Rows and columns of a tile of scores on a CPU: 4 MiB in float32, which its cache holds between the product and what is done with it."""
TILE_ON_DEVICE = 4096
"""The same elsewhere: 64 MiB, enough work for a launch to pay."""
_HIGHEST = 75.0
"""Largest exponent kept: exp(75) summed over 60,000 rows and more still fits float32."""


def info_nce(z_a: Tensor, z_b: Tensor, group: Tensor, logit_scale: Tensor, rows: slice | None = None) -> Tensor:
    """``contrastive.info_nce`` with one tile of the matrix at a time, exact to float rounding; same arguments, taken as checked.

    rows  only these things are queries, in both directions (a process's share of a batch that is spread over several); None = all

    The loss of a query is logsumexp over all candidates minus the mean over its positives. That mean needs no matrix: it is the query times
    the mean vector of its group on the other side.
    """
    wide = torch.promote_types(z_a.dtype, torch.float32)
    z_a, z_b, logit_scale = z_a.to(wide), z_b.to(wide), logit_scale.to(wide)
    found, place, size = torch.unique(group, return_inverse=True, return_counts=True)
    means = [(z.new_zeros(len(found), z.shape[1]).index_add(0, place, z) / size[:, None])[place] for z in (z_a, z_b)]
    if rows is None:
        positive = (z_a * means[1]).sum() / len(group)  # and z_b * means[0] has the same sum
        log_sums: Tensor = _LogSums.apply(z_a, z_b, logit_scale, True)  # type: ignore[no-untyped-call]
        whole: Tensor = log_sums / 2 - logit_scale * positive
        return whole
    ways = ((z_a[rows], z_b, means[1][rows]), (z_b[rows], z_a, means[0][rows]))
    each = [
        _LogSums.apply(query, others, logit_scale, False) - logit_scale * (query * mean).sum(1).mean()  # type: ignore[no-untyped-call]
        for query, others, mean in ways
    ]
    share: Tensor = torch.stack(each).mean()
    return share


class _LogSums(torch.autograd.Function):
    """mean_i logsumexp_j(scale a_i . b_j), plus mean_j logsumexp_i of the same when ``both``; for unit vectors.

    The scale bounds every logit, so one shift for all stands for the running maxima, and one exp serves rows and columns: one product of
    2 B^2 E forward and three backward, where a kept matrix multiplied once in each direction takes six.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, scale: Tensor, both: bool) -> Tensor:
        with torch.autocast(a.device.type, enabled=False):
            shift = max(0.0, float(scale) - _HIGHEST)
            sums = _sums(a, b, scale, shift, a.dtype, both)
            if (
                min(part.min() for part in sums) < torch.finfo(a.dtype).tiny
            ):  # a query all of whose candidates are opposed to it
                sums = _sums(a, b, scale, shift, torch.float64, both)
            ctx.save_for_backward(a, b, scale, *sums)
            ctx.shift = shift
            return torch.stack([part.log().mean() + shift for part in sums]).sum().to(a.dtype)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        a, b, scale, rows, *columns = ctx.saved_tensors
        grad_a, grad_b = torch.zeros_like(a), torch.zeros_like(b)
        with torch.autocast(a.device.type, enabled=False):
            for i, j in _tiles(a, b):
                weight = _exp(a[i], b[j], scale, ctx.shift, rows.dtype)
                share = rows[i].reciprocal()[:, None]  # makes a softmax over the row; the column's is added to it
                weight = weight.mul_(share + columns[0][j].reciprocal() if columns else share).to(a.dtype)
                grad_a[i].addmm_(weight, b[j])
                grad_b[j].addmm_(weight.T, a[i])
        grad = grad / len(a)
        # sum_ij w_ij a_i . b_j is the inner product of a with the gradient that is there already
        return grad * scale * grad_a, grad * scale * grad_b, grad * (a * grad_a).sum(), None


def _sums(a: Tensor, b: Tensor, scale: Tensor, shift: float, dtype: torch.dtype, both: bool) -> tuple[Tensor, ...]:
    """Sums of exp(logit - shift) over the rows [A] and, when ``both``, over the columns [B] of the score matrix."""
    rows, columns = a.new_zeros(len(a), dtype=dtype), b.new_zeros(len(b), dtype=dtype)
    for i, j in _tiles(a, b):
        weight = _exp(a[i], b[j], scale, shift, dtype)
        rows[i] += weight.sum(1)
        if both:
            columns[j] += weight.sum(0)
    return (rows, columns) if both else (rows,)


def _exp(a: Tensor, b: Tensor, scale: Tensor, shift: float, dtype: torch.dtype) -> Tensor:
    logits = torch.mm(a * scale, b.T).to(dtype)
    return (logits.sub_(shift) if shift else logits).exp_()


def _tiles(a: Tensor, b: Tensor) -> Iterator[tuple[slice, slice]]:
    """Rows of a and of b that cover the score matrix."""
    side = TILE if a.device.type == "cpu" else TILE_ON_DEVICE
    for first, start in itertools.product(range(0, len(a), side), range(0, len(b), side)):
        yield slice(first, first + side), slice(start, start + side)
