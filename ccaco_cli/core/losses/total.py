"""``total = alpha * contrastive + beta * cross``, and what adaptation adds, each part under its name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ccaco_cli.core.config import LossConfig
from ccaco_cli.core.errors import ConfigError
from ccaco_cli.core.losses import contrastive, matching, pairing
from ccaco_cli.core.losses.balance import Balance
from ccaco_cli.core.losses.pairing import Pairs
from ccaco_cli.core.types import Crossed, Embedding


class PairSampler(Protocol):
    """(z of both sides [B, E], group [B], size, negatives) -> the pairs of this step."""

    def __call__(
        self, z_a: Tensor, z_b: Tensor, group: Tensor, size: int, count: int, generator: torch.Generator | None = None
    ) -> Pairs: ...


@dataclass(frozen=True)
class CrossLoss:
    """One way to train the cross branch: which pairs it sees, what it is asked, and the loss of a branch that has learned nothing.

    chance  (config, pairs in the batch) -> nats; None when the loss has no such level
    """

    pairs: PairSampler
    loss: Callable[[Crossed, Pairs, Tensor, LossConfig], Tensor]
    chance: Callable[[LossConfig, int], float] | None = None


def _info_nce(crossed: Crossed, pairs: Pairs, group: Tensor, config: LossConfig) -> Tensor:
    return contrastive.matrix_nce(crossed.match_logit, group[pairs.rows], group[pairs.rows])


def _matching(crossed: Crossed, pairs: Pairs, group: Tensor, config: LossConfig) -> Tensor:
    if pairs.label is None:
        raise ConfigError("matching needs labelled pairs", where="loss.cross")
    return matching.matching(crossed.match_logit, pairs.label)


def _listwise(crossed: Crossed, pairs: Pairs, group: Tensor, config: LossConfig) -> Tensor:
    return matching.listwise(crossed.match_logit, config.negatives + 1)


def _mse(crossed: Crossed, pairs: Pairs, group: Tensor, config: LossConfig) -> Tensor:
    """The source description's L_mse = mean ||F_v' - F_v||^2 + mean ||F_t' - F_t||^2.

    A known flaw, kept by name: F' - F is the attention output itself, so the term shrinks the tokens and aligns nothing.
    """
    if crossed.drift is None:
        raise ConfigError(
            "this fusion has no residual to measure",
            where="loss.cross = 'mse'",
            expected="model.fusion.kind residual or coattention",
        )
    return crossed.drift


CROSS_LOSSES: dict[str, CrossLoss] = {
    "infonce": CrossLoss(
        pairing.all_pairs, _info_nce, lambda config, batch: math.log(min(config.cross_batch or batch, batch))
    ),
    "matching": CrossLoss(
        pairing.hard_negative_pairs, _matching, lambda config, batch: matching.matching_chance(config.negatives)
    ),
    "listwise": CrossLoss(pairing.hard_negative_pairs, _listwise, lambda config, batch: math.log(config.negatives + 1)),
    "mse": CrossLoss(pairing.true_pairs, _mse),
}


@dataclass(frozen=True)
class Alignment:
    """All that the losses of one step need; ``crossed`` and ``pairs`` are None while beta is 0.

    a, b         Embedding, row i of both is pair i
    group        [B] int64
    logit_scale  scalar
    rows         the queries whose contrastive loss this process computes; None = all
    vectors      how many global vectors lie side by side in z
    """

    a: Embedding
    b: Embedding
    group: Tensor
    logit_scale: Tensor
    crossed: Crossed | None = None
    pairs: Pairs | None = None
    rows: slice | None = None
    vectors: int = 1


def sample_pairs(
    a: Embedding, b: Embedding, group: Tensor, config: LossConfig, generator: torch.Generator | None = None
) -> Pairs:
    """The pairs that the cross loss of this config wants from this batch."""
    return cross_loss(config).pairs(a.z.detach(), b.z.detach(), group, config.cross_batch, config.negatives, generator)


def cross_loss(config: LossConfig) -> CrossLoss:
    """The entry of ``CROSS_LOSSES`` that a config names."""
    if config.cross not in CROSS_LOSSES:
        raise ConfigError(
            "unknown cross loss", where=f"loss.cross = {config.cross!r}", expected=" | ".join(CROSS_LOSSES)
        )
    return CROSS_LOSSES[config.cross]


def part_weights(config: LossConfig, beta: float) -> dict[str, float]:
    """Part -> what the config lets it weigh at a step."""
    return {"contrastive": config.alpha, "cross": beta} | ({"taught": config.teach * beta} if config.teach else {})


def check_losses(config: LossConfig) -> None:
    """Raises ConfigError: no such cross loss, or one that cannot teach."""
    cross_loss(config)
    if config.teach < 0 or (config.teach and (config.cross != "infonce" or not config.alpha)):
        where = f"loss.teach = {config.teach:g}, loss.cross = {config.cross!r}, loss.alpha = {config.alpha:g}"
        raise ConfigError(
            "nothing to teach with",
            where=where,
            expected="above 0, cross scores of all pairs (infonce), and a cosine to teach",
        )


def _taught(alignment: Alignment, crossed: Crossed, pairs: Pairs) -> Tensor:
    """The cosine learns from both scores together: what a two-stage search would answer, over the pairs that the cross branch saw."""
    student = alignment.logit_scale * alignment.a.z[pairs.rows] @ alignment.b.z[pairs.rows].T
    return contrastive.distillation(student, student + crossed.match_logit)


def _contrastive(alignment: Alignment) -> Tensor:
    """Every global vector learns by itself: the mean of their losses. ``z`` holds each with a norm of 1 / sqrt(vectors)."""
    scale, found = alignment.logit_scale, []
    for a, b in zip(*(x.z.chunk(alignment.vectors, 1) for x in (alignment.a, alignment.b)), strict=True):
        seen = a * alignment.vectors**0.5, b * alignment.vectors**0.5, alignment.group, scale
        found.append(
            contrastive.info_nce(*seen)
            if alignment.rows is None
            else contrastive.sharded_info_nce(*seen, alignment.rows)
        )
    return torch.stack(found).mean()


def total_loss(
    alignment: Alignment | None,
    config: LossConfig,
    beta: float,
    balance: Balance | None = None,
    further: Mapping[str, tuple[float, Tensor]] | None = None,
) -> dict[str, Tensor]:
    """Every part and their weighted sum.

    alignment  None where neither half learns
    balance  multiplies the weights; None = as they are
    further  name -> (weight, scalar) of parts that do not come from pairs (``domain``, ``label``)
    Returns  {"contrastive", "cross" and "taught" (when beta > 0), further ones, "total"}: scalars, nats (mse: squared units)
    """
    balance, given = balance or Balance(config), part_weights(config, beta)
    parts: dict[str, Tensor] = {}
    if alignment is not None and config.alpha > 0:
        parts["contrastive"] = _contrastive(alignment)
    if alignment is not None and beta > 0 and alignment.crossed is not None and alignment.pairs is not None:
        parts["cross"] = cross_loss(config).loss(alignment.crossed, alignment.pairs, alignment.group, config)
        if config.teach:
            parts["taught"] = _taught(alignment, alignment.crossed, alignment.pairs)
    weighed = {name: (given[name], part) for name, part in parts.items()} | dict(further or {})
    total = torch.stack([balance.weigh(name, weight) * part for name, (weight, part) in weighed.items()]).sum()
    return {name: part for name, (_, part) in weighed.items()} | {"total": total + balance.penalty(list(weighed))}
