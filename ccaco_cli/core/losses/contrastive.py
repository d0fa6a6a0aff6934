"""The global half: symmetric InfoNCE over the batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ccaco_cli.core.errors import LossInputError
from ccaco_cli.core.losses import blocked


def info_nce(z_a: Tensor, z_b: Tensor, group: Tensor, logit_scale: Tensor) -> Tensor:
    """Symmetric InfoNCE over in-batch negatives (CLIP, arXiv:2103.00020, fig. 3), several positives as in SupCon (arXiv:2004.11362, eq. 2).

    z_a, z_b     [B, E] float, unit norm; row i of both is pair i
    group        [B] int64; rows of one group are positives of each other, never negatives
    logit_scale  scalar, multiplies (1 / temperature), not its log
    Returns      scalar, nats, mean over the 2B queries
    Raises       LossInputError: shapes differ, or a row is not finite

    A batch with a large score matrix is computed tile by tile (``blocked``): equal loss, a fraction of the memory.
    """
    if z_a.shape != z_b.shape or z_a.ndim != 2 or group.shape != z_a.shape[:1]:
        raise LossInputError(
            f"shapes {tuple(z_a.shape)}, {tuple(z_b.shape)}, group {tuple(group.shape)}", expected="[B, E], [B, E], [B]"
        )
    finite(z_a, z_b)
    if len(z_a) ** 2 > blocked.LARGE:
        return blocked.info_nce(z_a, z_b, group, logit_scale)
    return matrix_nce(logit_scale * z_a @ z_b.T, group, group)


def own_rows_nce(z_a: Tensor, z_b: Tensor, group: Tensor, logit_scale: Tensor, rows: slice) -> Tensor:
    """``info_nce`` of some queries only, against every candidate: a process's share of it (open_clip's ``--local-loss``).

    rows     of the batch whose things are queries, in both directions
    Returns  scalar, nats, mean over the 2b queries; the mean over equal shares is ``info_nce``
    """
    finite(z_a, z_b)
    if len(z_a[rows]) * len(z_a) > blocked.LARGE:
        return blocked.info_nce(z_a, z_b, group, logit_scale, rows)
    ways = ((z_a[rows], z_b), (z_b[rows], z_a))
    positive = group[rows, None] == group[None, :]
    return torch.stack([_soft_cross_entropy(logit_scale * query @ others.T, positive) for query, others in ways]).mean()


def finite(z_a: Tensor, z_b: Tensor) -> None:
    """Raises LossInputError: a row is not finite."""
    if not (torch.isfinite(z_a).all() and torch.isfinite(z_b).all()):
        raise LossInputError(
            "embeddings are not finite", expected="unit vectors", next="lower --lr, or use --precision fp32"
        )


def matrix_nce(logits: Tensor, group_a: Tensor, group_b: Tensor) -> Tensor:
    """Symmetric multi-positive cross-entropy of a score matrix.

    logits            [A, B] float, higher = better match
    group_a, group_b  [A], [B] int64; equal groups are positives; every row and column has at least one
    Returns           scalar, nats, mean of both directions
    """
    positive = group_a[:, None] == group_b[None, :]
    return (_soft_cross_entropy(logits, positive) + _soft_cross_entropy(logits.T, positive.T)) / 2


def distil(student: Tensor, teacher: Tensor) -> Tensor:
    """Symmetric cross-entropy of one score matrix with the distributions of another (arXiv:1503.02531, eq. 1-2, at temperature 1).

    student, teacher  [A, B] float logits; the teacher gets no gradient
    Returns           scalar, nats, mean of both directions; least, the teacher's entropy, where the two agree
    """
    ways = ((student, teacher), (student.T, teacher.T))
    return torch.stack([F.cross_entropy(s.float(), t.detach().float().softmax(1)) for s, t in ways]).mean()


def _soft_cross_entropy(logits: Tensor, positive: Tensor) -> Tensor:
    target = positive.float() / positive.sum(1, keepdim=True)
    return -(target * F.log_softmax(logits.float(), dim=1)).sum(1).mean()
