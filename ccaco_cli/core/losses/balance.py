"""How much each part of the loss weighs: as given, by a schedule, or found while training.

A balance multiplies the weights that the config gives (alpha, beta by its schedule, ...): all of them start from the same loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ccaco_cli.core import distributed
from ccaco_cli.core.config import LossConfig
from ccaco_cli.core.errors import ConfigError

PARTS = ("contrastive", "cross", "taught", "domain", "label")
"""Loss parts that a learned balance can weigh."""
WEIGHT_RATE = 0.025
"""Learning rate of gradnorm's weights (arXiv:1711.02257, sec. 4.1)."""


class Balance(nn.Module):
    """Weights as the config gives them; the base of the others, which keep all they learn in parameters and buffers."""

    def __init__(self, config: LossConfig):
        super().__init__()

    def weigh(self, part: str, weight: float) -> Tensor | float:
        """What a part is multiplied by, when the config gives it ``weight``."""
        return weight

    def penalty(self, parts: Sequence[str]) -> Tensor | float:
        """What is added to the total, so that a learned weight does not fall to nothing."""
        return 0.0

    def observe(self, losses: Mapping[str, Tensor], weights: Mapping[str, float], shared: Sequence[Tensor]) -> None:
        """Looks at the losses of a step (graph still there) and at the parameters that they share."""


class Uncertainty(Balance):
    """Homoscedastic uncertainty (arXiv:1705.07115, eq. 10): weight * exp(-s) * loss + s / 2, s = log sigma^2 learned for each part."""

    def __init__(self, config: LossConfig):
        super().__init__(config)
        self.log_variance = nn.Parameter(torch.zeros(len(PARTS)))

    def weigh(self, part: str, weight: float) -> Tensor | float:
        return weight * (-self.log_variance[PARTS.index(part)]).exp()

    def penalty(self, parts: Sequence[str]) -> Tensor | float:
        return self.log_variance[[PARTS.index(part) for part in parts]].sum() / 2


class GradNorm(Balance):
    """Gradient normalisation (arXiv:1711.02257, eq. 1-2, algorithm 1) over the parameters that the parts share.

    Each part's gradient norm is drawn to mean norm * (relative inverse training rate) ^ asymmetry; the multipliers keep a mean of 1 over
    the parts of a step. A part's training rate counts from the first step that it takes part in, and a single part has nothing to balance.
    """

    multiplier: Tensor
    first: Tensor

    def __init__(self, config: LossConfig):
        super().__init__(config)
        self.asymmetry = config.asymmetry
        self.register_buffer("multiplier", torch.ones(len(PARTS)))
        self.register_buffer("first", torch.full((len(PARTS),), math.nan))

    def weigh(self, part: str, weight: float) -> Tensor | float:
        # a copy, for ``observe`` changes the weights before the backward pass has used them
        return weight * self.multiplier[PARTS.index(part)].clone()

    def observe(self, losses: Mapping[str, Tensor], weights: Mapping[str, float], shared: Sequence[Tensor]) -> None:
        parts = [part for part in PARTS if part in losses and weights.get(part, 0.0) > 0]
        index = [PARTS.index(part) for part in parts]
        now = torch.stack(
            [distributed.all_reduce_sum(losses[part].detach().float()) / distributed.world() for part in parts]
        )
        self.first[index] = torch.where(self.first[index].isnan(), now, self.first[index])
        if len(parts) < 2:
            return
        norms = torch.stack([weights[part] * _norm(losses[part], shared) for part in parts])
        if not bool(torch.isfinite(norms).all()):  # a step that the loop will skip or end at
            return
        rate = now / self.first[index].clamp_min(1e-12)
        target = (self.multiplier[index] * norms).mean() * (rate / rate.mean().clamp_min(1e-12)) ** self.asymmetry
        # the gradient of |multiplier * norm - target| is norm with a sign; by its mean, so that the rate means the same for every loss
        slope = torch.sign(self.multiplier[index] * norms - target) * norms / norms.mean().clamp_min(1e-12)
        changed = (self.multiplier[index] - WEIGHT_RATE * slope).clamp_min(1e-3)
        self.multiplier[index] = changed * len(parts) / changed.sum()


BALANCES: dict[str, Callable[[LossConfig], Balance]] = {
    "fixed": Balance,
    "schedule": Balance,
    "uncertainty": Uncertainty,
    "gradnorm": GradNorm,
}
RAMPS: dict[str, Callable[[float], float]] = {
    "linear": lambda x: x,
    "cosine": lambda x: (1 - math.cos(math.pi * x)) / 2,
}


def build(config: LossConfig) -> Balance:
    """The balance that a config names. Raises ConfigError with the known ones."""
    for key, known in (("balance", BALANCES), ("ramp", RAMPS)):
        if getattr(config, key) not in known:
            raise ConfigError(
                f"unknown {key}", where=f"loss.{key} = {getattr(config, key)!r}", expected=" | ".join(known)
            )
    return BALANCES[config.balance](config)


def beta_at(config: LossConfig, progress: float) -> float:
    """The weight that the config gives the cross loss at a share 0..1 of the run.

    fixed: always ``beta``. Else 0 in the contrastive warm-up, then rising to ``beta`` along ``ramp``; without a contrastive half at once.
    """
    if config.alpha == 0 or config.balance == "fixed":
        return config.beta
    share = (
        (progress - config.cross_start) / config.cross_ramp
        if config.cross_ramp > 0
        else float(progress >= config.cross_start)
    )
    return config.beta * RAMPS[config.ramp](min(1.0, max(0.0, share)))


def _norm(loss: Tensor, shared: Sequence[Tensor]) -> Tensor:
    found = torch.autograd.grad(loss, shared, retain_graph=True, allow_unused=True)
    sizes = [(distributed.all_reduce_sum(g.float()) / distributed.world()).norm() for g in found if g is not None] or [
        torch.zeros((), device=loss.device)
    ]
    norm: Tensor = torch.stack(sizes).norm()
    return norm
