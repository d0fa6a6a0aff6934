"""What training across domains needs beside the aligner: domain classifiers and a label predictor. No part of a finished model."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ccaco_cli.core.config import DomainConfig

HIDDEN = 4
"""Width of the domain classifier in units of its input: 1024 at 256."""
DROPOUT = 0.5


class Adaptation(nn.Module):
    """Heads on the shared features.

    config       as the run has it
    domains      modality -> how many domains its classifier tells apart, for each side that is aligned
    classify     the modality that the label predictor reads
    source_code  [domains of the data set] int64: number of a source among the sources
    label        [rows of the training split] int64, class of each row; -1 = none
    classes      0 = no label predictor
    """

    source_code: Tensor
    label: Tensor

    def __init__(
        self,
        config: DomainConfig,
        width: int,
        domains: Mapping[str, int],
        source_code: Tensor,
        label: Tensor,
        *,
        adversarial: bool,
        classify: str = "",
        classes: int = 0,
    ):
        super().__init__()
        self.config, self.domains, self.classify = config, dict(domains), classify
        self.critics = nn.ModuleDict({m: _critic(width, n) for m, n in domains.items()} if adversarial else {})
        self.predictor = nn.Linear(width, classes) if classes else None
        self.register_buffer("source_code", source_code, persistent=False)
        self.register_buffer("label", label, persistent=False)

    @property
    def reads(self) -> set[str]:
        """The modalities whose features the heads read."""
        return {*self.domains, self.classify} - {""}

    def others(self) -> list[nn.Parameter]:
        """Parameters of the heads that are not adversaries."""
        return [] if self.predictor is None else list(self.predictor.parameters())

    @property
    def weights(self) -> dict[str, float]:
        """Loss part -> the weight that the config gives it, of the parts that these heads add."""
        parts = {"domain": self.config.weight} if self.domains else {}
        return parts | ({"label": self.config.classify} if self.classify else {})

    @staticmethod
    def features(z: Tensor) -> Tensor:
        """[B, E]: the embedding at length sqrt(E). With its free length a loss could fall by shrinking, which does not change retrieval."""
        return z * math.sqrt(z.shape[1])

    def domain(self, z: Tensor, domain: Tensor) -> Tensor:
        """[n] int64 codes of n samples, the first B of which are pairs with ``domain`` [B]: source 0 and target 1 where there are samples
        of the target; else the sources' own numbers."""
        pairs, every = len(domain), len(z)
        if every == pairs:
            return self.source_code[domain]
        return (torch.arange(every, device=domain.device) >= pairs).long()

    def predict(self, z: Tensor) -> Tensor:
        """Embeddings [B, E] -> class logits [B, C]."""
        if self.predictor is None:
            raise RuntimeError("this run has no label predictor")
        logits: Tensor = self.predictor(self.features(z))
        return logits


def _critic(width: int, domains: int) -> nn.Module:
    """The domain classifier of the larger nets of DANN (arXiv:1505.07818, fig. 4): two hidden layers with ReLU and dropout."""
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
