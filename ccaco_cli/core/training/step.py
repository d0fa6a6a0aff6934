"""One update: the only file that joins model and losses."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from ccaco_cli.core import distributed
from ccaco_cli.core.config import DomainConfig, LossConfig, ParallelConfig
from ccaco_cli.core.losses import domain
from ccaco_cli.core.losses.balance import Balance
from ccaco_cli.core.losses.total import Alignment, sample_pairs, total_loss
from ccaco_cli.core.model.adaptation import Adaptation
from ccaco_cli.core.model.aligner import Aligner
from ccaco_cli.core.model.wholebatch import paired_rows
from ccaco_cli.core.types import Embedding, Features, LocalTokens, PairBatch

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
    parallel: ParallelConfig | None = None,
) -> dict[str, Tensor]:
    """Every loss part of one batch (DESIGN section 3).

    batch       of this process; the losses see the batch of all processes together
    beta        the weight of the cross loss at this step; at 0 the cross branch does not run
    generator   draws sub-batch and hard negatives, alike on every process
    adaptation  heads of a run across domains; ``progress`` is the share 0..1 of the run that is done
    balance     multiplies the weights of the parts; None = as the configs give them
    Returns     {"contrastive", "cross", "domain", "label", "total"}: scalars, those that the configs ask for; and "domain_accuracy" 0..1,
                no loss, where there is a domain classifier
    """
    parallel = parallel or ParallelConfig()
    first, second = aligner.modalities
    given, at, pairs_here = {first: batch.a, second: batch.b}, {first: batch.at_a, second: batch.at_b}, len(batch.rows)
    aligned = config.alpha > 0 or beta > 0
    with paired_rows(pairs_here):
        encoded = {
            m: aligner.encode(m, x)
            for m, x in given.items()
            if aligned or (adaptation is not None and m in adaptation.reads)
        }
    vectors = {m: x if at[m] is None else x[at[m]] for m, (x, _) in encoded.items()}
    paired = {
        m: together(x[:pairs_here], parallel) for m, x in vectors.items()
    }  # behind them lie samples without a partner
    alignment = None
    if aligned:
        a, b = paired[first], paired[second]
        group, scale = distributed.gather(batch.group), aligner.logit_scale()
        alignment = Alignment(a, b, group, scale, rows=_queries(batch, parallel), vectors=aligner.config.vectors)
        if beta > 0:
            pairs = sample_pairs(a, b, alignment.group, config, generator)
            local_a, local_b = (
                _chosen(aligner, m, encoded[m][1], at[m], pairs.rows, pairs_here, parallel) for m in (first, second)
            )
            alignment = replace(alignment, crossed=aligner.cross(local_a, local_b, pairs.index), pairs=pairs)
    if adaptation is None:
        return total_loss(alignment, config, beta, balance)
    lone = {m: together(x[pairs_here:], parallel).z for m, x in vectors.items()}
    every = {m: torch.cat([x.z, lone[m]]) for m, x in paired.items()}
    codes, rows = distributed.gather(batch.domain), distributed.gather(batch.rows)
    further, accuracy = _adapted(every, codes, rows, adaptation, progress)
    return total_loss(alignment, config, beta, balance, further) | accuracy


def together(embedding: Embedding, parallel: ParallelConfig) -> Embedding:
    """The embeddings of all processes as one batch, on every process. A single process gets its own back."""
    if distributed.world() == 1:
        return embedding
    pooled, z = (distributed.gather(x, through=parallel.gather_with_grad) for x in (embedding.pooled, embedding.z))
    return Embedding(z, pooled)


def _chosen(
    aligner: Aligner,
    modality: str,
    features: Features,
    at: Tensor | None,
    rows: Tensor,
    pairs_here: int,
    parallel: ParallelConfig,
) -> LocalTokens:
    """Prepared tokens of the chosen rows of the batch of all processes.

    Every process then runs the cross branch on all of them: it is a sub-batch of fixed size, and each loss stays exact, with dropout too.
    """
    if distributed.world() == 1:
        return aligner.local_tokens(modality, features[rows if at is None else at[rows]])
    mine, place = distributed.shares(rows, pairs_here)
    prepared = aligner.local_tokens(modality, features[mine])
    tokens = distributed.gather(distributed.padded(prepared.tokens), through=parallel.gather_with_grad)
    mask = distributed.gather(distributed.padded(prepared.mask.to(torch.uint8))).bool()
    return LocalTokens(tokens, mask)[place]  # type: ignore[no-any-return]


def _queries(batch: PairBatch, parallel: ParallelConfig) -> slice | None:
    if distributed.world() == 1 or not parallel.local_loss:
        return None
    rows = len(batch.group)
    return slice(distributed.rank() * rows, (distributed.rank() + 1) * rows)


def shared(aligner: Aligner) -> list[Tensor]:
    """The last parameters that the loss parts share: the projections of both sides (``GradNorm`` compares gradients there)."""
    return [p for side in aligner.sides.values() for p in side.heads[0].project.parameters()]  # type: ignore[union-attr,index]


def _adapted(
    every: dict[str, Tensor], domain_of: Tensor, rows: Tensor, adaptation: Adaptation, progress: float
) -> tuple[dict[str, tuple[float, Tensor]], dict[str, Tensor]]:
    """The heads read embeddings z [n, E] of all processes: of every sample the pairs come first, and ``domain_of`` and ``rows`` are theirs."""
    config, factor = adaptation.config, domain.ramp(progress)
    parts, right = [], []
    for modality in adaptation.domains:
        features, codes = adaptation.features(every[modality]), adaptation.domain(every[modality], domain_of)
        logits = None
        if modality in adaptation.critics:
            logits = adaptation.critics[modality](domain.reverse(features, factor))
            right.append((logits.argmax(1) == codes).float().mean())
        parts.append(domain.domain_loss(config.loss, domain.DomainFeatures(features, codes, factor, logits)))
    further = {"domain": (adaptation.weights["domain"], torch.stack(parts).mean())} if parts else {}
    if adaptation.classify:
        logits = adaptation.predict(every[adaptation.classify][: len(rows)])
        label = domain.classification(logits, adaptation.label[rows])
        further["label"] = (adaptation.weights["label"], label)
    return further, {"domain_accuracy": torch.stack(right).mean()} if right else {}


class Losses(nn.Module):
    """``losses`` as a module, for engines that take hold of a model by its forward (DDP, FSDP)."""

    def __init__(
        self,
        aligner: Aligner,
        config: LossConfig,
        parallel: ParallelConfig,
        adaptation: Adaptation | None = None,
        balance: Balance | None = None,
    ):
        super().__init__()
        self.aligner, self.config, self.parallel, self.adaptation, self.balance = (
            aligner,
            config,
            parallel,
            adaptation,
            balance,
        )

    def forward(
        self, batch: PairBatch, beta: float, generator: torch.Generator | None = None, progress: float = 0.0
    ) -> dict[str, Tensor]:
        return losses(
            self.aligner, batch, self.config, beta, generator, self.adaptation, progress, self.balance, self.parallel
        )
