"""One training step: the only module that joins the model and the losses."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from ccaco_cli.core import distributed
from ccaco_cli.core.config import DomainConfig, LossConfig, ParallelConfig, RunConfig
from ccaco_cli.core.losses import domain
from ccaco_cli.core.losses.balance import Balance, beta_at
from ccaco_cli.core.losses.parts import part_weights
from ccaco_cli.core.losses.total import Alignment, LossInputs, sample_pairs, total_loss
from ccaco_cli.core.model.adaptation import Adaptation
from ccaco_cli.core.model.aligner import Aligner
from ccaco_cli.core.model.global_batch import paired_rows
from ccaco_cli.core.training.gather import gather_embeddings, gather_local_tokens, query_rows
from ccaco_cli.core.types import Embedding, Features, PairBatch, Words

DOMAIN_ACCURACY = "domain_accuracy"
"""Accuracy of the domain classifiers 0..1 in the results of a step; not a loss."""


Prediction = tuple[Tensor, Tensor]
"""Logits [B, L, U] and targets [B, L] of texts, for ``caption_loss``."""
SAMPLED_STEPS = 1000
"""Points of a run at which ``trains_same_parameters`` reads the schedule of the cross loss."""


def uses_domain_loss(config: DomainConfig) -> bool:
    """Whether a run has a domain loss. Raises ConfigError: no such loss."""
    return bool(domain.domain_terms(config.loss))


def uses_domain_classifier(config: DomainConfig) -> bool:
    """Whether the domain loss of a run is adversarial. Raises ConfigError: no such loss."""
    return domain.ADVERSARIAL in domain.domain_terms(config.loss)


class StepLosses(nn.Module):
    """Computes the losses of one batch: encode, gather over processes, cross branch, weighted sum.

    A module, since DDP and FSDP wrap the forward of one.

    Args:
        aligner: the model.
        config: weights and settings of the losses.
        parallel: how the batches of several processes are joined.
        adaptation: heads of a run across domains.
        balance: multiplies the weights of the parts; None = weights of the config.
    """

    def __init__(
        self,
        aligner: Aligner,
        config: LossConfig,
        parallel: ParallelConfig | None = None,
        adaptation: Adaptation | None = None,
        balance: Balance | None = None,
    ):
        super().__init__()
        self.aligner, self.config, self.adaptation, self.balance = aligner, config, adaptation, balance
        self.parallel = parallel or ParallelConfig()

    def forward(
        self, batch: PairBatch, beta: float, generator: torch.Generator | None = None, progress: float = 0.0
    ) -> dict[str, Tensor]:
        """The losses of the joined batches of all processes.

        Args:
            batch: pairs of this process.
            beta: weight of the cross loss at this step; at 0 the cross branch does not run.
            generator: draws sub-batch and hard negatives, equally on every process.
            progress: how much of the run is done, 0..1.
        Returns:
            Loss part -> scalar, "total", and "domain_accuracy" (0..1) if there is a domain classifier.
        """
        pairs = len(batch.rows)
        features, embeddings = self._encode(batch, beta)
        paired = {m: gather_embeddings(x[:pairs], self.parallel) for m, x in embeddings.items()}
        alignment = self._alignment(batch, paired) if self._aligns(beta) else None
        if alignment is not None and beta > 0:
            alignment = self._with_cross(alignment, batch, features, generator)
        caption, answer = self._texts(batch, features)
        inputs = LossInputs(alignment, caption=caption, answer=answer)
        metrics: dict[str, Tensor] = {}
        head_weights: dict[str, float] = {}
        if self.adaptation is not None:
            # samples without a partner follow the pairs, in each batch and in the joined one
            unpaired = {m: gather_embeddings(x[pairs:], self.parallel) for m, x in embeddings.items()}
            z = {m: torch.cat([x.z, unpaired[m].z]) for m, x in paired.items()}
            inputs, metrics = _with_heads(inputs, self.adaptation, z, batch, progress)
            head_weights = self.adaptation.weights
        weights = part_weights(self.config, beta, head_weights)
        return total_loss(inputs, self.config, weights, self.balance) | metrics

    def _aligns(self, beta: float) -> bool:
        return self.config.alpha > 0 or beta > 0

    def _encode(self, batch: PairBatch, beta: float) -> tuple[dict[str, Features], dict[str, Embedding]]:
        """Encodes the modalities that the losses read.

        Returns:
            Modality -> tower outputs of every sample, and modality -> embeddings with one row per pair.
        """
        sides = zip(self.aligner.modalities, (batch.a, batch.b), (batch.at_a, batch.at_b), strict=True)
        features: dict[str, Features] = {}
        embeddings: dict[str, Embedding] = {}
        with paired_rows(len(batch.rows)):
            for modality, samples, sample_index in sides:
                if self._aligns(beta) or (self.adaptation is not None and modality in self.adaptation.modalities):
                    embedding, features[modality] = self.aligner.encode(modality, samples)
                    embeddings[modality] = embedding if sample_index is None else embedding[sample_index]
        return features, embeddings

    def _alignment(self, batch: PairBatch, paired: dict[str, Embedding]) -> Alignment:
        a, b = (paired[modality] for modality in self.aligner.modalities)
        return Alignment(
            a,
            b,
            group=distributed.gather(batch.group),
            logit_scale=self.aligner.logit_scale(),
            query_rows=query_rows(batch, self.parallel),
            vectors=self.aligner.config.vectors,
            logit_bias=self.aligner.logit_bias,
        )

    def _texts(self, batch: PairBatch, features: dict[str, Features]) -> tuple[Prediction | None, Prediction | None]:
        """Predicts the caption of each pair of this process, and answers to questions about it: (captions, answers)."""
        aligner = self.aligner
        if aligner.decoder is None or batch.words is None:
            return None, None
        pairs = len(batch.rows)
        index = batch.at_a if aligner.described == aligner.modalities[0] else batch.at_b
        described = features[aligner.described]
        described = described[:pairs] if index is None else described
        memory = aligner.memory(described)

        def predict(words: Words) -> Prediction:
            per_pair = len(words.ids) // pairs
            of_text = None if index is None else index[:pairs]
            if per_pair > 1:
                of_text = torch.arange(pairs, device=memory.device) if of_text is None else of_text
                of_text = of_text.repeat_interleave(per_pair)
            with paired_rows(len(words.ids)):
                predicted = aligner.decoder(memory, described.mask, words, of_text)  # type: ignore[misc]
            return predicted.logits, predicted.targets

        return predict(batch.words), None if batch.questions is None else predict(batch.questions)

    def _with_cross(
        self, alignment: Alignment, batch: PairBatch, features: dict[str, Features], generator: torch.Generator | None
    ) -> Alignment:
        """Draws pairs of the joined batch and runs the cross branch on them."""
        pairs = sample_pairs(alignment.a, alignment.b, alignment.group, self.config, generator)
        tokens_a, tokens_b = (
            gather_local_tokens(
                self.aligner, modality, features[modality], sample_index, pairs.rows, len(batch.rows), self.parallel
            )
            for modality, sample_index in zip(self.aligner.modalities, (batch.at_a, batch.at_b), strict=True)
        )
        return replace(alignment, crossed=self.aligner.cross(tokens_a, tokens_b, pairs.index), pairs=pairs)


def _with_heads(
    inputs: LossInputs, adaptation: Adaptation, z: dict[str, Tensor], batch: PairBatch, progress: float
) -> tuple[LossInputs, dict[str, Tensor]]:
    """Runs the domain classifiers and the label predictor.

    Args:
        z: modality -> [n, E], embeddings of all processes; the pairs come first.
        batch: of this process.
    Returns:
        Loss inputs with domain features and label logits; {"domain_accuracy": 0..1} if there is a classifier.
    """
    domain_of_pair, rows = distributed.gather(batch.domain), distributed.gather(batch.rows)
    ramp = domain.ramp(progress)
    domains, accuracies = [], []
    for modality, count in adaptation.domains.items():
        features, codes = adaptation.features(z[modality]), adaptation.domain_labels(z[modality], domain_of_pair)
        logits = None
        if modality in adaptation.domain_classifiers:
            logits = adaptation.domain_classifiers[modality](domain.reverse(features, ramp))
            accuracies.append((logits.argmax(1) == codes).float().mean())
        domains.append(domain.DomainFeatures(features, codes, ramp, count, logits))
    inputs = replace(inputs, domain_loss=adaptation.config.loss, domains=domains)
    if adaptation.classify:
        label_logits = adaptation.predict(z[adaptation.classify][: len(rows)])
        inputs = replace(inputs, label_logits=label_logits, labels=adaptation.label[rows])
    return inputs, {DOMAIN_ACCURACY: torch.stack(accuracies).mean()} if accuracies else {}


def shared_parameters(aligner: Aligner) -> list[Tensor]:
    """The projections of both modalities: the last parameters that all loss parts share, where GradNorm reads
    gradients."""
    return [p for modality in aligner.modalities for p in aligner.encoder(modality).shared_parameters()]


def trains_same_parameters(config: RunConfig) -> bool:
    """Whether every step of a run trains the same parameters.

    DDP then learns in the first step which ones have no gradient, in place of a search of the graph in every step. The
    parameters differ while the weight of the cross loss is still zero. DDP counts the gradients of each parameter in
    the first backward pass, which must therefore be the only one of its step: gradients are not accumulated, and
    GradNorm does not compute norms of its own.
    """
    betas = {beta_at(config.loss, step / SAMPLED_STEPS) > 0 for step in range(SAMPLED_STEPS + 1)}
    return len(betas) == 1 and config.optim.accum_freq == 1 and config.loss.balance != "gradnorm"
