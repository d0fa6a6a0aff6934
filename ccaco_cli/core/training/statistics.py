"""AdaBN: the running statistics of a trained model, estimated again on samples of the target domain (arXiv:1603.04779)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ccaco_cli.core.errors import ConfigError
from ccaco_cli.core.model.aligner import Aligner, Center
from ccaco_cli.core.types import move


def holders(aligner: Aligner, modality: str) -> list[nn.Module]:
    """The parts of one side that keep running statistics: batch norms of a tower that learns, and the centring of tokens."""
    side = aligner.sides[modality]
    kinds = (Center,) if side.config.lock else (Center, nn.modules.batchnorm._BatchNorm)  # type: ignore[union-attr]
    return [m for m in side.modules() if isinstance(m, kinds)]


def refuse_without(aligner: Aligner, modality: str) -> None:
    """Raises ConfigError: this side keeps no statistics, so AdaBN would change nothing."""
    if not holders(aligner, modality):
        spec = aligner.config.tower(modality).spec
        raise ConfigError(
            "nothing to re-estimate: this model keeps no running statistics",
            where=f"domain.stats = target, {modality} tower {spec}",
            expected="an unlocked tower with batch norm, or centring",
        )


@torch.no_grad()
def reestimate(aligner: Aligner, modality: str, batches: Iterable[Any]) -> None:
    """Replaces the running statistics of one side by those of the batches; no weight changes, nothing is dropped out.

    batches  inputs of the modality's tower; for batch norm each counts alike, centring keeps its momentum
    Raises   as ``refuse_without``
    """
    refuse_without(aligner, modality)
    device = next(aligner.parameters()).device
    aligner.eval()
    found = holders(aligner, modality)
    momenta = [getattr(m, "momentum", None) for m in found]
    for holder in found:
        holder.train()
        if isinstance(holder, Center):
            holder.seen.fill_(False)
        else:
            holder.reset_running_stats()  # type: ignore[operator]
            holder.momentum = None  # type: ignore[assignment]  # the mean of all batches, not a moving one
    for inputs in batches:
        aligner.encode(modality, move(inputs, device))
    for holder, momentum in zip(found, momenta, strict=True):
        if not isinstance(holder, Center):
            holder.momentum = momentum  # type: ignore[assignment]
    aligner.eval()
