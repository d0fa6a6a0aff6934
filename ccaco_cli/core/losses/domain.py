"""Losses that make the features of several domains similar: DANN (adversary), MMD (kernel means), CORAL
(covariances)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ccaco_cli.core import runtime
from ccaco_cli.core.errors import ConfigError, LossInputError
from ccaco_cli.core.losses.precision import in_float32

KERNELS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Bandwidths of the kernels of ``mmd`` in units of the median squared distance."""


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: float) -> Tensor:
        ctx.weight = weight
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return -ctx.weight * grads[0], None


def reverse(x: Tensor, weight: float) -> Tensor:
    """Gradient reversal (DANN, arXiv:1505.07818, section 4.2): returns x; the gradient is multiplied by ``-weight``."""
    return _Reverse.apply(x, weight)  # type: ignore[no-any-return,no-untyped-call]


def ramp(progress: float) -> float:
    """The adaptation factor ``2 / (1 + exp(-10 p)) - 1`` at progress p = 0..1 (arXiv:1505.07818, section 5.2.2)."""
    return 2.0 / (1.0 + math.exp(-10.0 * progress)) - 1.0


@in_float32
def dann(logits: Tensor, domain: Tensor) -> Tensor:
    """Cross-entropy of the domain classifier, with equal weight per domain (DANN, arXiv:1505.07818, section 4.2).

    Args:
        logits: [n, K] float, of features that passed through ``reverse``.
        domain: [n] int64, 0..K-1.
    Returns:
        Scalar in nats; log K where the domains cannot be distinguished.
    Raises:
        LossInputError: shapes do not fit, or n is 0.
    """
    if logits.ndim != 2 or domain.shape != logits.shape[:1] or not len(domain):
        raise LossInputError(
            f"shapes {tuple(logits.shape)} and {tuple(domain.shape)}", expected="[n, K] and [n], n >= 1"
        )
    per_sample = F.cross_entropy(logits, domain, reduction="none")
    # ``bincount`` would wait for a GPU
    count = (domain[:, None] == torch.arange(logits.shape[1], device=domain.device)).sum(0)
    return (per_sample / count[domain]).sum() / (count > 0).sum()


@in_float32
def mmd(x: Tensor, y: Tensor) -> Tensor:
    """Squared maximum mean discrepancy: mean of five RBF kernels around the median heuristic (DAN, arXiv:1502.02791).

    The biased estimate (never negative), in quadratic time since batches are small. Bandwidths carry no gradient: with
    one, they would grow with the distance between the domains and hide it.

    Args:
        x, y: [n, D] and [m, D] float.
    Returns:
        Scalar, 0 (equal samples) .. 2.
    Raises:
        LossInputError: shapes do not fit, or there is no row.
    """
    _check(x, y, 1)
    both = torch.cat([x, y])
    square = (both * both).sum(1)
    distance = (square[:, None] + square[None] - 2 * both @ both.T).clamp_min(0)  # smooth at 0, unlike ``cdist``
    # without its first value, a row of n + 1 values ends with one of the diagonal
    rows = len(both) - 1
    off_diagonal = distance.detach().flatten()[1:].view(rows, rows + 2)[:, :-1]
    median = off_diagonal.median().clamp_min(1e-12) if rows else distance.new_ones(())
    kernel = torch.stack([torch.exp(-distance / (factor * median)) for factor in KERNELS]).mean(0)
    n = len(x)
    return kernel[:n, :n].mean() + kernel[n:, n:].mean() - 2 * kernel[:n, n:].mean()


@in_float32
def masked_mmd(z: Tensor, in_x: Tensor, in_y: Tensor) -> Tensor:
    """``mmd`` of some rows with others: ``mmd(z[in_x], z[in_y])`` for z [n, D] and masks [n] bool without a common row.

    It costs n^2, but does not wait for a GPU. Without rows the result is finite and has no meaning.
    """
    square = (z * z).sum(1)
    distance = (square[:, None] + square[None] - 2 * z @ z.T).clamp_min(0)
    used = in_x | in_y
    pairs = (used[:, None] & used[None]).fill_diagonal_(False)
    ordered = distance.detach().masked_fill(~pairs, torch.inf).flatten().sort().values
    middle = ((pairs.sum() - 1) // 2).clamp_min(0)
    median = ordered.gather(0, middle[None])[0].clamp_min(1e-12)
    kernel = torch.stack([torch.exp(-distance / (factor * median)) for factor in KERNELS]).mean(0)
    weight_x, weight_y = (mask.float() / mask.sum().clamp_min(1) for mask in (in_x, in_y))
    within = weight_x @ kernel @ weight_x + weight_y @ kernel @ weight_y
    return within - 2 * weight_x @ kernel @ weight_y


@in_float32
def coral(x: Tensor, y: Tensor) -> Tensor:
    """Squared Frobenius distance of the covariances over ``4 D^2`` (Deep CORAL, arXiv:1607.01719, eq. 1).

    Args:
        x, y: [n, D] and [m, D] float, n and m >= 2.
    Returns:
        Scalar, squared units of the covariance.
    Raises:
        LossInputError: shapes do not fit, or fewer than two rows.
    """
    _check(x, y, 2)
    return (_covariance(x) - _covariance(y)).square().sum() / (4 * x.shape[1] ** 2)


@in_float32
def masked_coral(z: Tensor, in_x: Tensor, in_y: Tensor) -> Tensor:
    """``coral(z[in_x], z[in_y])`` for z [n, D] and masks [n] bool; it does not wait for a GPU."""
    difference = _masked_covariance(z, in_x) - _masked_covariance(z, in_y)
    return difference.square().sum() / (4 * z.shape[1] ** 2)


@in_float32
def classification(logits: Tensor, label: Tensor) -> Tensor:
    """Cross-entropy of the label predictor over the rows that have a label.

    Args:
        logits: [B, C] float.
        label: [B] int64, -1 = none.
    Returns:
        Scalar in nats; 0 if no row has a label.
    """
    return F.cross_entropy(logits, label, ignore_index=-1, reduction="sum") / (label >= 0).sum().clamp_min(1)


@dataclass(frozen=True)
class DomainFeatures:
    """Features of one modality for samples of all domains.

    Attributes:
        features: [n, D] float.
        domain: [n] int64, 0..K-1.
        ramp: factor of the terms without an adversary; ``reverse`` applies it to the gradient of the adversary.
        domains: K; the program would have to wait for a GPU to read it from ``domain``.
        logits: [n, K] of the domain classifier; None if the loss has no adversary.
    """

    features: Tensor
    domain: Tensor
    ramp: float
    domains: int
    logits: Tensor | None = None


def _dann(inputs: DomainFeatures) -> Tensor:
    if inputs.logits is None:
        raise LossInputError("no domain classifier", expected="logits")
    return dann(inputs.logits, inputs.domain)


def _pairwise(
    distance: Callable[[Tensor, Tensor], Tensor], masked_distance: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> Callable[[DomainFeatures], Tensor]:
    """The mean distance over all pairs of domains with two rows or more in the batch.

    Args:
        distance: (rows of one domain, rows of another one) -> scalar.
        masked_distance: the same of (all rows [n, D], masks [n] of both domains), whose shapes do not depend on values.
    """

    def masked_term(inputs: DomainFeatures) -> Tensor:
        total, count = inputs.features.new_zeros(()), inputs.features.new_zeros(())
        for x, y in combinations([inputs.domain == code for code in range(inputs.domains)], 2):
            usable = (x.sum() > 1) & (y.sum() > 1)
            total = total + torch.where(usable, masked_distance(inputs.features, x, y), 0.0)
            count = count + usable
        return inputs.ramp * total / count.clamp_min(1)

    def term(inputs: DomainFeatures) -> Tensor:
        if runtime.must_wait(inputs.domain):
            return masked_term(inputs)
        by_domain = [inputs.features[inputs.domain == code] for code in range(inputs.domains)]
        distances = [distance(x, y) for x, y in combinations((rows for rows in by_domain if len(rows) > 1), 2)]
        return inputs.ramp * torch.stack(distances).mean() if distances else 0.0 * inputs.features.sum()

    return term


TERMS: dict[str, Callable[[DomainFeatures], Tensor]] = {
    "dann": _dann,
    "mmd": _pairwise(mmd, masked_mmd),
    "coral": _pairwise(coral, masked_coral),
}
ADVERSARIAL = "dann"
"""The term that needs a domain classifier."""
DOMAIN_LOSSES: dict[str, tuple[str, ...]] = {
    "none": (),
    "dann": ("dann",),
    "mmd": ("mmd",),
    "both": ("dann", "mmd"),
    "coral": ("coral",),
}
"""Name of a domain loss -> its terms, which are added."""


def domain_terms(name: str) -> tuple[str, ...]:
    """The terms of a domain loss. Raises ConfigError: no such loss."""
    if name not in DOMAIN_LOSSES:
        raise ConfigError("unknown domain loss", where=f"domain.loss = {name!r}", expected=" | ".join(DOMAIN_LOSSES))
    return DOMAIN_LOSSES[name]


def domain_loss(name: str, inputs: DomainFeatures) -> Tensor:
    """The sum of the terms of a domain loss: scalar. Raises ConfigError: no such loss."""
    return torch.stack([TERMS[term](inputs) for term in domain_terms(name)]).sum()


def _covariance(x: Tensor) -> Tensor:
    """[n, D] -> [D, D], equal to ``torch.cov``, which lets the program wait for a GPU twice."""
    centred = x.T - x.T.mean(1, keepdim=True)
    return centred @ centred.T / (len(x) - 1)


def _masked_covariance(z: Tensor, mask: Tensor) -> Tensor:
    weight, count = mask[:, None].to(z.dtype), mask.sum()
    centred = (z - (z * weight).sum(0) / count.clamp_min(1)) * weight
    return centred.T @ centred / (count - 1).clamp_min(1)


def _check(x: Tensor, y: Tensor, rows: int) -> None:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < rows:
        raise LossInputError(
            f"shapes {tuple(x.shape)} and {tuple(y.shape)}", expected=f"[n, D] and [m, D], n and m >= {rows}"
        )
