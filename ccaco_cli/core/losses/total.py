"""What the loss parts read, the losses of the cross branch, and the weighted sum of all parts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ccaco_cli.core.config import LossConfig
from ccaco_cli.core.errors import ConfigError
from ccaco_cli.core.losses import contrastive, matching, pairing, sigmoid
from ccaco_cli.core.losses.balance import Balance
from ccaco_cli.core.losses.domain import DomainFeatures
from ccaco_cli.core.losses.pairing import Pairs, PairSampler
from ccaco_cli.core.losses.parts import LOSS_PARTS, TOTAL
from ccaco_cli.core.types import Crossed, Embedding


@dataclass(frozen=True)
class CrossLoss:
    """One way to train the cross branch.

    Attributes:
        pairs: chooses the pairs of a batch that the cross branch scores.
        loss: (outputs of the cross branch, pairs, group [B], config) -> scalar.
        chance: (config, pairs in the batch) -> loss in nats of a branch that has learned nothing; None = the loss has
            no such level.
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
    """L_mse = mean ||F_v' - F_v||^2 + mean ||F_t' - F_t||^2 of tokens before (F) and after (F') the fusion.

    It has a known flaw and is kept for comparison: F' - F is the attention output, so the loss only shrinks it.
    """
    if crossed.drift is None:
        raise ConfigError(
            "this fusion has no residual to measure",
            where="loss.cross = 'mse'",
            expected="model.fusion.kind residual or coattention",
        )
    return crossed.drift.float()


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
    """Embeddings and cross-branch outputs of one step.

    Attributes:
        a, b: global vectors of B pairs; row i of both is pair i.
        group: [B] int64; rows of one group are positives of each other.
        logit_scale: scalar that multiplies cosines.
        crossed: outputs of the cross branch; None while beta is 0.
        pairs: the pairs that the cross branch has scored; None while beta is 0.
        query_rows: the queries whose contrastive loss this process computes; None = all.
        vectors: global vectors per sample, side by side in z.
        logit_bias: scalar that is added to scaled cosines (sigmoid loss); None = the model has none.
    """

    a: Embedding
    b: Embedding
    group: Tensor
    logit_scale: Tensor
    crossed: Crossed | None = None
    pairs: Pairs | None = None
    query_rows: slice | None = None
    vectors: int = 1
    logit_bias: Tensor | None = None


@dataclass(frozen=True)
class LossInputs:
    """All that the loss parts of one step read.

    Attributes:
        alignment: None if neither the contrastive nor the cross loss is trained.
        domain_loss: name of the domain loss, a key of ``domain.DOMAIN_LOSSES``.
        domains: features of all domains, one entry per modality that is adapted.
        label_logits: [B, C] of the label predictor, or None.
        labels: [B] int64, -1 = none.
        caption: (logits [B, L, U], targets [B, L]) of this process, for ``caption_loss``; None = no decoder.
        answer: the same for answers to questions; None = the data has no questions.
    """

    alignment: Alignment | None
    domain_loss: str = "none"
    domains: Sequence[DomainFeatures] = field(default=())
    label_logits: Tensor | None = None
    labels: Tensor | None = None
    caption: tuple[Tensor, Tensor] | None = None
    answer: tuple[Tensor, Tensor] | None = None


def sample_pairs(
    a: Embedding, b: Embedding, group: Tensor, config: LossConfig, generator: torch.Generator | None = None
) -> Pairs:
    """The pairs of this batch that the cross loss of the config is computed on."""
    return cross_loss(config).pairs(a.z.detach(), b.z.detach(), group, config.cross_batch, config.negatives, generator)


def cross_loss(config: LossConfig) -> CrossLoss:
    """The entry of ``CROSS_LOSSES`` that a config names. Raises ConfigError: no such loss."""
    if config.cross not in CROSS_LOSSES:
        raise ConfigError(
            "unknown cross loss", where=f"loss.cross = {config.cross!r}", expected=" | ".join(CROSS_LOSSES)
        )
    return CROSS_LOSSES[config.cross]


def check_losses(config: LossConfig) -> None:
    """Raises ConfigError: no such cross loss, or distillation (``loss.teach``) without both halves."""
    cross_loss(config)
    if config.teach < 0 or (config.teach and (config.cross != "infonce" or not config.alpha)):
        raise ConfigError(
            "nothing to distil",
            where=f"loss.teach = {config.teach:g}, loss.cross = {config.cross!r}, loss.alpha = {config.alpha:g}",
            expected="teach above 0, with loss.cross = 'infonce' (scores of all pairs) and loss.alpha above 0",
        )


def contrastive_loss(alignment: Alignment, config: LossConfig) -> Tensor:
    """The contrastive loss of each global vector on its own, averaged over the vectors; each has norm
    1 / sqrt(vectors) in ``z``."""
    loss = CONTRASTIVE_LOSSES[config.contrastive]
    losses = []
    for chunk_a, chunk_b in zip(*(x.z.chunk(alignment.vectors, 1) for x in (alignment.a, alignment.b)), strict=True):
        losses.append(loss(chunk_a * alignment.vectors**0.5, chunk_b * alignment.vectors**0.5, alignment))
    return torch.stack(losses).mean()


def _infonce(z_a: Tensor, z_b: Tensor, alignment: Alignment) -> Tensor:
    group, scale, query_rows = alignment.group, alignment.logit_scale, alignment.query_rows
    if query_rows is None:
        return contrastive.info_nce(z_a, z_b, group, scale)
    return contrastive.sharded_info_nce(z_a, z_b, group, scale, query_rows)


def _sigmoid(z_a: Tensor, z_b: Tensor, alignment: Alignment) -> Tensor:
    if alignment.logit_bias is None:
        raise ConfigError("the sigmoid loss needs a logit bias", where="loss.contrastive = 'sigmoid'")
    return sigmoid.sigmoid_loss(
        z_a, z_b, alignment.group, alignment.logit_scale, alignment.logit_bias, alignment.query_rows
    )


CONTRASTIVE_LOSSES: dict[str, Callable[[Tensor, Tensor, Alignment], Tensor]] = {
    "infonce": _infonce,
    "sigmoid": _sigmoid,
}
"""Name -> (z_a [B, E], z_b [B, E], alignment) -> scalar."""


def cross_branch_loss(alignment: Alignment, config: LossConfig) -> Tensor | None:
    """The cross loss that the config names; None while the cross branch does not run."""
    if alignment.crossed is None or alignment.pairs is None:
        return None
    loss = cross_loss(config).loss(alignment.crossed, alignment.pairs, alignment.group, config)
    has_negatives = alignment.pairs.has_negatives
    return loss if has_negatives is None else torch.where(has_negatives, loss, torch.nan)


def distillation_loss(alignment: Alignment) -> Tensor | None:
    """Trains the cosine scores to match the two-stage scores (cosine + cross branch) of the pairs that the cross
    branch scored."""
    if alignment.crossed is None or alignment.pairs is None:
        return None
    rows = alignment.pairs.rows
    student = contrastive.scores(alignment.a.z[rows], alignment.b.z[rows], alignment.logit_scale)
    return contrastive.distillation(student, student + alignment.crossed.match_logit)


def total_loss(
    inputs: LossInputs, config: LossConfig, weights: Mapping[str, float], balance: Balance | None = None
) -> dict[str, Tensor]:
    """Every loss part of a step and their weighted sum.

    Args:
        weights: part -> weight of this step (``parts.part_weights``); a part with weight 0 is not computed.
        balance: multiplies the weights; None = weights as given.
    Returns:
        Part -> scalar (in nats; mse in squared units), and "total".
    """
    balance = balance or Balance(config)
    losses: dict[str, Tensor] = {}
    for name, part in LOSS_PARTS.items():
        value = part.loss(inputs, config) if weights.get(name, 0.0) > 0 else None
        if value is not None:
            losses[name] = value
    total = torch.stack([balance.scaled_weight(name, weights[name]) * loss for name, loss in losses.items()]).sum()
    return losses | {TOTAL: total + balance.penalty(list(losses))}
