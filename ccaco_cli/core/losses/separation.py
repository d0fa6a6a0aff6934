"""Keeps the vectors of samples that differ in meaning apart within each modality."""

from __future__ import annotations

import torch
from torch import Tensor

from ccaco_cli.core.losses.precision import in_float32

MARGIN = 0.8
"""Cosine up to which two samples of one modality may be close."""
QUERIES_AT_ONCE = 1024
"""Rows whose nearest row is searched at a time: the matrix of all pairs of a large batch would not fit."""


@in_float32
def separation(z: Tensor, group: Tensor) -> Tensor:
    """Hinge on the nearest sample of another group.

    The contrastive loss alone lets two captions with exchanged words share one vector: neither side has a gradient
    that tells them apart as long as their images look alike, too.

    Args:
        z: [B, E] float, unit norm, of one modality.
        group: [B] int64; rows of one group mean the same and may be equal.
    Returns:
        Scalar: mean over rows of max(0, cosine to the nearest row of another group - ``MARGIN``); 0 where all rows
        are of one group.
    """
    nearest = torch.cat([_nearest(part, groups, z, group) for part, groups in _parts(z.detach(), group)])
    other = group[nearest] != group
    return ((z * z[nearest]).sum(1) - MARGIN).clamp_min(0.0).mul(other).mean()


def _parts(z: Tensor, group: Tensor) -> list[tuple[Tensor, Tensor]]:
    return list(zip(z.split(QUERIES_AT_ONCE), group.split(QUERIES_AT_ONCE), strict=True))  # type: ignore[no-untyped-call]


def _nearest(queries: Tensor, query_group: Tensor, z: Tensor, group: Tensor) -> Tensor:
    """[q] int64, the row with the largest cosine among those of other groups."""
    cosines = queries @ z.detach().T
    return cosines.masked_fill(query_group[:, None] == group[None, :], -2.0).argmax(1)
