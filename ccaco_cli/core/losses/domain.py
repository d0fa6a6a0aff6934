"""Losses that draw the features of several domains together: an adversary (DANN), kernel means (MMD), second moments (CORAL)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ccaco_cli.core.errors import ConfigError, LossInputError

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
    """Gradient reversal (DANN, arXiv:1505.07818, section 4.2): x itself forward; backward, the gradient times ``-weight``."""
    return _Reverse.apply(x, weight)  # type: ignore[no-any-return,no-untyped-call]


def ramp(progress: float) -> float:
    """The adaptation factor ``2 / (1 + exp(-10 p)) - 1`` at a share p in 0..1 of the run (arXiv:1505.07818, section 5.2.2)."""
    return 2.0 / (1.0 + math.exp(-10.0 * progress)) - 1.0


def dann(logits: Tensor, domain: Tensor) -> Tensor:
    """The domain classifier's cross-entropy, every domain weighing alike (DANN, arXiv:1505.07818, section 4.2).

    logits   [n, K] float, of features that went through ``reverse``
    domain   [n] int64, 0..K-1
    Returns  scalar, nats; log K where nothing can be told apart
    Raises   LossInputError: shapes that do not fit, or nothing at all
    """
    if logits.ndim != 2 or domain.shape != logits.shape[:1] or not len(domain):
        raise LossInputError(
            f"shapes {tuple(logits.shape)} and {tuple(domain.shape)}", expected="[n, K] and [n], n >= 1"
        )
    each = F.cross_entropy(logits.float(), domain, reduction="none")
    count = domain.bincount()
    return (each / count[domain]).sum() / (count > 0).sum()


def mmd(x: Tensor, y: Tensor) -> Tensor:
    """Squared maximum mean discrepancy of two samples, mean of five RBF kernels around the median heuristic (DAN, arXiv:1502.02791).

    The biased estimate (never negative) in quadratic time: batches are small. Bandwidths carry no gradient, or they would hide a distance.

    x [n, D], y [m, D] float
    Returns  scalar, 0 (equal samples) .. 2
    Raises   LossInputError: shapes that do not fit, or fewer than one row
    """
    _check(x, y, 1)
    both = torch.cat([x, y]).float() if x.dtype in (torch.float16, torch.bfloat16) else torch.cat([x, y])
    square = (both * both).sum(1)
    distance = (square[:, None] + square[None] - 2 * both @ both.T).clamp_min(0)  # smooth at 0, unlike ``cdist``
    apart = distance.detach()[~torch.eye(len(both), dtype=torch.bool, device=both.device)]
    median = apart.median().clamp_min(1e-12) if len(apart) else distance.new_ones(())
    kernel = torch.stack([torch.exp(-distance / (factor * median)) for factor in KERNELS]).mean(0)
    n = len(x)
    return kernel[:n, :n].mean() + kernel[n:, n:].mean() - 2 * kernel[:n, n:].mean()


def coral(x: Tensor, y: Tensor) -> Tensor:
    """Squared Frobenius distance of the covariances over ``4 D^2`` (Deep CORAL, arXiv:1607.01719, eq. 1).

    x [n, D], y [m, D] float, n and m >= 2
    Returns  scalar, squared units of the covariance
    Raises   LossInputError: shapes that do not fit, or fewer than two rows
    """
    _check(x, y, 2)
    one, other = (
        torch.cov(s.float().T if s.dtype in (torch.float16, torch.bfloat16) else s.T).reshape(s.shape[1], -1)
        for s in (x, y)
    )
    return (one - other).square().sum() / (4 * x.shape[1] ** 2)


def classification(logits: Tensor, label: Tensor) -> Tensor:
    """The label predictor's cross-entropy over the rows that have a label.

    logits   [B, C] float
    label    [B] int64, -1 = none
    Returns  scalar, nats; 0 where no row has one
    """
    return F.cross_entropy(logits.float(), label, ignore_index=-1, reduction="sum") / (label >= 0).sum().clamp_min(1)


@dataclass(frozen=True)
class Seen:
    """Features of one modality, of samples of all domains.

    features  [n, D] float
    domain    [n] int64, 0..K-1
    ramp      factor of the terms without an adversary (its gradient has it already, from ``reverse``)
    logits    [n, K] of the domain classifier, or None when no term asks for it
    """

    features: Tensor
    domain: Tensor
    ramp: float
    logits: Tensor | None = None


def _dann(seen: Seen) -> Tensor:
    if seen.logits is None:
        raise LossInputError("no domain classifier", expected="logits")
    return dann(seen.logits, seen.domain)


def _pairwise(distance: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Seen], Tensor]:
    def term(seen: Seen) -> Tensor:
        parts = [seen.features[seen.domain == code] for code in range(int(seen.domain.max()) + 1)]
        found = [distance(x, y) for x, y in combinations((p for p in parts if len(p) > 1), 2)]
        return seen.ramp * torch.stack(found).mean() if found else 0.0 * seen.features.sum()

    return term


TERMS: dict[str, Callable[[Seen], Tensor]] = {"dann": _dann, "mmd": _pairwise(mmd), "coral": _pairwise(coral)}
DOMAIN_LOSSES: dict[str, tuple[str, ...]] = {
    "none": (),
    "dann": ("dann",),
    "mmd": ("mmd",),
    "both": ("dann", "mmd"),
    "coral": ("coral",),
}
"""Name -> its terms, which are added."""


def domain_terms(name: str) -> tuple[str, ...]:
    """The terms of a domain loss by its name. Raises ConfigError with those there are."""
    if name not in DOMAIN_LOSSES:
        raise ConfigError("unknown domain loss", where=f"domain.loss = {name!r}", expected=" | ".join(DOMAIN_LOSSES))
    return DOMAIN_LOSSES[name]


def domain_loss(name: str, seen: Seen) -> Tensor:
    """The sum of the terms of a domain loss: scalar. Raises as ``domain_terms``."""
    return torch.stack([TERMS[term](seen) for term in domain_terms(name)]).sum()


def _check(x: Tensor, y: Tensor, rows: int) -> None:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < rows:
        raise LossInputError(
            f"shapes {tuple(x.shape)} and {tuple(y.shape)}", expected=f"[n, D] and [m, D], n and m >= {rows}"
        )
