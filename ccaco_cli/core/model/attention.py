"""Multi-head attention from one set of tokens to another, with any kernel of ``attention_kernels``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ccaco_cli.core.config import FusionConfig
from ccaco_cli.core.model.attention_kernels import Layouts, build_kernel
from ccaco_cli.core.model.layout import Segment


class Attention(nn.Module):
    """Multi-head attention of any kind.

    Args:
        width: D of queries, keys and values.
        config: heads (which divide ``width``), dropout (on the attention, in training only) and kind.
    """

    def __init__(self, width: int, config: FusionConfig):
        super().__init__()
        self.heads, self.dropout = config.heads, config.dropout
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.kernel = build_kernel(width // config.heads, config)

    def forward(
        self, x: Tensor, context: Tensor, mask: Tensor, *, layout: Layouts | None = None, weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Attends from ``x`` to ``context``.

        Args:
            x: [B, N, D].
            context: [B, M, D].
            mask: [B, M] bool, True = real token.
            layout: layouts of both; None = lines.
            weights: also return the attention. The result is then computed from it, so that gradients reach it (for
                explanations).
        Returns:
            [B, N, D], and the attention [B, H, N, M] or None.
        """
        q, k, v = (f(t).unflatten(-1, (self.heads, -1)) for f, t in ((self.q, x), (self.k, context), (self.v, context)))
        layout = layout or line_layouts(x, context)
        scale, attention = q.shape[-1] ** -0.5, None
        if weights:
            attention = self.kernel.weights(q, k, mask, scale=scale, layout=layout)
            out = apply_weights(attention, v)
        else:
            dropout = self.dropout if self.training else 0.0
            out = self.kernel(q, k, v, mask, scale=scale, dropout=dropout, layout=layout)
        attn_out: Tensor = self.out(out.flatten(2))
        return attn_out, attention


def apply_weights(weights: Tensor, v: Tensor) -> Tensor:
    """Applies attention weights [B, H, N, M] to values v [B, M, H, d]: -> [B, N, H, d]."""
    return torch.einsum("bhnm,bmhd->bnhd", weights, v.to(weights.dtype))


def line_layouts(x: Tensor, context: Tensor) -> Layouts:
    """Returns the layouts of tokens x [B, N, D] and context [B, M, D] on lines."""
    return (Segment(x.shape[1]),), (Segment(context.shape[1]),)


def masked_mean(tokens: Tensor, mask: Tensor) -> Tensor:
    """Mean over real tokens: tokens [B, N, D], mask [B, N] bool -> [B, D]; zero where a sample has no real token."""
    weight = mask.unsqueeze(-1).to(tokens.dtype)
    return (tokens * weight).sum(1) / weight.sum(1).clamp_min(1)
