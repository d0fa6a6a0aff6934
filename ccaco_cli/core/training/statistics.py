"""AdaBN: estimates the running statistics of a trained model again on the target domain (arXiv:1603.04779)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ccaco_cli.core.errors import ConfigError
from ccaco_cli.core.model.aligner import Aligner
from ccaco_cli.core.model.centering import Center
from ccaco_cli.core.types import move


def modules_with_statistics(aligner: Aligner, modality: str) -> list[nn.Module]:
    """Modules of one side with running statistics: batch norms of an unlocked tower, and the centring of tokens."""
    side = aligner.sides[modality]
    kinds = (Center,) if side.config.lock else (Center, nn.modules.batchnorm._BatchNorm)  # type: ignore[union-attr]
    return [m for m in side.modules() if isinstance(m, kinds)]


def require_statistics(aligner: Aligner, modality: str) -> None:
    """Raises ConfigError: this side has no running statistics, so AdaBN would change nothing."""
    if not modules_with_statistics(aligner, modality):
        spec = aligner.config.tower(modality).spec
        raise ConfigError(
            "nothing to re-estimate: this model keeps no running statistics",
            where=f"domain.stats = target, {modality} tower {spec}",
            expected="an unlocked tower with batch norm, or centring",
        )


@torch.no_grad()
def reestimate(aligner: Aligner, modality: str, batches: Iterable[Any]) -> None:
    """Replaces the running statistics of one side by those of the batches, without dropout; no weight changes.

    Args:
        batches: inputs of the modality's tower. For batch norm every batch has the same weight; centring keeps its
            momentum.
    Raises:
        ConfigError: this side has no running statistics.
    """
    require_statistics(aligner, modality)
    device = next(aligner.parameters()).device
    aligner.eval()
    modules = modules_with_statistics(aligner, modality)
    momenta = [getattr(m, "momentum", None) for m in modules]
    for module in modules:
        module.train()
        if isinstance(module, Center):
            module.initialised.fill_(False)
        else:
            module.reset_running_stats()  # type: ignore[operator]
            module.momentum = None  # type: ignore[assignment]  # the mean of all batches, not a moving one
    for inputs in batches:
        aligner.encode(modality, move(inputs, device))
    for module, momentum in zip(modules, momenta, strict=True):
        if not isinstance(module, Center):
            module.momentum = momentum  # type: ignore[assignment]
    aligner.eval()
