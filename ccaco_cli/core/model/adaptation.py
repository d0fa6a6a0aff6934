"""Heads that are trained beside the aligner across domains: domain classifiers and a label predictor.

A finished model does not contain them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ccaco_cli.core.config import DomainConfig

HIDDEN = 4
"""Width of the domain classifier in units of its input: 1024 at 256."""
DROPOUT = 0.5


@dataclass(frozen=True, eq=False)
class AdaptationTask:
    """What the heads learn.

    Attributes:
        domains: modality -> number of domains that its classifier separates, for each modality that is aligned across
            domains.
        source_code: [domains of the data set] int64, number of each source domain among the sources.
        label: [rows of the training split] int64, class of each row; -1 = none.
        adversarial: train domain classifiers.
        classify: the modality that the label predictor reads; "" = none.
        classes: classes of the label predictor; 0 = no label predictor.
    """

    domains: Mapping[str, int]
    source_code: Tensor
    label: Tensor
    adversarial: bool
    classify: str = ""
    classes: int = 0


class Adaptation(nn.Module):
    """Domain classifiers and a label predictor on the embeddings.

    Args:
        config: domain settings of the run.
        width: E of the embeddings.
        task: domains and classes.
    """

    source_code: Tensor
    label: Tensor

    def __init__(self, config: DomainConfig, width: int, task: AdaptationTask):
        super().__init__()
        self.config, self.domains, self.classify = config, dict(task.domains), task.classify
        classified = task.domains if task.adversarial else {}
        self.domain_classifiers = nn.ModuleDict({m: _domain_classifier(width, n) for m, n in classified.items()})
        self.predictor = nn.Linear(width, task.classes) if task.classes else None
        self.register_buffer("source_code", task.source_code, persistent=False)
        self.register_buffer("label", task.label, persistent=False)

    @property
    def modalities(self) -> set[str]:
        """The modalities whose embeddings the heads read."""
        return {*self.domains, self.classify} - {""}

    def predictor_parameters(self) -> list[nn.Parameter]:
        """The parameters of the label predictor."""
        return [] if self.predictor is None else list(self.predictor.parameters())

    @property
    def weights(self) -> dict[str, float]:
        """Loss part -> weight in the config, for the parts that these heads add."""
        parts = {"domain": self.config.weight} if self.domains else {}
        return parts | ({"label": self.config.classify} if self.classify else {})

    @staticmethod
    def features(z: Tensor) -> Tensor:
        """Scales embeddings [B, E] to length sqrt(E).

        The length is fixed because a loss on vectors of free length can fall by shrinking them, which does not change
        retrieval.
        """
        return z * math.sqrt(z.shape[1])

    def domain_labels(self, z: Tensor, domain: Tensor) -> Tensor:
        """Returns the targets of the domain classifier.

        Args:
            z: [n, E]; the first B samples are pairs, further samples are of the target domain.
            domain: [B] int64, domain of each pair.
        Returns:
            [n] int64: source 0 and target 1 where there are target samples, else the numbers of the source domains.
        """
        pairs, samples = len(domain), len(z)
        if samples == pairs:
            return self.source_code[domain]
        return (torch.arange(samples, device=domain.device) >= pairs).long()

    def predict(self, z: Tensor) -> Tensor:
        """Embeddings [B, E] -> class logits [B, C]."""
        if self.predictor is None:
            raise RuntimeError("this run has no label predictor")
        logits: Tensor = self.predictor(self.features(z))
        return logits


def _domain_classifier(width: int, domains: int) -> nn.Module:
    """The domain classifier of DANN's larger networks (arXiv:1505.07818, fig. 4): two hidden layers with dropout."""
    hidden = HIDDEN * width
    layers = [
        nn.Linear(width, hidden),
        nn.ReLU(),
        nn.Dropout(DROPOUT),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Dropout(DROPOUT),
    ]
    return nn.Sequential(*layers, nn.Linear(hidden, domains))
