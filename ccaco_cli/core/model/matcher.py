"""What every matcher shares: the interface, and all pairs as a special case of listed pairs.

A matcher computes one match logit for each pair from the local tokens of both samples. It has two steps, so that an
index can store the result of the first and only the second runs at query time: ``local`` prepares the tokens of one
modality, ``forward`` scores pairs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ccaco_cli.core.config import FusionConfig
from ccaco_cli.core.model.attention_kernels import Kernel, Layouts
from ccaco_cli.core.model.layout import LINE, Layout
from ccaco_cli.core.types import Crossed, LocalTokens

MAX_SCALE = 100.0
RECOMPUTED_TOKENS = 1 << 16
"""With gradient checkpointing, listed pairs are scored in parts of so many tokens."""


class Matcher(nn.Module, ABC):
    """Base class of matchers.

    Attributes:
        kinds: attention kinds that it can use (class attribute).
        width: D of the tokens that ``local`` takes and returns.
        layouts: layouts of both modalities.
        local_width: numbers of a token that ``local`` returns; D unless a matcher adds some.
        checkpointing: recompute activations of listed pairs in the backward pass.
    """

    kinds: tuple[str, ...] = ("dense",)

    def __init__(self, width: int, config: FusionConfig, layouts: tuple[Layout, Layout] = (LINE, LINE)):
        super().__init__()
        self.width, self.config, self.layouts = width, config, layouts
        self.local_width = width
        self.checkpointing = False

    def token_layouts(self, a: LocalTokens, b: LocalTokens) -> Layouts:
        """Returns the layouts of these tokens."""
        layout_a, layout_b = self.layouts
        return (layout_a.segment(a.tokens.shape[1]),), (layout_b.segment(b.tokens.shape[1]),)

    def local(self, side: int, tokens: Tensor, mask: Tensor) -> Tensor:
        """Prepares the tokens of modality ``side`` (0 = a, 1 = b).

        Args:
            tokens, mask: [R, N, D] and [R, N] bool.
        Returns:
            [R, N, local_width].
        """
        return tokens

    def forward(
        self, a: LocalTokens, b: LocalTokens, index: Tensor | None = None, *, attention: bool = False
    ) -> Crossed:
        """Scores pairs.

        Args:
            a, b: tokens of A and B samples, prepared by ``local``.
            index: [M, 2] int64, rows of a and b; None = all A x B pairs.
            attention: also return the attention of each token of b over those of a, by head (listed pairs only).
        Returns:
            Crossed with match_logit [M] or [A, B].
        """
        if self.training:
            for module in self.modules():
                if isinstance(module, Kernel):
                    module.refresh()
        if index is not None:
            if self.checkpointing and self.training:
                return self._score_recomputed(a, b, index)
            return self.pairs(a[index[:, 0]], b[index[:, 1]], attention)
        rows_a, rows_b = (torch.arange(len(x.mask), device=x.mask.device) for x in (a, b))
        crossed = self.pairs(a[rows_a.repeat_interleave(len(rows_b))], b[rows_b.repeat(len(rows_a))])
        return Crossed(crossed.match_logit.view(len(rows_a), len(rows_b)), drift=crossed.drift)

    def _score_recomputed(self, a: LocalTokens, b: LocalTokens, index: Tensor) -> Crossed:
        """Scores listed pairs in parts whose activations are recomputed in the backward pass (arXiv:1604.06174)."""

        def score(part: Tensor) -> tuple[Tensor, Tensor | None]:
            crossed = self.pairs(a[part[:, 0]], b[part[:, 1]])
            return crossed.match_logit, crossed.drift

        parts = torch.split(index, max(1, RECOMPUTED_TOKENS // (a.tokens.shape[1] + b.tokens.shape[1])))
        scores = [checkpoint(score, part, use_reentrant=False) for part in parts]
        drifts = [
            drift * (len(part) / len(index))
            for part, (_, drift) in zip(parts, scores, strict=True)
            if drift is not None
        ]
        return Crossed(torch.cat([logit for logit, _ in scores]), drift=torch.stack(drifts).sum() if drifts else None)

    @abstractmethod
    def pairs(self, a: LocalTokens, b: LocalTokens, attention: bool = False) -> Crossed:
        """Scores row i of a against row i of b."""


class CosineMatcher(Matcher):
    """Base class of matchers whose score is a cosine times a learned, clamped scale."""

    def __init__(self, width: int, config: FusionConfig, layouts: tuple[Layout, Layout] = (LINE, LINE)):
        super().__init__(width, config, layouts)
        self.log_scale = nn.Parameter(torch.tensor(config.scale).log())

    def scale(self) -> Tensor:
        """The scalar that multiplies cosines."""
        return self.log_scale.exp().clamp(max=MAX_SCALE)
