"""Fusion of the tokens of two modalities: co-attention blocks and a single stream, with any kind of attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ccaco_cli.core.config import FusionConfig
from ccaco_cli.core.model.attention import Attention, line_layouts
from ccaco_cli.core.model.attention_kernels import Layouts
from ccaco_cli.core.model.layout import Segment, SequenceLayout


class CoAttentionBlock(nn.Module):
    """Attention of each modality to the other, then an MLP (pre-norm; after ViLBERT, arXiv:1908.02265, fig. 2b).

    Args:
        width: D.
        config: heads, dropout and kind of attention; ``residual``: add the attention output to the tokens;
            ``direction``: both | b_to_a | a_to_b: which modality attends to which; the other one passes unchanged.
    """

    def __init__(self, width: int, config: FusionConfig):
        super().__init__()
        self.residual = config.residual
        self.attends = {"both": (True, True), "b_to_a": (False, True), "a_to_b": (True, False)}[config.direction]
        self.cross = nn.ModuleList(Attention(width, config) for _ in range(2))
        self.norm_query, self.norm_context, self.norm_mlp = (
            nn.ModuleList(nn.LayerNorm(width) for _ in range(2)) for _ in range(3)
        )
        self.mlp = nn.ModuleList(mlp(width, config.dropout) for _ in range(2))

    def forward(
        self,
        a: Tensor,
        mask_a: Tensor,
        b: Tensor,
        mask_b: Tensor,
        *,
        layout: Layouts | None = None,
        weights: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Fuses M pairs.

        Args:
            a, mask_a: [M, N_a, D] and [M, N_a] bool, True = real.
            b, mask_b: [M, N_b, D] and [M, N_b] bool.
            layout: layouts of a and b; None = lines.
            weights: also return the attention of b over a.
        Returns:
            The new a and b, same shapes, and the attention [M, H, N_b, N_a] or None.
        """
        layout_a, layout_b = layout or line_layouts(a, b)
        new_a, new_b, attention = a, b, None
        if self.attends[0]:
            new_a, _ = self._attend(0, a, b, mask_b, (layout_a, layout_b), weights=False)
        if self.attends[1]:
            new_b, attention = self._attend(1, b, a, mask_a, (layout_b, layout_a), weights=weights)
        return new_a, new_b, attention

    def _attend(
        self, side: int, x: Tensor, context: Tensor, mask: Tensor, layout: Layouts, *, weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        attn_out, attention = self.cross[side](
            self.norm_query[side](x), self.norm_context[side](context), mask, layout=layout, weights=weights
        )
        x = x + attn_out if self.residual else attn_out
        mlp_out = self.mlp[side](self.norm_mlp[side](x))
        return (x + mlp_out if self.residual else mlp_out), attention


class Stream(nn.Module):
    """A pre-norm transformer encoder (arXiv:2002.04745, fig. 1b) with any kind of attention."""

    def __init__(self, width: int, config: FusionConfig):
        super().__init__()
        self.attention = nn.ModuleList(Attention(width, config) for _ in range(config.layers))
        self.norm_attention, self.norm_mlp = (
            nn.ModuleList(nn.LayerNorm(width) for _ in range(config.layers)) for _ in range(2)
        )
        self.mlp = nn.ModuleList(mlp(width, config.dropout) for _ in range(config.layers))
        self.drop = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, mask: Tensor, layout: SequenceLayout | None = None, *, weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """x [M, N, D], mask [M, N] -> [M, N, D], and the attention of the last layer [M, H, N, N] or None."""
        layouts, attention = (layout, layout) if layout else line_layouts(x, x), None
        last = len(self.attention) - 1
        for layer, (attend, norm_attention, norm_mlp, layer_mlp) in enumerate(
            zip(self.attention, self.norm_attention, self.norm_mlp, self.mlp, strict=True)
        ):
            normed = norm_attention(x)
            attn_out, attention = attend(normed, normed, mask, layout=layouts, weights=weights and layer == last)
            x = x + self.drop(attn_out)
            x = x + self.drop(layer_mlp(norm_mlp(x)))
        return x, attention


def mlp(
    width: int, dropout: float, out: int | None = None, *, dropout_type: type[nn.Dropout] = nn.Dropout
) -> nn.Sequential:
    """Two linear layers with GELU, hidden width 2D: [..., D] -> [..., ``out`` or D]."""
    return nn.Sequential(
        nn.Linear(width, 2 * width), nn.GELU(), dropout_type(dropout), nn.Linear(2 * width, out or width)
    )


def positions(segment: Segment, width: int, device: torch.device | None = None) -> Tensor:
    """Sinusoidal position embeddings (arXiv:1706.03762, sec. 3.5) of a segment: [N, width], width even.

    On a grid one half of the width encodes the row and one half the column (as in MAE, arXiv:2111.06377); special
    tokens get zeros.
    """
    if segment.grid is None:
        return _sinusoid(torch.arange(segment.count, device=device), width)
    rows, columns = segment.grid
    half = width // 4 * 2
    row, column = (
        _sinusoid(torch.arange(count, device=device), part) for count, part in ((rows, half), (columns, width - half))
    )
    cells = torch.cat([row[:, None].expand(-1, columns, -1), column[None].expand(rows, -1, -1)], -1).flatten(0, 1)
    return torch.cat([torch.zeros(segment.special, width, device=device), cells])


def _sinusoid(position: Tensor, width: int) -> Tensor:
    angle = position[:, None] * 10_000 ** (-torch.arange(0, width, 2, device=position.device) / max(1, width))
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)


class SingleStream(nn.Module):
    """A transformer over the tokens of both modalities and their positions (UNITER, arXiv:1909.11740)."""

    def __init__(self, width: int, config: FusionConfig):
        super().__init__()
        # starts as small as the modality embedding, so that it does not outweigh the tokens
        self.position_gain = nn.Parameter(torch.full((2, 1), 0.02))
        self.modality = nn.Parameter(0.02 * torch.randn(2, width))
        self.stream = Stream(width, config)

    def forward(
        self,
        a: Tensor,
        mask_a: Tensor,
        b: Tensor,
        mask_b: Tensor,
        *,
        layout: Layouts | None = None,
        weights: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Fuses M pairs; arguments and results as of ``CoAttentionBlock.forward``."""
        layout_a, layout_b = layout or line_layouts(a, b)
        embedded_a, embedded_b = self._embed(0, a, layout_a[0]), self._embed(1, b, layout_b[0])
        fused, attention = self.stream(
            torch.cat([embedded_a, embedded_b], 1), torch.cat([mask_a, mask_b], 1), layout_a + layout_b, weights=weights
        )
        n = a.shape[1]
        if attention is not None:
            attention = attention[:, :, n:, :n]
            attention = attention / attention.sum(-1, keepdim=True).clamp_min(1e-12)
        return fused[:, :n], fused[:, n:], attention

    def _embed(self, side: int, x: Tensor, segment: Segment) -> Tensor:
        """Adds the modality embedding and the position embeddings."""
        embedded = positions(segment, x.shape[-1], x.device).to(x.dtype)
        return x + self.modality[side] + self.position_gain[side] * embedded
