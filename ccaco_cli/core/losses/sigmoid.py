"""The pairwise sigmoid loss: every pair of a batch is classified as true or false by itself."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ccaco_cli.core.losses.blocked import MAX_MATRIX_SCORES
from ccaco_cli.core.losses.contrastive import check_batch
from ccaco_cli.core.losses.precision import in_float32


@in_float32
def sigmoid_loss(
    z_a: Tensor,
    z_b: Tensor,
    group: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    query_rows: slice | None = None,
) -> Tensor:
    """Sigmoid loss of all pairs of the batch (SigLIP, arXiv:2303.15343, algorithm 1).

    A large score matrix is computed some rows at a time, and again in the backward pass: equal loss, a fraction of the
    memory.

    Args:
        z_a, z_b: [B, E] float, unit norm; row i of both is pair i.
        group: [B] int64; all pairs of one group are true, the others are false.
        logit_scale: scalar that multiplies cosines.
        logit_bias: scalar that is added to the scaled cosines.
        query_rows: rows of ``z_a`` of this process (``--local-loss``); None = all. The mean over processes with equally
            many rows is the loss of all rows.
    Returns:
        Scalar in nats: the sum over all pairs, divided by the number of rows.
    Raises:
        LossInputError: shapes differ, or a row is not finite (on a GPU the loss is NaN then).
    """
    check_batch(z_a, z_b, group)
    rows, row_group = (z_a, group) if query_rows is None else (z_a[query_rows], group[query_rows])
    if len(rows) * len(z_b) <= MAX_MATRIX_SCORES:
        return _sum_of_rows(rows, row_group, z_b, group, logit_scale, logit_bias) / len(rows)
    size = max(1, MAX_MATRIX_SCORES // len(z_b))
    sums = [
        checkpoint(_sum_of_rows, part, part_group, z_b, group, logit_scale, logit_bias, use_reentrant=False)
        for part, part_group in zip(rows.split(size), row_group.split(size), strict=True)  # type: ignore[no-untyped-call]
    ]
    return torch.stack(sums).sum() / len(rows)


def _sum_of_rows(rows: Tensor, row_group: Tensor, z_b: Tensor, group: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    logits = scale * rows @ z_b.T + bias
    is_true = row_group[:, None] == group[None, :]
    return -F.logsigmoid(torch.where(is_true, logits, -logits)).sum()
