"""One update: the only file that joins model and losses."""

from __future__ import annotations

import torch
from torch import Tensor

from ccaco_cli.core.config import LossConfig
from ccaco_cli.core.losses.balance import Balance
from ccaco_cli.core.losses.total import Alignment, sample_pairs, total_loss
from ccaco_cli.core.model.aligner import Aligner
from ccaco_cli.core.types import PairBatch


def losses(
    aligner: Aligner,
    batch: PairBatch,
    config: LossConfig,
    beta: float,
    generator: torch.Generator | None = None,
    balance: Balance | None = None,
) -> dict[str, Tensor]:
    """Every loss part of one batch (DESIGN section 3).

    beta       the weight of the cross loss at this step; at 0 the cross branch does not run
    generator  draws sub-batch and hard negatives
    balance    multiplies the weights of the parts; None = as the config gives them
    Returns    {"contrastive", "cross", "total"}: scalars
    """
    first, second = aligner.modalities
    a, b = aligner.encode(first, batch.a), aligner.encode(second, batch.b)
    alignment = Alignment(a, b, batch.group, aligner.logit_scale())
    if beta > 0:
        pairs = sample_pairs(a, b, batch.group, config, generator)
        crossed = aligner.cross(aligner.local(first, a[pairs.rows]), aligner.local(second, b[pairs.rows]), pairs.index)
        alignment = Alignment(a, b, batch.group, aligner.logit_scale(), crossed, pairs)
    return total_loss(alignment, config, beta, balance)


def shared(aligner: Aligner) -> list[Tensor]:
    """The last parameters that the loss parts share: the projections of both sides (``GradNorm`` compares gradients there)."""
    return [p for side in aligner.sides.values() for p in side.project.parameters()]  # type: ignore[union-attr,operator]
