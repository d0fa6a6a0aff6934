"""Where tokens lie, on a line or on a grid, and which tokens a local attention window covers.

Windows follow Longformer (arXiv:2004.05150, sec. 3.1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Segment:
    """``count`` tokens: ``special`` ones, then the cells of ``grid`` (height, width) row by row; None = a line."""

    count: int
    special: int = 0
    grid: tuple[int, int] | None = None


SequenceLayout = tuple[Segment, ...]
"""The segments of a sequence in order: the sequence of a single stream is (image, text)."""


@dataclass(frozen=True)
class Layout:
    """Layout of one modality's tokens: ``special`` ones, then the cells of ``grid`` (height, width), or a line."""

    special: int = 0
    grid: tuple[int, int] | None = None

    def segment(self, count: int) -> Segment:
        """Returns the layout of ``count`` tokens. A grid that the token cache has pooled is a smaller square grid."""
        cells = count - self.special
        if self.grid is None or cells < 1:
            return Segment(count)
        side = math.isqrt(cells)
        fitting = [g for g in (self.grid, (side, side)) if g[0] * g[1] == cells]
        return Segment(count, self.special, fitting[0]) if fitting else Segment(count)


LINE = Layout()


@dataclass(frozen=True, eq=False)
class AttentionPlan:
    """Which keys each query attends to, in blocks of ``size`` tokens; -1 pads every index tensor.

    Attributes:
        windows: for each segment of the queries: query blocks [Q, size] of token indices, and the numbers [Q, K] of the
            key blocks that each query block attends to.
        key_blocks: [KB, size] token indices of every key block, without the global keys.
        global_keys: [G] keys that every query attends to: special tokens, and some spread evenly over each segment.
        global_queries: [H] queries that attend to every key.
        output_order: [N] position of each query's output in the concatenation of all query blocks and
            ``global_queries``.
    """

    windows: tuple[tuple[Tensor, Tensor], ...]
    key_blocks: Tensor
    global_keys: Tensor
    global_queries: Tensor
    output_order: Tensor

    def mask(self, keys: int) -> Tensor:
        """Returns the plan as a mask [N, keys] bool. It costs N * keys: for explanations and tests."""
        device = self.output_order.device
        attends = torch.zeros(len(self.output_order), keys + 1, dtype=torch.bool, device=device)  # last column: padding
        for query_block, near in self.windows:
            tokens = torch.where(near.unsqueeze(-1) >= 0, self.key_blocks[near], -1).flatten(1)  # [Q, K * size]
            rows = query_block.unsqueeze(2).expand(-1, -1, tokens.shape[1])
            columns = tokens.unsqueeze(1).expand(-1, query_block.shape[1], -1)
            real = rows >= 0
            attends[rows[real], columns[real]] = True
        attends[:, self.global_keys] = True
        attends[self.global_queries] = True
        return attends[:, :keys]


@lru_cache(maxsize=256)
@torch.inference_mode(False)  # a plan made while encoding is used in training, too
def attention_plan(
    queries: SequenceLayout, keys: SequenceLayout, window: int, spread: int, device: str
) -> AttentionPlan:
    """Plans the windows of ``queries`` over ``keys``.

    Tokens form blocks of ``window`` tokens (rounded down to a square number, so that a block is a square of a grid,
    too). Over its own line, a block attends to itself and one neighbour on each side; over its own grid, to its eight
    neighbours. Over another sequence, it attends to the part at the same relative position, and one neighbour on each
    side. Every key is in the window of some query, and the work grows with N + M.

    Args:
        queries, keys: layouts of both sequences.
        window: tokens of a block.
        spread: global tokens of a segment besides its special ones; at least its first, so that every query has a real
            key.
        device: of the tensors of the plan.
    """
    # a block that is larger than every segment would hold padding only
    longest = max(_longest_side(segment) for segment in (*queries, *keys))
    side = max(1, min(math.isqrt(window), longest))
    query_segments, key_segments = _blocks(queries, side), _blocks(keys, side)
    first_blocks, query_globals, key_globals = [0], _global_tokens(queries, spread), _global_tokens(keys, spread)
    for block_tokens, _ in key_segments:
        first_blocks.append(first_blocks[-1] + len(block_tokens))
    windows, outputs = [], []
    for block_tokens, shape in query_segments:
        near = [
            torch.where(segment_near >= 0, segment_near + first, -1)
            for (_, key_shape), first in zip(key_segments, first_blocks, strict=False)
            for segment_near in (_neighbour_blocks(shape, key_shape),)
        ]
        windows.append((block_tokens.to(device), torch.cat(near, 1).to(device)))
        outputs.append(block_tokens.flatten())
    key_blocks = torch.cat([block_tokens for block_tokens, _ in key_segments])
    # every query attends to global keys anyway, and they must not count twice
    key_blocks = key_blocks.masked_fill(torch.isin(key_blocks, key_globals), -1)
    computed = torch.cat([*outputs, query_globals])
    output_order = torch.empty(sum(segment.count for segment in queries), dtype=torch.long)
    real = computed >= 0
    # a global query stands twice in ``computed``: the later entry, over all keys, is used
    output_order[computed[real]] = torch.arange(len(computed))[real]
    return AttentionPlan(
        tuple(windows), *(t.to(device) for t in (key_blocks, key_globals, query_globals, output_order))
    )


def _longest_side(segment: Segment) -> int:
    """The side of a square block that holds a whole segment."""
    if segment.grid is not None:
        return max(segment.grid)
    return math.isqrt(max(0, segment.count - segment.special - 1)) + 1


def _blocks(sequence: SequenceLayout, side: int) -> list[tuple[Tensor, tuple[int, int]]]:
    """Returns for each segment: blocks [n, side * side] of token indices, and (rows, columns) of blocks."""
    blocks, start = [], 0
    for segment in sequence:
        first = start + segment.special
        if segment.grid is None:
            count = segment.count - segment.special
            tokens = torch.full((-(-count // side**2), side**2), -1)
            tokens.view(-1)[:count] = torch.arange(first, first + count)
            blocks.append((tokens, (1, len(tokens))))
        else:
            height, width = segment.grid
            rows, columns = -(-height // side), -(-width // side)
            cells = torch.full((rows * side, columns * side), -1)
            cells[:height, :width] = torch.arange(first, first + height * width).view(height, width)
            tokens = cells.view(rows, side, columns, side).transpose(1, 2).reshape(rows * columns, side**2)
            blocks.append((tokens, (rows, columns)))
        start += segment.count
    return blocks


def _global_tokens(sequence: SequenceLayout, spread: int) -> Tensor:
    """Returns the indices of special tokens and of about ``spread`` tokens spread evenly over each segment."""
    indices, start = [], 0
    for segment in sequence:
        first, cells = start + segment.special, segment.count - segment.special
        indices.append(torch.arange(start, first))
        if segment.grid is None:
            count = min(max(1, spread), cells)
            indices.append(first + torch.arange(count) * cells // max(1, count))
        else:
            side = max(1, math.isqrt(spread))
            rows, columns = (torch.arange(min(side, n)) * n // min(side, n) for n in segment.grid)
            indices.append(first + (rows[:, None] * segment.grid[1] + columns).flatten())
        start += segment.count
    return torch.cat(indices)


def _neighbour_blocks(queries: tuple[int, int], keys: tuple[int, int]) -> Tensor:
    """Returns [Q, K] key blocks near each query block, padded with -1; (rows, columns) of both are given."""
    if queries[0] == 1 or keys[0] == 1:  # a line has no rows to compare: both are read in order
        return _neighbours_on_line(queries[0] * queries[1], keys[0] * keys[1])
    rows, columns = (_neighbours_on_line(q, k) for q, k in zip(queries, keys, strict=True))
    blocks = rows[:, None, :, None] * keys[1] + columns[None, :, None, :]
    padding = (rows[:, None, :, None] < 0) | (columns[None, :, None, :] < 0)
    return blocks.masked_fill(padding, -1).reshape(queries[0] * queries[1], -1)


def _neighbours_on_line(queries: int, keys: int) -> Tensor:
    # by NumPy: the shape of the result must be known also for tensors without contents (``training.cost``)
    number = np.arange(queries)
    low, high = number * keys // queries - 1, -(-(number + 1) * keys // queries) + 1
    near = low[:, None] + np.arange(int((high - low).max()) if queries else 0)
    return torch.from_numpy(np.where((near < 0) | (near >= keys) | (near >= high[:, None]), -1, near))
