"""Multi-head attention from one set of tokens to another, in three kinds: ``dense``, ``window`` and ``linear``.

All kinds share one interface and the same parameters; they differ in how softmax(q k^T) v is come by, and at what price:
dense costs N * M, window and linear cost N + M (N queries, M keys).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ccaco_cli.core.config import FusionConfig
from ccaco_cli.core.errors import ConfigError
from ccaco_cli.core.model.layout import AttentionPlan, Segment, Sequence, plan

AT_ONCE = 1 << 24
"""Numbers of gathered keys that the window kind holds at a time; beyond, slices are recomputed in the backward pass."""
FEATURES_AT_ONCE = 1 << 20
"""Random features that the linear kind makes at a time on a CPU, where nothing is learned: what a core's cache takes."""


class Kernel(nn.Module, ABC):
    """softmax(scale * q k^T) v, one way or another. No learned parameters."""

    @abstractmethod
    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor,
        *,
        scale: float,
        dropout: float,
        lie: tuple[Sequence, Sequence],
    ) -> Tensor:
        """Attends.

        q        [B, N, H, d]
        k, v     [B, M, H, d]
        mask     [B, M] bool, True = real key; every sample has at least its first
        scale    multiplies q k^T
        dropout  share of what is attended to that is dropped (0 outside training)
        lie      how queries and keys lie (``window`` looks around itself)
        Returns  [B, N, H, d]
        """

    @abstractmethod
    def weights(self, q: Tensor, k: Tensor, mask: Tensor, *, scale: float, lie: tuple[Sequence, Sequence]) -> Tensor:
        """What ``forward`` attends to, [B, H, N, M], rows sum to 1: for explanations, N * M whatever the kind."""

    def refresh(self) -> None:
        """Once before each training step; a kind that draws at random does so here, so that ``forward`` can be made again."""


class Dense(Kernel):
    """Every query sees every key (arXiv:1706.03762, eq. 1), by the fastest kernel that the device has."""

    def __init__(self, width: int, config: FusionConfig):
        super().__init__()

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor,
        *,
        scale: float,
        dropout: float,
        lie: tuple[Sequence, Sequence],
    ) -> Tensor:
        return _dense(q, k, v, mask, scale, dropout)

    def weights(self, q: Tensor, k: Tensor, mask: Tensor, *, scale: float, lie: tuple[Sequence, Sequence]) -> Tensor:
        return _softmax(q, k, mask[:, None, None, :], scale)


class WindowKernel(Kernel):
    """Local windows and global tokens (Longformer, arXiv:2004.05150, sec. 3.1), squares on grids; ``layout.plan`` says who sees whom.

    Global tokens share their projections with the others (Longformer trains a second set), so that the kinds share their parameters.
    On a GPU, where nothing is dropped, FlexAttention (arXiv:2412.05496) skips the blocks that nobody sees; elsewhere slices are gathered.
    """

    def __init__(self, width: int, config: FusionConfig):
        super().__init__()
        self.window, self.spread = config.window, config.spread

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor,
        *,
        scale: float,
        dropout: float,
        lie: tuple[Sequence, Sequence],
    ) -> Tensor:
        way = plan(*lie, self.window, self.spread, str(q.device))
        if q.is_cuda and not dropout and q.shape[-1] >= 16:
            return flex(q, k, v, mask, scale, way)
        return sliced(q, k, v, mask, scale, dropout, way)

    def weights(self, q: Tensor, k: Tensor, mask: Tensor, *, scale: float, lie: tuple[Sequence, Sequence]) -> Tensor:
        seen = plan(*lie, self.window, self.spread, str(q.device)).pattern(k.shape[1])
        return _softmax(q, k, seen & mask[:, None, None, :], scale)


class Linear(Kernel):
    """FAVOR+ (Performer, arXiv:2009.14794): exp(q . k) as the mean of phi(q) phi(k) over positive orthogonal random features (lemma 1).

    Unbiased, with an error that falls as 1 / sqrt(features) and grows as exp of |q + k|^2: fit for soft attention, not for sharp.
    In training the features are drawn anew with probability 1 / ``redraw`` a step: no counter has to be kept for a resumed run.
    Dropout drops whole keys (there are no weights to drop), scaled so that the mean stays.
    """

    random: Tensor

    def __init__(self, width: int, config: FusionConfig):
        super().__init__()
        self.redraw = config.redraw
        self.register_buffer("random", orthogonal_features(config.features, width))

    def refresh(self) -> None:
        if self.redraw and float(torch.rand(())) < 1 / self.redraw:
            # a new tensor, for the backward pass of an earlier step still needs the old one
            self.random = orthogonal_features(*self.random.shape).to(self.random)

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor,
        *,
        scale: float,
        dropout: float,
        lie: tuple[Sequence, Sequence],
    ) -> Tensor:
        with torch.autocast(q.device.type, enabled=False):  # exponentials of bf16 would be off by percents
            if torch.is_grad_enabled() or q.device.type != "cpu" or torch.compiler.is_compiling():
                return self._bring(q, k, v, mask, scale, dropout)
            # features of a few samples stay in a core's cache, where those of a thousand travel to memory and back at every step
            step = max(1, FEATURES_AT_ONCE // (len(self.random) * q.shape[2] * (q.shape[1] + k.shape[1])))
            parts = [slice(first, first + step) for first in range(0, max(len(q), 1), step)]
            return torch.cat([self._bring(q[part], k[part], v[part], mask[part], scale, dropout) for part in parts])

    def _bring(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, dropout: float) -> Tensor:
        one, other = self._features(q, k, mask, scale)
        kept = other * F.dropout(torch.ones_like(other[..., :1]), dropout) if dropout else other
        summary = kept.transpose(2, 3) @ v.transpose(1, 2).float()
        total = one @ other.sum(2).unsqueeze(-1)
        return (one @ summary / total).transpose(1, 2).to(v.dtype)

    def weights(self, q: Tensor, k: Tensor, mask: Tensor, *, scale: float, lie: tuple[Sequence, Sequence]) -> Tensor:
        one, other = self._features(q, k, mask, scale)
        scores = one @ other.transpose(2, 3)
        found: Tensor = scores / scores.sum(-1, keepdim=True)
        return found

    def _features(self, q: Tensor, k: Tensor, mask: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """[B, N, H, d] -> [B, H, N, features]: a head's tokens lie together, and no product copies the larger side."""
        one, other = (positive_features(x.transpose(1, 2).float() * scale**0.5, self.random.float()) for x in (q, k))
        real = mask[:, None, :, None]
        other = other.masked_fill(~real, -torch.inf)
        # what a query's features, or all keys of a head, have in common cancels in the quotient: taken out so that nothing overflows
        one = (one - one.amax(-1, keepdim=True).detach()).exp()
        other = (other - other.amax((2, 3), keepdim=True).detach()).exp()
        return one + 1e-6, (other + 1e-6) * real


KINDS: dict[str, Callable[[int, FusionConfig], Kernel]] = {"dense": Dense, "window": WindowKernel, "linear": Linear}
"""``model.fusion.attention`` -> kernel for heads of a width."""


def check(config: FusionConfig) -> None:
    """Raises ConfigError: no such kind of attention."""
    if config.attention not in KINDS:
        raise ConfigError(
            "unknown attention", where=f"model.fusion.attention = {config.attention!r}", expected=" | ".join(KINDS)
        )


def kernel(width: int, config: FusionConfig) -> Kernel:
    """The kernel that a config names, for heads of ``width``. Raises ConfigError with the known kinds."""
    check(config)
    return KINDS[config.attention](width, config)


class Attention(nn.Module):
    """Multi-head attention of any kind.

    width   D of queries, keys and values
    config  heads (which divide width), dropout (on the attention, in training only) and kind
    """

    def __init__(self, width: int, config: FusionConfig):
        super().__init__()
        self.heads, self.dropout = config.heads, config.dropout
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.kernel = kernel(width // config.heads, config)

    def forward(
        self,
        x: Tensor,
        context: Tensor,
        mask: Tensor,
        *,
        lie: tuple[Sequence, Sequence] | None = None,
        weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Looks from ``x`` at ``context``.

        x        [B, N, D]
        context  [B, M, D]
        mask     [B, M] bool, True = real token
        lie      how both lie; None = on lines
        weights  also return the attention, [B, H, N, M], through which the result then goes (explanations only: never built in training)
        Returns  ([B, N, D], weights or None)
        """
        q, k, v = (f(t).unflatten(-1, (self.heads, -1)) for f, t in ((self.q, x), (self.k, context), (self.v, context)))
        lie = lie or lines(x, context)
        scale = q.shape[-1] ** -0.5
        if weights:
            found = self.kernel.weights(q, k, mask, scale=scale, lie=lie)
            out = weighted(found, v)
        else:
            found = None
            out = self.kernel(q, k, v, mask, scale=scale, dropout=self.dropout if self.training else 0.0, lie=lie)
        brought: Tensor = self.out(out.flatten(2))
        return brought, found


def weighted(weights: Tensor, v: Tensor) -> Tensor:
    """What ``Kernel.forward`` gives, from the weights it gives them: weights [B, H, N, M], v [B, M, H, d] -> [B, N, H, d]."""
    return torch.einsum("bhnm,bmhd->bnhd", weights, v.to(weights.dtype))


def lines(*tokens: Tensor) -> Any:
    """The layouts of tokens [B, N, D] that lie on lines."""
    return tuple((Segment(t.shape[1]),) for t in tokens)


def sliced(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, dropout: float, way: AttentionPlan) -> Tensor:
    """Windowed attention as many small dense ones; arguments as of ``Kernel.forward``."""
    batch, _, heads, width = q.shape
    size = way.blocks.shape[1]
    flat = way.blocks.clamp_min(0).flatten()
    # whole blocks lie together, so that gathering neighbours copies long runs, and its backward adds them
    blocks_k, blocks_v = (t.index_select(1, flat).view(batch, -1, size * heads * width) for t in (k, v))
    real = (mask.index_select(1, flat) & (way.blocks.flatten() >= 0)).view(batch, -1, size)
    extra = tuple(t.index_select(1, way.keys) for t in (k, v, mask))

    def look(order: Tensor, near: Tensor, q: Tensor, blocks_k: Tensor, blocks_v: Tensor, *extra: Tensor) -> Tensor:
        count, neighbours = near.shape
        chosen = near.clamp_min(0).flatten()
        seen = (real.index_select(1, chosen).view(batch, count, neighbours, size) & (near >= 0)[..., None]).flatten(2)
        seen = torch.cat([seen, extra[2][:, None].expand(-1, count, -1)], 2).flatten(0, 1)
        asked = q.index_select(1, order.clamp_min(0).flatten()).view(batch * count, size, heads, width)
        keys, values = (
            torch.cat(
                [
                    blocks.index_select(1, chosen).view(batch, count, -1, heads, width),
                    more[:, None].expand(-1, count, -1, -1, -1),
                ],
                2,
            ).flatten(0, 1)
            for blocks, more in ((blocks_k, extra[0]), (blocks_v, extra[1]))
        )
        return _dense(asked, keys, values, seen, scale, dropout).reshape(batch, count * size, heads, width)

    answers = []
    for order, near in way.near:
        cost = batch * heads * width * (near.shape[1] * size + len(way.keys))
        step = max(1, AT_ONCE // cost)
        for first in range(0, len(order), step):
            part = slice(first, first + step)
            given = (order[part], near[part], q, blocks_k, blocks_v, *extra)
            again = step < len(order) and torch.is_grad_enabled()
            answers.append(checkpoint(look, *given, use_reentrant=False) if again else look(*given))
    answers.append(_dense(q.index_select(1, way.queries), k, v, mask, scale, dropout))
    return torch.cat(answers, 1).index_select(1, way.back)


def flex(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, way: AttentionPlan) -> Tensor:
    """Windowed attention by FlexAttention's block masks: tokens are put in the order of their blocks, global ones behind them."""
    size = way.blocks.shape[1]
    order = torch.cat([*(o.flatten() for o, _ in way.near), way.queries])
    keys = torch.cat([way.blocks.flatten(), way.keys])
    asked, seen, values = (
        t.index_select(1, i.clamp_min(0)).transpose(1, 2).contiguous() for t, i in ((q, order), (k, keys), (v, keys))
    )
    real = mask.index_select(1, keys.clamp_min(0)) & (keys >= 0)

    def only_real(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return torch.where(real[b, j], score, -torch.inf)

    run, block_mask = _flex_parts(way, size, q.is_cuda)
    out: Tensor = run(asked, seen, values, score_mod=only_real, block_mask=block_mask, scale=scale)
    return out.transpose(1, 2).index_select(1, way.back)


_flex_masks: dict[int, tuple[AttentionPlan, Any]] = {}


def _flex_parts(way: AttentionPlan, size: int, compiled: bool) -> tuple[Any, Any]:
    """FlexAttention (compiled on a GPU) and the block mask of a plan, made once."""
    from torch.nn.attention.flex_attention import create_block_mask  # slow to import

    known = _flex_masks.get(id(way))
    if known is None:
        blocks = sum(len(o) for o, _ in way.near)
        device = way.back.device
        table = torch.zeros(
            blocks + 1, len(way.blocks) + 1, dtype=torch.bool, device=device
        )  # the last row and column are the global ones
        start = 0
        for order, near in way.near:
            rows = torch.arange(start, start + len(order), device=device)[:, None].expand_as(near)
            table[rows[near >= 0], near[near >= 0]] = True
            start += len(order)
        table[-1], table[:, -1] = True, True
        last_query, last_key = blocks, len(way.blocks)

        def seen(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return table[(i // size).clamp_max(last_query), (j // size).clamp_max(last_key)]

        lengths = blocks * size + len(way.queries), way.blocks.numel() + len(way.keys)
        made = create_block_mask(seen, None, None, *lengths, device=str(device), _compile=compiled)
        if len(_flex_masks) >= 64:
            _flex_masks.clear()
        known = _flex_masks[id(way)] = (way, made)  # the plan is kept with it, so that its id stays its own
    return _flex(compiled), known[1]


@cache
def _flex(compiled: bool) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False) if compiled else flex_attention


def positive_features(x: Tensor, random: Tensor) -> Tensor:
    """log(phi(x) * sqrt(m)) = W x - |x|^2 / 2 (arXiv:2009.14794, lemma 1): x [..., d], random [m, d] -> [..., m]."""
    return x @ random.T - x.square().sum(-1, keepdim=True) / 2


def orthogonal_features(count: int, width: int) -> Tensor:
    """[count, width] Gaussian vectors, orthogonal within each run of ``width`` (arXiv:2009.14794, sec. 2.4), from torch's generator."""
    runs = math.ceil(count / width)
    found, triangle = torch.linalg.qr(torch.randn(runs, width, width))
    found = found * triangle.diagonal(dim1=1, dim2=2).sign().unsqueeze(
        1
    )  # LAPACK's own signs are not random: the mean would be off
    rows: Tensor = found.transpose(1, 2).reshape(-1, width)[:count] * torch.randn(count, width).norm(
        dim=1, keepdim=True
    )
    return rows


def _dense(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, dropout: float) -> Tensor:
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask[:, None, None, :], dropout_p=dropout, scale=scale
    ).transpose(1, 2)


def _softmax(q: Tensor, k: Tensor, seen: Tensor, scale: float) -> Tensor:
    scores = scale * torch.einsum("bnhd,bmhd->bhnm", q, k)
    shares: Tensor = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    return shares


def masked_mean(tokens: Tensor, mask: Tensor) -> Tensor:
    """Mean over real tokens: tokens [B, N, D], mask [B, N] bool -> [B, D]; zeros where a sample has none."""
    weight = mask.unsqueeze(-1).to(tokens.dtype)
    return (tokens * weight).sum(1) / weight.sum(1).clamp_min(1)
