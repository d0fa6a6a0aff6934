"""One update: the only file that joins model and losses."""

from __future__ import annotations

import torch
from torch import Tensor

from ccaco_cli.core.config import DomainConfig, LossConfig
from ccaco_cli.core.losses import domain
from ccaco_cli.core.losses.balance import Balance
from ccaco_cli.core.losses.total import Alignment, sample_pairs, total_loss
from ccaco_cli.core.model.adaptation import Adaptation
from ccaco_cli.core.model.aligner import Aligner
from ccaco_cli.core.types import Encoded, PairBatch

ADVERSARIAL = "dann"
"""The term of a domain loss that asks for a domain classifier."""


def terms(config: DomainConfig) -> tuple[str, ...]:
    """The terms of a run's domain loss. Raises ConfigError: no such loss."""
    return domain.domain_terms(config.loss)


def losses(
    aligner: Aligner,
    batch: PairBatch,
    config: LossConfig,
    beta: float,
    generator: torch.Generator | None = None,
    adaptation: Adaptation | None = None,
    progress: float = 0.0,
    balance: Balance | None = None,
) -> dict[str, Tensor]:
    """Every loss part of one batch (DESIGN section 3).

    beta        the weight of the cross loss at this step; at 0 the cross branch does not run
    generator   draws sub-batch and hard negatives
    adaptation  heads of a run across domains; ``progress`` is the share 0..1 of the run that is done
    balance     multiplies the weights of the parts; None = as the configs give them
    Returns     {"contrastive", "cross", "domain", "label", "total"}: scalars, those that the configs ask for; and "domain_accuracy" 0..1,
                no loss, where there is a domain classifier
    """
    first, second = aligner.modalities
    given = {first: batch.a, second: batch.b}
    aligned = config.alpha > 0 or beta > 0
    every = {m: aligner.encode(m, x) for m, x in given.items() if aligned or (adaptation is not None and m in adaptation.reads)}
    alignment = None
    if aligned:
        a, b = every[first][: len(batch.rows)], every[second][: len(batch.rows)]  # behind them lie samples without a partner
        alignment = Alignment(a, b, batch.group, aligner.logit_scale())
        if beta > 0:
            pairs = sample_pairs(a, b, batch.group, config, generator)
            crossed = aligner.cross(aligner.local(first, a[pairs.rows]), aligner.local(second, b[pairs.rows]), pairs.index)
            alignment = Alignment(a, b, batch.group, aligner.logit_scale(), crossed, pairs)
    if adaptation is None:
        return total_loss(alignment, config, beta, balance)
    further, accuracy = _adapted(every, batch, adaptation, progress)
    return total_loss(alignment, config, beta, balance, further) | accuracy


def shared(aligner: Aligner) -> list[Tensor]:
    """The last parameters that the loss parts share: the projections of both sides (``GradNorm`` compares gradients there)."""
    return [p for side in aligner.sides.values() for p in side.project.parameters()]  # type: ignore[union-attr,operator]


def _adapted(
    every: dict[str, Encoded], batch: PairBatch, adaptation: Adaptation, progress: float
) -> tuple[dict[str, tuple[float, Tensor]], dict[str, Tensor]]:
    config, factor = adaptation.config, domain.ramp(progress)
    parts, right = [], []
    for modality in adaptation.domains:
        features, codes = adaptation.features(every[modality]), adaptation.domain(every[modality], batch.domain)
        logits = None
        if modality in adaptation.critics:
            logits = adaptation.critics[modality](domain.reverse(features, factor))
            right.append((logits.argmax(1) == codes).float().mean())
        parts.append(domain.domain_loss(config.loss, domain.Seen(features, codes, factor, logits)))
    further = {"domain": (adaptation.weights["domain"], torch.stack(parts).mean())} if parts else {}
    if adaptation.classify:
        paired = every[adaptation.classify][: len(batch.rows)]
        label = domain.classification(adaptation.predict(paired), adaptation.label[batch.rows])
        further["label"] = (adaptation.weights["label"], label)
    return further, {"domain_accuracy": torch.stack(right).mean()} if right else {}
