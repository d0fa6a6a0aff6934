"""The global loss: symmetric InfoNCE over the batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ccaco_cli.core import runtime
from ccaco_cli.core.errors import LossInputError
from ccaco_cli.core.losses import blocked
from ccaco_cli.core.losses.precision import in_float32


@in_float32
def info_nce(z_a: Tensor, z_b: Tensor, group: Tensor, logit_scale: Tensor) -> Tensor:
    """Symmetric InfoNCE over in-batch negatives (CLIP, arXiv:2103.00020, fig. 3).

    Several positives per query are averaged as in SupCon (arXiv:2004.11362, eq. 2). A batch with a large score matrix
    is computed in tiles (``blocked``): equal loss, a fraction of the memory.

    Args:
        z_a, z_b: [B, E] float, unit norm; row i of both is pair i.
        group: [B] int64; rows of one group are positives of each other, never negatives.
        logit_scale: scalar that multiplies cosines (1 / temperature), not its log.
    Returns:
        Scalar in nats, mean over the 2B queries.
    Raises:
        LossInputError: shapes differ, or a row is not finite (on a GPU the loss is NaN then).
    """
    check_batch(z_a, z_b, group)
    if len(z_a) ** 2 > blocked.MAX_MATRIX_SCORES:
        return blocked.info_nce(z_a, z_b, group, logit_scale)
    return matrix_nce(scores(z_a, z_b, logit_scale), group, group)


@in_float32
def sharded_info_nce(z_a: Tensor, z_b: Tensor, group: Tensor, logit_scale: Tensor, query_rows: slice) -> Tensor:
    """``info_nce`` of one process's queries against all candidates (``--local-loss`` of open_clip).

    Args:
        z_a, z_b, group, logit_scale: as for ``info_nce``.
        query_rows: rows of the batch that are queries, in both directions.
    Returns:
        Scalar in nats, mean over the 2b queries; the mean over processes with equally many rows is ``info_nce``.
    Raises:
        LossInputError: a row is not finite (on a GPU the loss is NaN then).
    """
    check_finite(z_a, z_b)
    if len(z_a[query_rows]) * len(z_a) > blocked.MAX_MATRIX_SCORES:
        return blocked.info_nce(z_a, z_b, group, logit_scale, query_rows)
    directions = ((z_a[query_rows], z_b), (z_b[query_rows], z_a))
    positive = group[query_rows, None] == group[None, :]
    return torch.stack(
        [_soft_cross_entropy(scores(queries, candidates, logit_scale), positive) for queries, candidates in directions]
    ).mean()


@in_float32
def scores(z_a: Tensor, z_b: Tensor, logit_scale: Tensor) -> Tensor:
    """Scaled cosines of all pairs: z_a [A, E] and z_b [B, E] -> [A, B] float32."""
    return logit_scale * z_a @ z_b.T


def check_batch(z_a: Tensor, z_b: Tensor, group: Tensor) -> None:
    """Raises LossInputError: shapes other than [B, E], [B, E], [B], or as ``check_finite``."""
    if z_a.shape != z_b.shape or z_a.ndim != 2 or group.shape != z_a.shape[:1]:
        raise LossInputError(
            f"shapes {tuple(z_a.shape)}, {tuple(z_b.shape)}, group {tuple(group.shape)}", expected="[B, E], [B, E], [B]"
        )
    check_finite(z_a, z_b)


def check_finite(z_a: Tensor, z_b: Tensor) -> None:
    """Raises LossInputError if a row is not finite, on a CPU.

    On a GPU the check would let the program wait for the device in every step. There the loss of such rows is NaN.
    """
    if not runtime.must_wait(z_a) and not (torch.isfinite(z_a).all() and torch.isfinite(z_b).all()):
        raise LossInputError(
            "embeddings are not finite", expected="unit vectors", next="lower --lr, or use --precision fp32"
        )


@in_float32
def matrix_nce(logits: Tensor, group_a: Tensor, group_b: Tensor) -> Tensor:
    """Symmetric multi-positive cross-entropy of a score matrix.

    Args:
        logits: [A, B] float, higher = better match.
        group_a, group_b: [A], [B] int64; equal groups are positives; every row and column has at least one.
    Returns:
        Scalar in nats, mean of both directions.
    """
    positive = group_a[:, None] == group_b[None, :]
    return (_soft_cross_entropy(logits, positive) + _soft_cross_entropy(logits.T, positive.T)) / 2


@in_float32
def distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """Symmetric cross-entropy between two score matrices (arXiv:1503.02531, eq. 1-2, at temperature 1).

    Args:
        student, teacher: [A, B] float logits; the teacher gets no gradient.
    Returns:
        Scalar in nats, mean of both directions; its minimum is the teacher's entropy, where both matrices agree.
    """
    directions = ((student, teacher), (student.T, teacher.T))
    return torch.stack([F.cross_entropy(s, t.detach().softmax(1)) for s, t in directions]).mean()


def _soft_cross_entropy(logits: Tensor, positive: Tensor) -> Tensor:
    target = positive.float() / positive.sum(1, keepdim=True)
    return -(target * F.log_softmax(logits, dim=1)).sum(1).mean()
