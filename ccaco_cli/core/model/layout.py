"""How tokens lie, on a line or on a grid, and which of them a local window sees (Longformer, arXiv:2004.05150, sec. 3.1)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """How one side's tokens lie: ``special`` ones in front, then the cells of ``grid`` (height, width) row by row, or a line."""

    special: int = 0
    grid: tuple[int, int] | None = None

    def of(self, count: int) -> Segment:
        """The layout of ``count`` tokens: a grid that a cache has shrunk is still a square one."""
        cells = count - self.special
        if self.grid is None or cells < 1:
            return Segment(count)
        side = math.isqrt(cells)
        fitting = [g for g in (self.grid, (side, side)) if g[0] * g[1] == cells]
        return Segment(count, self.special, fitting[0]) if fitting else Segment(count)


LINE = Layout()


@dataclass(frozen=True)
class Segment:
    """``count`` tokens of one sequence that lie together."""

    count: int
    special: int = 0
    grid: tuple[int, int] | None = None


Sequence = tuple[Segment, ...]
"""Segments, one after the other: (image, text) is the sequence of a single stream."""


@dataclass(frozen=True)
class AttentionPlan:
    """Who sees whom, in blocks of ``size`` tokens; -1 stands for nobody.

    near     for each segment of the queries: blocks [Q, size] of token indices, and the key blocks [Q, K] that each of them sees
    blocks   [KB, size] token indices of every key block, without the global keys
    keys     [G] keys that every query sees: special tokens, and some spread evenly over each segment
    queries  [H] queries that see every key
    back     [N] where each token's answer stands: behind each other, the blocks of ``near``, then ``queries``
    """

    near: tuple[tuple[Tensor, Tensor], ...]
    blocks: Tensor
    keys: Tensor
    queries: Tensor
    back: Tensor

    def pattern(self, keys: int) -> Tensor:
        """The same as a mask, [N, keys] bool: for explanations and tests, not for work."""
        seen = torch.zeros(
            len(self.back), keys + 1, dtype=torch.bool, device=self.back.device
        )  # the last column takes what is nobody
        for order, near in self.near:
            tokens = torch.where(near.unsqueeze(-1) >= 0, self.blocks[near], -1).flatten(1)  # [Q, K * size]
            rows, columns = (
                order.unsqueeze(2).expand(-1, -1, tokens.shape[1]),
                tokens.unsqueeze(1).expand(-1, order.shape[1], -1),
            )
            real = rows >= 0
            seen[rows[real], columns[real]] = True
        seen[:, self.keys] = True
        seen[self.queries] = True
        return seen[:, :keys]


@lru_cache(maxsize=256)
@torch.inference_mode(False)  # made while encoding, it serves training too
def plan(queries: Sequence, keys: Sequence, window: int, spread: int, device: str) -> AttentionPlan:
    """The windows of ``queries`` over ``keys``.

    Tokens form blocks of ``window`` (rounded down to a square number, so that a block is a square of a grid too). Over the same line a
    block sees itself and a neighbour on each side, over the same grid a neighbour all around. Over another sequence it sees the part
    that lies as far along as itself, and a neighbour on each side: every key is in somebody's window, and the work grows with N + M.

    spread  global tokens of a segment, besides its special ones; at least its first, so that no query is left without a real key
    """
    side = max(1, math.isqrt(window))
    query_parts, key_parts = _parts(queries, side), _parts(keys, side)
    key_starts, query_globals, key_globals = [0], _globals(queries, spread), _globals(keys, spread)
    for order, _ in key_parts:
        key_starts.append(key_starts[-1] + len(order))
    near, answered = [], []
    for order, shape in query_parts:
        seen = [
            torch.where(found >= 0, found + start, -1)
            for (_, other), start in zip(key_parts, key_starts, strict=False)
            for found in (_near(shape, other),)
        ]
        near.append((order.to(device), torch.cat(seen, 1).to(device)))
        answered.append(order.flatten())
    blocks = torch.cat([order for order, _ in key_parts])
    blocks = blocks.masked_fill(torch.isin(blocks, key_globals), -1)  # they are seen anyway, and must not count twice
    answers = torch.cat([*answered, query_globals])
    back = torch.empty(sum(part.count for part in queries), dtype=torch.long)
    real = answers >= 0
    back[answers[real]] = torch.arange(len(answers))[real]  # a global token's own answer stands last and wins
    return AttentionPlan(tuple(near), *(t.to(device) for t in (blocks, key_globals, query_globals, back)))


def _parts(sequence: Sequence, side: int) -> list[tuple[Tensor, tuple[int, int]]]:
    """For each segment its blocks [n, side * side] of token indices, and how they lie (rows, columns); a line has one row."""
    found, start = [], 0
    for part in sequence:
        first = start + part.special
        if part.grid is None:
            count = part.count - part.special
            order = torch.full((-(-count // side**2), side**2), -1)
            order.view(-1)[:count] = torch.arange(first, first + count)
            found.append((order, (1, len(order))))
        else:
            height, width = part.grid
            rows, columns = -(-height // side), -(-width // side)
            cells = torch.full((rows * side, columns * side), -1)
            cells[:height, :width] = torch.arange(first, first + height * width).view(height, width)
            order = cells.view(rows, side, columns, side).transpose(1, 2).reshape(rows * columns, side**2)
            found.append((order, (rows, columns)))
        start += part.count
    return found


def _globals(sequence: Sequence, spread: int) -> Tensor:
    found, start = [], 0
    for part in sequence:
        first, cells = start + part.special, part.count - part.special
        found.append(torch.arange(start, first))
        if part.grid is None:
            count = min(max(1, spread), cells)
            found.append(first + torch.arange(count) * cells // max(1, count))
        else:
            side = max(1, math.isqrt(spread))
            rows, columns = (torch.arange(min(side, n)) * n // min(side, n) for n in part.grid)
            found.append(first + (rows[:, None] * part.grid[1] + columns).flatten())
        start += part.count
    return torch.cat(found)


def _near(queries: tuple[int, int], keys: tuple[int, int]) -> Tensor:
    """[Q, K] key blocks that each query block sees, padded with -1."""
    if queries[0] == 1 or keys[0] == 1:  # a line has no rows to compare: along both, in reading order
        return _along(queries[0] * queries[1], keys[0] * keys[1])
    rows, columns = (_along(q, k) for q, k in zip(queries, keys, strict=True))
    both = rows[:, None, :, None] * keys[1] + columns[None, :, None, :]
    nobody = (rows[:, None, :, None] < 0) | (columns[None, :, None, :] < 0)
    return both.masked_fill(nobody, -1).reshape(queries[0] * queries[1], -1)


def _along(queries: int, keys: int) -> Tensor:
    # by NumPy: how many see how many must be known also where tensors have no contents (``training.cost``)
    number = np.arange(queries)
    low, high = number * keys // queries - 1, -(-(number + 1) * keys // queries) + 1
    found = low[:, None] + np.arange(int((high - low).max()) if queries else 0)
    return torch.from_numpy(np.where((found < 0) | (found >= keys) | (found >= high[:, None]), -1, found))
