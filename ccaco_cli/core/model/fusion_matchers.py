"""Matchers that fuse the tokens of both modalities and classify the result: coattention, unified, early, concat."""

from __future__ import annotations

import torch
from torch import nn

from ccaco_cli.core.config import FusionConfig
from ccaco_cli.core.model.attention import masked_mean
from ccaco_cli.core.model.attention_kernels import KINDS
from ccaco_cli.core.model.fusion import CoAttentionBlock, SingleStream, Stream, mlp
from ccaco_cli.core.model.layout import LINE, Layout
from ccaco_cli.core.model.matcher import Matcher
from ccaco_cli.core.types import Crossed, LocalTokens


class CoAttention(Matcher):
    """Co-attention blocks, then one logit from the product of both means (ViLBERT, arXiv:1908.02265, sec. 3.2)."""

    kinds = tuple(KINDS)

    def __init__(self, width: int, config: FusionConfig, layouts: tuple[Layout, Layout] = (LINE, LINE)):
        super().__init__(width, config, layouts)
        self.blocks = nn.ModuleList(CoAttentionBlock(width, config) for _ in range(config.layers))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.head = mlp(width, config.dropout, 1)

    def pairs(self, a: LocalTokens, b: LocalTokens, attention: bool = False) -> Crossed:
        fused_a, fused_b, weights = a.tokens, b.tokens, None
        layout = self.token_layouts(a, b)
        for block in self.blocks:
            fused_a, fused_b, weights = block(fused_a, a.mask, fused_b, b.mask, layout=layout, weights=attention)
        drift = (
            masked_mean((fused_a - a.tokens).square(), a.mask).mean()
            + masked_mean((fused_b - b.tokens).square(), b.mask).mean()
        )
        product = self.norms[0](masked_mean(fused_a, a.mask)) * self.norms[1](masked_mean(fused_b, b.mask))
        return Crossed(self.head(product).squeeze(-1), fused_a, fused_b, weights, drift)


class Unified(Matcher):
    """One single-stream transformer over the tokens of both modalities, and one logit from their joint mean."""

    kinds = tuple(KINDS)

    def __init__(self, width: int, config: FusionConfig, layouts: tuple[Layout, Layout] = (LINE, LINE)):
        super().__init__(width, config, layouts)
        self.stream = SingleStream(width, config)
        self.norm = nn.LayerNorm(width)
        self.head = mlp(width, config.dropout, 1)

    def pairs(self, a: LocalTokens, b: LocalTokens, attention: bool = False) -> Crossed:
        fused_a, fused_b, weights = self.stream(
            a.tokens, a.mask, b.tokens, b.mask, layout=self.token_layouts(a, b), weights=attention
        )
        joint_mean = masked_mean(torch.cat([fused_a, fused_b], 1), torch.cat([a.mask, b.mask], 1))
        return Crossed(self.head(self.norm(joint_mean)).squeeze(-1), fused_a, fused_b, weights)


class Early(Matcher):
    """Early fusion: one shared encoder over the tokens of both modalities, without modality embeddings."""

    kinds = tuple(KINDS)

    def __init__(self, width: int, config: FusionConfig, layouts: tuple[Layout, Layout] = (LINE, LINE)):
        super().__init__(width, config, layouts)
        self.stream = Stream(width, config)
        self.head = nn.Sequential(nn.LayerNorm(width), mlp(width, config.dropout, 1))

    def pairs(self, a: LocalTokens, b: LocalTokens, attention: bool = False) -> Crossed:
        mask = torch.cat([a.mask, b.mask], 1)
        layout_a, layout_b = self.token_layouts(a, b)
        fused, _ = self.stream(torch.cat([a.tokens, b.tokens], 1), mask, layout_a + layout_b)
        return Crossed(self.head(masked_mean(fused, mask)).squeeze(-1))


class Concat(Matcher):
    """Concatenated mean tokens, then fully connected layers: the plain baseline of the field."""

    def __init__(self, width: int, config: FusionConfig, layouts: tuple[Layout, Layout] = (LINE, LINE)):
        super().__init__(width, config, layouts)
        self.head = nn.Sequential(nn.LayerNorm(2 * width), mlp(2 * width, config.dropout, 1))

    def pairs(self, a: LocalTokens, b: LocalTokens, attention: bool = False) -> Crossed:
        means = torch.cat([masked_mean(a.tokens, a.mask), masked_mean(b.tokens, b.mask)], -1)
        return Crossed(self.head(means).squeeze(-1))
