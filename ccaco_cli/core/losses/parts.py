"""The table of loss parts. A new part is one entry here: training, balancing, logs, reports and charts read the table.

Nothing here imports torch at module level, so that reports and charts start fast.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ccaco_cli.core.config import LossConfig

if TYPE_CHECKING:
    from torch import Tensor

    from ccaco_cli.core.losses.total import LossInputs

TOTAL = "total"
"""Name of the weighted sum of all parts."""


@dataclass(frozen=True)
class LossPart:
    """One term of the training loss, computed in every step in which its weight is above 0.

    Attributes:
        name: its key in ``metrics.jsonl``; tables of runs show it as ``loss_NAME``.
        weight_key: key of its weight in ``metrics.jsonl``.
        weight: (config, beta at this step, weights of the adaptation heads) -> weight; None = not a part of this run.
        loss: (inputs, config) -> scalar; None if the inputs of this step lack what it needs.
        chance: (config, pairs in the batch, words that the decoder knows) -> loss in nats of a model that has learned
            nothing; None = unknown. The health checks warn if an epoch ends at this level.
        always_listed: tables show its column also if no run has it.
    """

    name: str
    weight_key: str
    weight: Callable[[LossConfig, float, Mapping[str, float]], float | None]
    loss: Callable[[LossInputs, LossConfig], Tensor | None]
    chance: Callable[[LossConfig, int, int], float | None] | None = None
    always_listed: bool = False


def _contrastive(inputs: LossInputs, config: LossConfig) -> Tensor | None:
    from ccaco_cli.core.losses import total

    return None if inputs.alignment is None else total.contrastive_loss(inputs.alignment, config)


def _cross(inputs: LossInputs, config: LossConfig) -> Tensor | None:
    from ccaco_cli.core.losses import total

    return None if inputs.alignment is None else total.cross_branch_loss(inputs.alignment, config)


def _taught(inputs: LossInputs, config: LossConfig) -> Tensor | None:
    from ccaco_cli.core.losses import total

    return None if inputs.alignment is None else total.distillation_loss(inputs.alignment)


def _separation(inputs: LossInputs, config: LossConfig) -> Tensor | None:
    from ccaco_cli.core.losses.separation import separation

    if inputs.alignment is None:
        return None
    alignment = inputs.alignment
    return (separation(alignment.a.z, alignment.group) + separation(alignment.b.z, alignment.group)) / 2


def _domain(inputs: LossInputs, config: LossConfig) -> Tensor | None:
    import torch

    from ccaco_cli.core.losses import domain

    losses = [domain.domain_loss(inputs.domain_loss, features) for features in inputs.domains]
    return torch.stack(losses).mean() if losses else None


def _label(inputs: LossInputs, config: LossConfig) -> Tensor | None:
    from ccaco_cli.core.losses import domain

    if inputs.label_logits is None or inputs.labels is None:
        return None
    return domain.classification(inputs.label_logits, inputs.labels)


def _caption(inputs: LossInputs, config: LossConfig) -> Tensor | None:
    from ccaco_cli.core.losses.caption import caption_loss

    return None if inputs.caption is None else caption_loss(*inputs.caption)


def _answer(inputs: LossInputs, config: LossConfig) -> Tensor | None:
    from ccaco_cli.core.losses.caption import caption_loss

    return None if inputs.answer is None else caption_loss(*inputs.answer)


def _words_chance(config: LossConfig, batch_size: int, words: int) -> float:
    return math.log(max(2, words))


def _cross_chance(config: LossConfig, batch_size: int, words: int) -> float | None:
    from ccaco_cli.core.losses import total

    chance = total.cross_loss(config).chance
    return chance(config, batch_size) if chance else None


def _separation_weight(config: LossConfig, beta: float, heads: Mapping[str, float]) -> float | None:
    return config.separation if config.separation and config.alpha > 0 else None


def _answer_weight(config: LossConfig, beta: float, heads: Mapping[str, float]) -> float | None:
    return config.gamma if config.gamma and config.questions else None


LOSS_PARTS: dict[str, LossPart] = {
    part.name: part
    for part in (
        LossPart("contrastive", "alpha", lambda config, beta, heads: config.alpha, _contrastive, always_listed=True),
        LossPart("cross", "beta", lambda config, beta, heads: beta, _cross, _cross_chance, always_listed=True),
        LossPart("taught", "teach", lambda config, beta, heads: config.teach * beta if config.teach else None, _taught),
        LossPart("domain", "domain_weight", lambda config, beta, heads: heads.get("domain"), _domain),
        LossPart("label", "label_weight", lambda config, beta, heads: heads.get("label"), _label),
        LossPart("separation", "separation_weight", _separation_weight, _separation),
        LossPart("caption", "gamma", lambda config, beta, heads: config.gamma or None, _caption, _words_chance),
        LossPart("answer", "answer_weight", _answer_weight, _answer, _words_chance),
    )
}
"""Name -> part. Learned weights are stored in this order: append new parts."""


def part_weights(config: LossConfig, beta: float, head_weights: Mapping[str, float] | None = None) -> dict[str, float]:
    """Weight of every part of a run at one step, as the config gives it.

    Args:
        beta: weight of the cross loss at this step.
        head_weights: ``Adaptation.weights`` of a run across domains.
    """
    weights = {name: part.weight(config, beta, head_weights or {}) for name, part in LOSS_PARTS.items()}
    return {name: weight for name, weight in weights.items() if weight is not None}


def listed_parts(logged: Iterable[str]) -> tuple[str, ...]:
    """Names of the parts that tables of runs show: those that are in a log, and those that are always listed.

    Args:
        logged: names in the logs of the runs.
    """
    names = set(logged)
    return tuple(name for name, part in LOSS_PARTS.items() if part.always_listed or name in names)
