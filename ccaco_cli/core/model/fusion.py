"""How the tokens of two modalities meet: co-attention blocks and a single stream, with any kind of attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ccaco_cli.core.config import FusionConfig
from ccaco_cli.core.model.attention import Attention, lines
from ccaco_cli.core.model.layout import Segment, Sequence


class CoAttentionBlock(nn.Module):
    """Both sides look at each other, then think (ViLBERT's co-attentional layer, arXiv:1908.02265, fig. 2b; pre-norm).

    config  heads, dropout and kind of attention;
            residual: keep the tokens and add what attention brings;
            direction: both | b_to_a | a_to_b: who looks at whom; the side that does not look passes unchanged
    """

    def __init__(self, width: int, config: FusionConfig):
        super().__init__()
        self.residual = config.residual
        self.looks = {"both": (True, True), "b_to_a": (False, True), "a_to_b": (True, False)}[config.direction]
        self.cross = nn.ModuleList(Attention(width, config) for _ in range(2))
        self.norm_self, self.norm_other, self.norm_mlp = (
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
        lie: tuple[Sequence, Sequence] | None = None,
        weights: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """a [M, N_a, D], b [M, N_b, D], masks True = real, lie of both -> (a', b', attention of b over a [M, H, N_b, N_a] if asked)."""
        lie_a, lie_b = lie or lines(a, b)
        new_a = self._look(0, a, b, mask_b, (lie_a, lie_b), False)[0] if self.looks[0] else a
        new_b, attention = self._look(1, b, a, mask_a, (lie_b, lie_a), weights) if self.looks[1] else (b, None)
        return new_a, new_b, attention

    def _look(
        self, side: int, x: Tensor, other: Tensor, mask: Tensor, lie: tuple[Sequence, Sequence], weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        brought, attention = self.cross[side](
            self.norm_self[side](x), self.norm_other[side](other), mask, lie=lie, weights=weights
        )
        x = x + brought if self.residual else brought
        thought = self.mlp[side](self.norm_mlp[side](x))
        return (x + thought if self.residual else thought), attention


class Stream(nn.Module):
    """A pre-norm transformer encoder (arXiv:2002.04745, fig. 1b) over any kind of attention."""

    def __init__(self, width: int, config: FusionConfig):
        super().__init__()
        self.attention = nn.ModuleList(Attention(width, config) for _ in range(config.layers))
        self.norm_attention, self.norm_mlp = (
            nn.ModuleList(nn.LayerNorm(width) for _ in range(config.layers)) for _ in range(2)
        )
        self.mlp = nn.ModuleList(mlp(width, config.dropout) for _ in range(config.layers))
        self.drop = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, mask: Tensor, lie: Sequence | None = None, *, weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """x [M, N, D], mask [M, N] True = real -> (the same shape, attention of the last layer [M, H, N, N] when asked)."""
        both, found = (lie, lie) if lie else lines(x, x), None
        for layer, (attend, norm, norm_mlp, think) in enumerate(
            zip(self.attention, self.norm_attention, self.norm_mlp, self.mlp, strict=True)
        ):
            inner = norm(x)
            brought, found = attend(inner, inner, mask, lie=both, weights=weights and layer == len(self.attention) - 1)
            x = x + self.drop(brought)
            x = x + self.drop(think(norm_mlp(x)))
        return x, found


def mlp(
    width: int, dropout: float, out: int | None = None, *, dropout_of: type[nn.Dropout] = nn.Dropout
) -> nn.Sequential:
    """Two linear layers with GELU, hidden width 2D."""
    return nn.Sequential(
        nn.Linear(width, 2 * width), nn.GELU(), dropout_of(dropout), nn.Linear(2 * width, out or width)
    )


def positions(segment: Segment, width: int) -> Tensor:
    """Sinusoidal position embeddings (arXiv:1706.03762, sec. 3.5) of a segment: [N, width], width even.

    On a grid half of the width tells the row and half the column (as in MAE, arXiv:2111.06377); special tokens have none.
    """
    if segment.grid is None:
        return _sinusoid(torch.arange(segment.count), width)
    rows, columns = segment.grid
    half = width // 4 * 2
    row, column = _sinusoid(torch.arange(rows), half), _sinusoid(torch.arange(columns), width - half)
    cells = torch.cat([row[:, None].expand(-1, columns, -1), column[None].expand(rows, -1, -1)], -1).flatten(0, 1)
    return torch.cat([torch.zeros(segment.special, width), cells])


def _sinusoid(place: Tensor, width: int) -> Tensor:
    angle = place[:, None] * 10_000 ** (-torch.arange(0, width, 2) / max(1, width))
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)


class SingleStream(nn.Module):
    """One transformer over the tokens of both sides, with embeddings that say whose each token is and where (UNITER, arXiv:1909.11740)."""

    def __init__(self, width: int, config: FusionConfig):
        super().__init__()
        # starts as small as the embedding of the side, so that what the tokens say is not drowned
        self.place = nn.Parameter(torch.full((2, 1), 0.02))
        self.side = nn.Parameter(0.02 * torch.randn(2, width))
        self.stream = Stream(width, config)

    def forward(
        self,
        a: Tensor,
        mask_a: Tensor,
        b: Tensor,
        mask_b: Tensor,
        *,
        lie: tuple[Sequence, Sequence] | None = None,
        weights: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """a [M, N_a, D], b [M, N_b, D] -> fused tokens of both, same shapes, and the attention of b over a [M, H, N_b, N_a] if asked."""
        lie_a, lie_b = lie or lines(a, b)
        joined = torch.cat([self._told(i, x, part) for i, (x, (part,)) in enumerate(((a, lie_a), (b, lie_b)))], 1)
        fused, found = self.stream(joined, torch.cat([mask_a, mask_b], 1), lie_a + lie_b, weights=weights)
        n = a.shape[1]
        if found is not None:
            found = found[:, :, n:, :n]
            found = found / found.sum(-1, keepdim=True).clamp_min(1e-12)
        return fused[:, :n], fused[:, n:], found

    def _told(self, side: int, x: Tensor, segment: Segment) -> Tensor:
        where = positions(segment, x.shape[-1]).to(x)
        return x + self.side[side] + self.place[side] * where
