"""The transformer over time of audio and video towers, whose tokens are moments of a clip."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

HEADS = 4
BATCH_NORM_MOMENTUM = 0.3
"""Of small towers. A clip is many samples and runs are short, so statistics must follow the weights quickly."""


class TemporalTransformer(nn.Module):
    """Adds time to the tokens of successive moments: positions, and a transformer that starts as the identity.

    Positions are sinusoidal (arXiv:1706.03762, section 3.5), so that a clip can be longer than those of training; their
    gain is learned.
    """

    def __init__(self, width: int, layers: int, gain: float = 1.0):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))
        layer = nn.TransformerEncoderLayer(width, HEADS, 2 * width, 0.1, "gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        for encoder_layer in self.encoder.layers:
            nn.init.zeros_(encoder_layer.self_attn.out_proj.weight)  # type: ignore[union-attr, arg-type]
            nn.init.zeros_(encoder_layer.linear2.weight)  # type: ignore[union-attr, arg-type]
            nn.init.zeros_(encoder_layer.linear2.bias)  # type: ignore[union-attr, arg-type]

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """tokens [B, N, W], mask [B, N] True = real -> [B, N, W], zero where the mask is False."""
        positioned = tokens + self.gain * sinusoidal_positions(tokens.shape[1], tokens.shape[2]).to(tokens)
        encoded: Tensor = self.encoder(positioned, src_key_padding_mask=~mask)
        return encoded * mask.unsqueeze(-1)


def sinusoidal_positions(count: int, width: int) -> Tensor:
    """[count, width] sines and cosines of wavelengths from 2 pi to 10,000 * 2 pi."""
    rate = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))
    angle = torch.arange(count)[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)[:, :width]
