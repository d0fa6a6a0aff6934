"""How the tokens of two modalities meet: co-attention blocks and a single stream."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ccaco_cli.core.model.attention import Attention


class CoAttentionBlock(nn.Module):
    """Both sides look at each other, then think (ViLBERT's co-attentional layer, arXiv:1908.02265, fig. 2b; pre-norm).

    residual   keep the tokens and add what attention brings
    direction  both | b_to_a | a_to_b: who looks at whom; the side that does not look passes unchanged
    """

    def __init__(self, width: int, heads: int, dropout: float, residual: bool, direction: str):
        super().__init__()
        self.residual = residual
        self.looks = {"both": (True, True), "b_to_a": (False, True), "a_to_b": (True, False)}[direction]
        self.cross = nn.ModuleList(Attention(width, heads, dropout) for _ in range(2))
        self.norm_self, self.norm_other, self.norm_mlp = (nn.ModuleList(nn.LayerNorm(width) for _ in range(2)) for _ in range(3))
        self.mlp = nn.ModuleList(mlp(width, dropout) for _ in range(2))

    def forward(
        self, a: Tensor, mask_a: Tensor, b: Tensor, mask_b: Tensor, *, weights: bool = False
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """a [M, N_a, D], b [M, N_b, D], masks True = real -> (a', b', attention of b over a [M, N_b, N_a] when asked)."""
        new_a = self._look(0, a, b, mask_b, False)[0] if self.looks[0] else a
        new_b, attention = self._look(1, b, a, mask_a, weights) if self.looks[1] else (b, None)
        return new_a, new_b, attention

    def _look(self, side: int, x: Tensor, other: Tensor, mask: Tensor, weights: bool) -> tuple[Tensor, Tensor | None]:
        brought, attention = self.cross[side](self.norm_self[side](x), self.norm_other[side](other), mask, weights=weights)
        x = x + brought if self.residual else brought
        thought = self.mlp[side](self.norm_mlp[side](x))
        return (x + thought if self.residual else thought), attention


def mlp(width: int, dropout: float, out: int | None = None) -> nn.Sequential:
    """Two linear layers with GELU, hidden width 2D."""
    return nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(dropout), nn.Linear(2 * width, out or width))


def positions(tokens: Tensor) -> Tensor:
    """Sinusoidal position embeddings (arXiv:1706.03762, sec. 3.5) for tokens [B, N, D], D even: [N, D]."""
    count, width = tokens.shape[1:]
    rate = 10_000 ** (-torch.arange(0, width, 2, device=tokens.device) / width)
    angle = torch.arange(count, device=tokens.device)[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1).to(tokens.dtype)


class SingleStream(nn.Module):
    """One transformer over the tokens of both sides, with embeddings that say whose each token is and where (UNITER, arXiv:1909.11740)."""

    def __init__(self, width: int, heads: int, layers: int, dropout: float):
        super().__init__()
        # starts as small as the embedding of the side, so that what the tokens say is not drowned
        self.place = nn.Parameter(torch.full((2, 1), 0.02))
        self.side = nn.Parameter(0.02 * torch.randn(2, width))
        layer = nn.TransformerEncoderLayer(width, heads, 2 * width, dropout, "gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)

    def forward(self, a: Tensor, mask_a: Tensor, b: Tensor, mask_b: Tensor) -> tuple[Tensor, Tensor]:
        """a [M, N_a, D], b [M, N_b, D] -> fused tokens of both, same shapes."""
        joined = torch.cat([x + self.side[i] + self.place[i] * positions(x) for i, x in enumerate((a, b))], 1)
        fused = self.encoder(joined, src_key_padding_mask=~torch.cat([mask_a, mask_b], 1))
        return fused[:, : a.shape[1]], fused[:, a.shape[1] :]
