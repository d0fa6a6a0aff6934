"""AdamW with parameter groups, and the learning rate of every step."""

from __future__ import annotations

import math

import torch
from torch import nn

from ccaco_cli.core.config import OptimConfig


def adamw(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """Fused AdamW with weight decay on matrices only, not on biases, norms, gains or scales (as open_clip does).

    The cross branch (``matcher``, ``cross_projection``) has the learning rate ``lr * cross_lr``.
    """
    # (is a matrix, belongs to the cross branch, is a scalar): FSDP cannot shard scalars, and a group must not mix both
    # kinds
    groups: dict[tuple[bool, bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            cross = name.startswith(("matcher.", "cross_projection."))
            groups.setdefault((parameter.ndim >= 2, cross, parameter.ndim == 0), []).append(parameter)
    settings = [
        {"params": parameters, "weight_decay": config.wd if decays else 0.0, "ratio": config.cross_lr if cross else 1.0}
        for (decays, cross, _), parameters in groups.items()
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
