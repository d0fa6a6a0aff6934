"""AdamW with parameter groups, the learning rate of every step, and the moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ccaco_cli.core.config import OptimConfig
from ccaco_cli.core.model.aligner import CROSS_BRANCH
from ccaco_cli.core.model.towers.blocks import require_blocks


def adamw(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """Fused AdamW with weight decay on matrices only, not on biases, norms, gains or scales (as open_clip does).

    The cross branch (``matcher``, ``cross_projection``) has the learning rate ``lr * cross_lr``, and block l of a tower
    of L blocks has ``lr * layer_decay ** (L + 1 - l)``; what follows the blocks has ``lr``.

    Raises:
        ConfigError: a layer decay, and a tower without blocks.
    """
    ratios = _ratios_by_depth(model, config.layer_decay) if config.layer_decay < 1 else {}
    # (is a matrix, ratio, is a scalar): FSDP cannot shard scalars, and a group must not mix both kinds
    groups: dict[tuple[bool, float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            cross = name.startswith(CROSS_BRANCH)
            ratio = config.cross_lr if cross else ratios.get(name, 1.0)
            groups.setdefault((parameter.ndim >= 2, ratio, parameter.ndim == 0), []).append(parameter)
    settings = [
        {"params": parameters, "weight_decay": config.wd if decays else 0.0, "ratio": ratio}
        for (decays, ratio, _), parameters in groups.items()
    ]
    return torch.optim.AdamW(settings, lr=config.lr, betas=(0.9, config.beta2), eps=1e-6, fused=True)


def lr_at(step: int, total: int, config: OptimConfig) -> float:
    """Learning rate of a step: linear warm-up, then cosine to zero (arXiv:1608.03983).

    ``config.warmup`` is a fraction of all steps, or their number if it is 1 or more.
    """
    warmup = config.warmup if config.warmup >= 1 else config.warmup * total
    if step < warmup:
        return config.lr * min(1.0, (step + 1) / warmup)
    return 0.5 * config.lr * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1.0, total - warmup))))


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Sets the learning rate of every group: ``lr`` times its ratio."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["ratio"]


class WeightAverage:
    """An exponential moving average of the trained weights over steps; buffers are not averaged.

    Args:
        model: its trained weights at the first update start the average.
        decay: of the old average in each update.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.trained = nn.ParameterList(p for p in model.parameters() if p.requires_grad)
        self.average = AveragedModel(self.trained, multi_avg_fn=get_ema_multi_avg_fn(decay))  # type: ignore[no-untyped-call]

    def update(self) -> None:
        """Adds the weights after a step."""
        self.average.update_parameters(self.trained)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the model has the averaged weights."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        for weight, averaged in zip(self.trained, self.average.module.parameters(), strict=True):
            weight.data, averaged.data = averaged.data, weight.data

    def state_dict(self) -> dict[str, Any]:
        """The average and the number of updates."""
        return self.average.state_dict()  # type: ignore[no-any-return]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores ``state_dict``."""
        self.average.load_state_dict(state)


def _ratios_by_depth(model: nn.Module, decay: float) -> dict[str, float]:
    """Name of a parameter of a tower that learns -> ratio of its learning rate."""
    ratios = {}
    for modality, encoder in model.sides.items():  # type: ignore[operator, union-attr]
        if encoder.config.lock or encoder.config.lock_side:
            continue
        blocks = require_blocks(encoder.tower, encoder.config.spec, f"--layer-decay {decay:g}")
        for name, depth in blocks.depth.items():
            ratios[f"sides.{modality}.tower.{name}"] = decay ** (blocks.count + 1 - depth)
    return ratios
