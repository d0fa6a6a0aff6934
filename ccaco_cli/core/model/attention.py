"""Multi-head attention from one set of tokens to another."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Dense multi-head attention (arXiv:1706.03762, eq. 1) through ``scaled_dot_product_attention``.

    width    D of queries, keys and values
    heads    divides width
    dropout  on the attention weights, in training only
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, context: Tensor, mask: Tensor, *, weights: bool = False) -> tuple[Tensor, Tensor | None]:
        """Looks from ``x`` at ``context``.

        x        [B, N, D]
        context  [B, M, D]
        mask     [B, M] bool, True = real token
        weights  also return the attention, [B, N, M], mean over heads (explanations only: it is never built in training)
        Returns  ([B, N, D], weights or None)
        """
        q, k, v = (self._split(f(t)) for f, t in ((self.q, x), (self.k, context), (self.v, context)))
        seen = mask[:, None, None, :]
        found = None
        if weights:
            scores = (q @ k.transpose(-1, -2)) / q.shape[-1] ** 0.5
            found = scores.masked_fill(~seen, -torch.inf).softmax(-1).mean(1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, dropout_p=self.dropout if self.training else 0.0)
        brought: Tensor = self.out(out.transpose(1, 2).flatten(2))
        return brought, found

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2)


def masked_mean(tokens: Tensor, mask: Tensor) -> Tensor:
    """Mean over real tokens: tokens [B, N, D], mask [B, N] bool -> [B, D]; zeros where a sample has none."""
    weight = mask.unsqueeze(-1).to(tokens.dtype)
    return (tokens * weight).sum(1) / weight.sum(1).clamp_min(1)
