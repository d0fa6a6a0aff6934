"""Weights of the loss parts: fixed, by a schedule, or learned in training.

A balance multiplies the weights of the config (alpha, the scheduled beta, ...): at the first step all balances give the
same loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ccaco_cli.core import distributed
from ccaco_cli.core.config import LossConfig
from ccaco_cli.core.errors import ConfigError
from ccaco_cli.core.losses.parts import LOSS_PARTS

WEIGHT_RATE = 0.025
"""Learning rate of GradNorm's weights (arXiv:1711.02257, section 4.1)."""


class Balance(nn.Module):
    """Weights as in the config.

    Subclasses keep learned weights in parameters and buffers, in the order of ``LOSS_PARTS``.
    """

    def __init__(self, config: LossConfig):
        super().__init__()
        self.parts = tuple(LOSS_PARTS)

    def scaled_weight(self, part: str, weight: float) -> Tensor | float:
        """The factor of a part whose weight in the config is ``weight``."""
        return weight

    def penalty(self, parts: Sequence[str]) -> Tensor | float:
        """Regularisation that is added to the total, so that learned weights do not vanish."""
        return 0.0

    def observe(self, losses: Mapping[str, Tensor], weights: Mapping[str, float], shared: Sequence[Tensor]) -> None:
        """Updates learned weights before the backward pass.

        Args:
            losses: part -> scalar with its graph.
            weights: part -> weight in the config.
            shared: parameters that all parts share.
        """


class Uncertainty(Balance):
    """Homoscedastic uncertainty: weight * exp(-s) * loss + s / 2 with a learned s = log sigma^2 per part
    (arXiv:1705.07115, eq. 10)."""

    def __init__(self, config: LossConfig):
        super().__init__(config)
        self.log_variance = nn.Parameter(torch.zeros(len(self.parts)))

    def scaled_weight(self, part: str, weight: float) -> Tensor | float:
        return weight * (-self.log_variance[self.parts.index(part)]).exp()

    def penalty(self, parts: Sequence[str]) -> Tensor | float:
        # rows are selected one by one: a list as index would be copied to a GPU
        return torch.stack([self.log_variance[self.parts.index(part)] for part in parts]).sum() / 2


class GradNorm(Balance):
    """Gradient normalisation over the parameters that the parts share (arXiv:1711.02257, eq. 1-2, algorithm 1).

    Each part's gradient norm moves towards mean norm * (relative inverse training rate) ^ asymmetry. The multipliers of
    the parts of a step have a mean of 1. The training rate of a part counts from the first step that has this part. A
    single part is not balanced.
    """

    multiplier: Tensor
    first: Tensor

    def __init__(self, config: LossConfig):
        super().__init__(config)
        self.asymmetry = config.asymmetry
        self.register_buffer("multiplier", torch.ones(len(self.parts)))
        self.register_buffer("first", torch.full((len(self.parts),), math.nan))

    def scaled_weight(self, part: str, weight: float) -> Tensor | float:
        # a copy: ``observe`` changes the multipliers before the backward pass has used them
        return weight * self.multiplier[self.parts.index(part)].clone()

    def observe(self, losses: Mapping[str, Tensor], weights: Mapping[str, float], shared: Sequence[Tensor]) -> None:
        parts = [part for part in self.parts if part in losses and weights.get(part, 0.0) > 0]
        index = [self.parts.index(part) for part in parts]
        current = torch.stack([_process_mean(losses[part].detach()) for part in parts])
        # rows are read and written one by one: a list as index would be copied to a GPU
        first, multiplier = (torch.stack([buffer[i] for i in index]) for buffer in (self.first, self.multiplier))
        first = torch.where(first.isnan(), current, first)
        _write_rows(self.first, index, first)
        if len(parts) < 2:
            return
        norms = torch.stack([weights[part] * _gradient_norm(losses[part], shared) for part in parts])
        rate = current / first.clamp_min(1e-12)
        target = (multiplier * norms).mean() * (rate / rate.mean().clamp_min(1e-12)) ** self.asymmetry
        # d |multiplier * norm - target| / d multiplier is +-norm; divided by the mean norm, so that WEIGHT_RATE suits
        # losses of any scale
        slope = torch.sign(multiplier * norms - target) * norms / norms.mean().clamp_min(1e-12)
        updated = (multiplier - WEIGHT_RATE * slope).clamp_min(1e-3)
        updated = updated * len(parts) / updated.sum()
        # of a norm that is not finite nothing is learned: the training loop skips this step, or ends
        _write_rows(self.multiplier, index, torch.where(torch.isfinite(norms).all(), updated, multiplier))


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
    """The balance of a config. Raises ConfigError: no such balance or ramp."""
    for key, known in (("balance", BALANCES), ("ramp", RAMPS)):
        if getattr(config, key) not in known:
            raise ConfigError(
                f"unknown {key}", where=f"loss.{key} = {getattr(config, key)!r}", expected=" | ".join(known)
            )
    return BALANCES[config.balance](config)


def beta_at(config: LossConfig, progress: float) -> float:
    """Weight of the cross loss at progress 0..1 of the run.

    ``fixed``, or no contrastive loss: always ``beta``. Otherwise 0 until ``cross_start``, then rising to ``beta`` along
    ``ramp``.
    """
    if config.alpha == 0 or config.balance == "fixed":
        return config.beta
    if config.cross_ramp > 0:
        ramp_progress = (progress - config.cross_start) / config.cross_ramp
    else:
        ramp_progress = float(progress >= config.cross_start)
    return config.beta * RAMPS[config.ramp](min(1.0, max(0.0, ramp_progress)))


def _gradient_norm(loss: Tensor, shared: Sequence[Tensor]) -> Tensor:
    gradients = torch.autograd.grad(loss, shared, retain_graph=True, allow_unused=True)
    norms = [_process_mean(gradient).norm() for gradient in gradients if gradient is not None]
    norm: Tensor = torch.stack(norms or [torch.zeros((), device=loss.device)]).norm()
    return norm


def _write_rows(buffer: Tensor, index: Sequence[int], values: Tensor) -> None:
    for i, value in zip(index, values.unbind(), strict=True):
        buffer[i] = value


def _process_mean(x: Tensor) -> Tensor:
    return distributed.all_reduce_sum(x.float()) / distributed.world()
