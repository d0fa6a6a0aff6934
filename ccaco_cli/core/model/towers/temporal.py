"""Time: what audio and video towers put over their tokens, one a moment."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

HEADS = 4
MOMENTUM = 0.3
"""Of the batch norms of small towers: a clip is many samples, and runs are short, so that statistics must follow the weights quickly."""


class Moments(nn.Module):
    """Tokens of successive moments, each told when it is and what comes before and after it: a transformer that starts as the identity.

    Positions are sines and cosines (arXiv:1706.03762, section 3.5), so that a clip may be longer than those learned from; how much they
    weigh is learned.
    """

    def __init__(self, width: int, layers: int, gain: float = 1.0):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))
        layer = nn.TransformerEncoderLayer(width, HEADS, 2 * width, 0.1, "gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        for one in self.encoder.layers:
            nn.init.zeros_(one.self_attn.out_proj.weight)  # type: ignore[union-attr, arg-type]
            nn.init.zeros_(one.linear2.weight)  # type: ignore[union-attr, arg-type]
            nn.init.zeros_(one.linear2.bias)  # type: ignore[union-attr, arg-type]

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """tokens [B, N, W], mask [B, N] True = real -> [B, N, W], zeros where the mask is False."""
        placed = tokens + self.gain * positions(tokens.shape[1], tokens.shape[2]).to(tokens)
        seen: Tensor = self.encoder(placed, src_key_padding_mask=~mask)
        return seen * mask.unsqueeze(-1)


def positions(count: int, width: int) -> Tensor:
    """[count, width] sines and cosines of wavelengths from 2 pi to 10,000 * 2 pi."""
    rate = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))
    angle = torch.arange(count)[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)[:, :width]
