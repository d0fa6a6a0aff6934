"""Attention kernels of three kinds: ``dense``, ``window`` and ``linear``.

All kinds have one interface and the same parameters. They differ in how they compute softmax(q k^T) v, and in its cost:
N * M for dense, N + M for window and linear (N queries, M keys).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ccaco_cli.core.config import FusionConfig
from ccaco_cli.core.errors import ConfigError
from ccaco_cli.core.model.layout import AttentionPlan, SequenceLayout, attention_plan

Layouts = tuple[SequenceLayout, SequenceLayout]
"""Layouts of queries and keys."""
GATHERED_VALUES = 1 << 24
"""Values of gathered keys that the window kind holds at a time; beyond, slices are recomputed in the backward pass."""
FLEX_SHAPES = 6
"""Shapes that FlexAttention is compiled for. torch compiles a function 8 times and then runs it uncompiled, which would
hold all scores."""
CPU_FEATURES = 1 << 20
"""Random features that the linear kind computes at a time on a CPU without gradients: they fit in a core's cache."""


class Kernel(nn.Module, ABC):
    """Computes softmax(scale * q k^T) v, exactly or approximately. Kernels have no learned parameters."""

    @abstractmethod
    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, *, scale: float, dropout: float, layout: Layouts
    ) -> Tensor:
        """Attends.

        Args:
            q: [B, N, H, d].
            k, v: [B, M, H, d].
            mask: [B, M] bool, True = real key; the first key of every sample is real.
            scale: multiplies q k^T.
            dropout: probability that an attended key is dropped (0 outside training).
            layout: layouts of queries and keys (used by ``window``).
        Returns:
            [B, N, H, d].
        """

    @abstractmethod
    def weights(self, q: Tensor, k: Tensor, mask: Tensor, *, scale: float, layout: Layouts) -> Tensor:
        """Returns the attention of ``forward``, [B, H, N, M], rows sum to 1, at cost N * M: for explanations."""

    def refresh(self) -> None:
        """Draws new random numbers once before a training step, so that ``forward`` can be recomputed within it."""


class DenseKernel(Kernel):
    """Every query attends to every key (arXiv:1706.03762, eq. 1), by the fastest kernel of the device."""

    def __init__(self, width: int, config: FusionConfig):
        super().__init__()

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, *, scale: float, dropout: float, layout: Layouts
    ) -> Tensor:
        return _dense(q, k, v, mask, scale, dropout)

    def weights(self, q: Tensor, k: Tensor, mask: Tensor, *, scale: float, layout: Layouts) -> Tensor:
        return _softmax(q, k, mask[:, None, None, :], scale)


class WindowKernel(Kernel):
    """Local windows and global tokens of ``layout.attention_plan`` (Longformer, arXiv:2004.05150, sec. 3.1).

    Global tokens use the projections of the others (Longformer trains a second set), so that all kinds have the same
    parameters. On a GPU and without dropout, FlexAttention (arXiv:2412.05496) skips blocks outside all windows.
    FlexAttention has no dropout and is compiled anew for every shape: with dropout (so in training, by default), and
    for all shapes after the first ``FLEX_SHAPES``, slices are gathered. Neither holds the scores of all token pairs.
    """

    def __init__(self, width: int, config: FusionConfig):
        super().__init__()
        self.window, self.spread = config.window, config.spread

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, *, scale: float, dropout: float, layout: Layouts
    ) -> Tensor:
        plan = attention_plan(*layout, self.window, self.spread, str(q.device))
        if q.is_cuda and not dropout and q.shape[-1] >= 16 and _flex_has_shape(q, k, plan):
            return flex_window_attention(q, k, v, mask, scale, plan)
        return sliced_window_attention(q, k, v, mask, scale, dropout, plan)

    def weights(self, q: Tensor, k: Tensor, mask: Tensor, *, scale: float, layout: Layouts) -> Tensor:
        window_mask = attention_plan(*layout, self.window, self.spread, str(q.device)).mask(k.shape[1])
        return _softmax(q, k, window_mask & mask[:, None, None, :], scale)


class LinearKernel(Kernel):
    """FAVOR+ (Performer, arXiv:2009.14794): exp(q . k) is the mean of phi(q) phi(k) over random features.

    The features are positive and orthogonal; the estimate (lemma 1) is unbiased. Its error falls as 1 / sqrt(features)
    and grows as exp of |q + k|^2: it suits soft attention, not sharp attention. In training the features are redrawn
    with probability 1 / ``redraw`` per step, so that a resumed run needs no counter. Dropout drops whole keys (there
    are no weights to drop), scaled so that the mean does not change.
    """

    random: Tensor

    def __init__(self, width: int, config: FusionConfig):
        super().__init__()
        self.redraw = config.redraw
        self.register_buffer("random", orthogonal_features(config.features, width))

    def refresh(self) -> None:
        if self.redraw and float(torch.rand(())) < 1 / self.redraw:
            # a new tensor, because the backward pass of an earlier step still needs the old one
            self.random = orthogonal_features(*self.random.shape).to(self.random)

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, *, scale: float, dropout: float, layout: Layouts
    ) -> Tensor:
        with torch.autocast(q.device.type, enabled=False):  # exponentials of bf16 would be off by percents
            if torch.is_grad_enabled() or q.device.type != "cpu" or torch.compiler.is_compiling():
                return self._attend(q, k, v, mask, scale, dropout)
            # the features of some samples fit in a core's cache; those of a thousand samples travel to memory and back
            step = max(1, CPU_FEATURES // (len(self.random) * q.shape[2] * (q.shape[1] + k.shape[1])))
            parts = [slice(first, first + step) for first in range(0, max(len(q), 1), step)]
            return torch.cat([self._attend(q[part], k[part], v[part], mask[part], scale, dropout) for part in parts])

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, dropout: float) -> Tensor:
        phi_q, phi_k = self._features(q, k, mask, scale)
        dropped = phi_k * F.dropout(torch.ones_like(phi_k[..., :1]), dropout) if dropout else phi_k
        summary = dropped.transpose(2, 3) @ v.transpose(1, 2).float()
        total = phi_q @ phi_k.sum(2).unsqueeze(-1)
        return (phi_q @ summary / total).transpose(1, 2).to(v.dtype)

    def weights(self, q: Tensor, k: Tensor, mask: Tensor, *, scale: float, layout: Layouts) -> Tensor:
        phi_q, phi_k = self._features(q, k, mask, scale)
        scores = phi_q @ phi_k.transpose(2, 3)
        weights: Tensor = scores / scores.sum(-1, keepdim=True)
        return weights

    def _features(self, q: Tensor, k: Tensor, mask: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Returns phi(q) [B, H, N, F] and phi(k) [B, H, M, F]; with heads first no product copies the larger tensor."""
        phi_q, phi_k = (positive_features(x.transpose(1, 2).float() * scale**0.5, self.random.float()) for x in (q, k))
        real = mask[:, None, :, None]
        phi_k = phi_k.masked_fill(~real, -torch.inf)
        # a factor common to a query's features, or to all keys of a head, cancels in the quotient: removing it avoids
        # overflow
        phi_q = (phi_q - phi_q.amax(-1, keepdim=True).detach()).exp()
        phi_k = (phi_k - phi_k.amax((2, 3), keepdim=True).detach()).exp()
        return phi_q + 1e-6, (phi_k + 1e-6) * real


KINDS: dict[str, Callable[[int, FusionConfig], Kernel]] = {
    "dense": DenseKernel,
    "window": WindowKernel,
    "linear": LinearKernel,
}
"""``model.fusion.attention`` -> kernel for heads of a width."""


def check_attention(config: FusionConfig) -> None:
    """Raises ConfigError: no such kind of attention."""
    if config.attention not in KINDS:
        raise ConfigError(
            "unknown attention", where=f"model.fusion.attention = {config.attention!r}", expected=" | ".join(KINDS)
        )


def build_kernel(width: int, config: FusionConfig) -> Kernel:
    """Builds the kernel that a config names, for heads of ``width``. Raises ConfigError with the known kinds."""
    check_attention(config)
    return KINDS[config.attention](width, config)


def sliced_window_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, dropout: float, plan: AttentionPlan
) -> Tensor:
    """Windowed attention as many small dense ones; arguments as of ``Kernel.forward``."""
    batch, _, heads, width = q.shape
    size = plan.key_blocks.shape[1]
    flat = plan.key_blocks.clamp_min(0).flatten()
    # whole blocks are contiguous, so that gathering neighbours copies long runs
    blocks_k, blocks_v = (t.index_select(1, flat).view(batch, -1, size * heads * width) for t in (k, v))
    real = (mask.index_select(1, flat) & (plan.key_blocks.flatten() >= 0)).view(batch, -1, size)
    global_k, global_v, global_mask = (t.index_select(1, plan.global_keys) for t in (k, v, mask))

    def attend(
        query_blocks: Tensor,
        near: Tensor,
        q: Tensor,
        blocks_k: Tensor,
        blocks_v: Tensor,
        global_k: Tensor,
        global_v: Tensor,
    ) -> Tensor:
        count, neighbours = near.shape
        near_flat = near.clamp_min(0).flatten()
        window_mask = real.index_select(1, near_flat).view(batch, count, neighbours, size) & (near >= 0)[..., None]
        key_mask = torch.cat([window_mask.flatten(2), global_mask[:, None].expand(-1, count, -1)], 2).flatten(0, 1)
        block_q = q.index_select(1, query_blocks.clamp_min(0).flatten()).view(batch * count, size, heads, width)
        keys, values = (
            torch.cat(
                [
                    blocks.index_select(1, near_flat).view(batch, count, -1, heads, width),
                    global_tokens[:, None].expand(-1, count, -1, -1, -1),
                ],
                2,
            ).flatten(0, 1)
            for blocks, global_tokens in ((blocks_k, global_k), (blocks_v, global_v))
        )
        return _dense(block_q, keys, values, key_mask, scale, dropout).reshape(batch, count * size, heads, width)

    outputs = []
    for query_blocks, near in plan.windows:
        cost = batch * heads * width * (near.shape[1] * size + len(plan.global_keys))
        step = max(1, GATHERED_VALUES // cost)
        recompute = step < len(query_blocks) and torch.is_grad_enabled()
        for first in range(0, len(query_blocks), step):
            part = slice(first, first + step)
            arguments = (query_blocks[part], near[part], q, blocks_k, blocks_v, global_k, global_v)
            outputs.append(checkpoint(attend, *arguments, use_reentrant=False) if recompute else attend(*arguments))
    outputs.append(_dense(q.index_select(1, plan.global_queries), k, v, mask, scale, dropout))
    return torch.cat(outputs, 1).index_select(1, plan.output_order)


def flex_window_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, plan: AttentionPlan) -> Tensor:
    """Windowed attention by FlexAttention's block masks: tokens are sorted by block, global ones last."""
    query_order = torch.cat([*(query_blocks.flatten() for query_blocks, _ in plan.windows), plan.global_queries])
    key_order = torch.cat([plan.key_blocks.flatten(), plan.global_keys])
    sorted_q, sorted_k, sorted_v = (
        t.index_select(1, order.clamp_min(0)).transpose(1, 2).contiguous()
        for t, order in ((q, query_order), (k, key_order), (v, key_order))
    )
    real = mask.index_select(1, key_order.clamp_min(0)) & (key_order >= 0)

    def mask_padding(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return torch.where(real[b, j], score, -torch.inf)

    block_mask = _flex_block_mask(plan, q.is_cuda)
    run = _flex_attention(q.is_cuda)
    out: Tensor = run(sorted_q, sorted_k, sorted_v, score_mod=mask_padding, block_mask=block_mask, scale=scale)
    return out.transpose(1, 2).index_select(1, plan.output_order)


_flex_shapes: set[object] = set()


def _flex_has_shape(q: Tensor, k: Tensor, plan: AttentionPlan) -> bool:
    """Whether FlexAttention is compiled for the shapes of these arguments, or can still be."""
    tables = (plan.key_blocks.shape, *(near.shape for _, near in plan.windows), len(plan.global_keys))
    shape = (q.shape, k.shape, q.dtype, q.device, q.requires_grad, torch.is_grad_enabled(), tables)
    if len(_flex_shapes) < FLEX_SHAPES:
        _flex_shapes.add(shape)
    return shape in _flex_shapes


@lru_cache(maxsize=64)
def _flex_block_mask(plan: AttentionPlan, compiled: bool) -> Any:
    """Builds FlexAttention's block mask of a plan."""
    from torch.nn.attention.flex_attention import create_block_mask  # slow to import

    size, device = plan.key_blocks.shape[1], plan.output_order.device
    last_query, last_key = sum(len(query_blocks) for query_blocks, _ in plan.windows), len(plan.key_blocks)
    # [query blocks, key blocks]; the last row and column are the global tokens
    table = torch.zeros(last_query + 1, last_key + 1, dtype=torch.bool, device=device)
    start = 0
    for query_blocks, near in plan.windows:
        rows = torch.arange(start, start + len(query_blocks), device=device)[:, None].expand_as(near)
        table[rows[near >= 0], near[near >= 0]] = True
        start += len(query_blocks)
    table[-1], table[:, -1] = True, True

    def attends(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return table[(i // size).clamp_max(last_query), (j // size).clamp_max(last_key)]

    lengths = last_query * size + len(plan.global_queries), plan.key_blocks.numel() + len(plan.global_keys)
    return create_block_mask(attends, None, None, *lengths, device=str(device), _compile=compiled)


@cache
def _flex_attention(compiled: bool) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False, fullgraph=True) if compiled else flex_attention


def positive_features(x: Tensor, random: Tensor) -> Tensor:
    """log(phi(x) * sqrt(F)) = W x - |x|^2 / 2 (arXiv:2009.14794, lemma 1): x [..., d], random [F, d] -> [..., F]."""
    return x @ random.T - x.square().sum(-1, keepdim=True) / 2


def orthogonal_features(count: int, width: int) -> Tensor:
    """Draws [count, width] Gaussian vectors, orthogonal within each run of ``width`` (arXiv:2009.14794, sec. 2.4)."""
    runs = math.ceil(count / width)
    basis, triangle = torch.linalg.qr(torch.randn(runs, width, width))
    # LAPACK chooses signs that are not random; without this the mean would be off
    basis = basis * triangle.diagonal(dim1=1, dim2=2).sign().unsqueeze(1)
    lengths = torch.randn(count, width).norm(dim=1, keepdim=True)
    rows: Tensor = basis.transpose(1, 2).reshape(-1, width)[:count] * lengths
    return rows


def _dense(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, dropout: float) -> Tensor:
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask[:, None, None, :], dropout_p=dropout, scale=scale
    ).transpose(1, 2)


def _softmax(q: Tensor, k: Tensor, mask: Tensor, scale: float) -> Tensor:
    scores = scale * torch.einsum("bnhd,bmhd->bhnm", q, k)
    weights: Tensor = scores.masked_fill(~mask, -torch.inf).softmax(-1)
    return weights
