"""Smaller patch grids: average-pooled tokens cost less to store and to attend to."""

from __future__ import annotations

import torch

from ccaco_cli.core.types import Features

Grid = tuple[int, int]
"""(height, width) of the patches that are the last tokens of a sample."""


def pool_grid(features: Features, grid: Grid | None, max_tokens: int) -> Features:
    """Average-pools a patch grid to at most ``max_tokens`` tokens; special tokens in front of it stay.

    Args:
        features: B samples whose last tokens are the patches.
        grid: their grid; None = there is none, and nothing is pooled.
        max_tokens: the pooled grid has the largest square side that fits, and no side is larger than the grid's.
    Returns:
        ``features`` itself where the grid is small enough, else pooled tokens in float32.
    """
    if grid is None or (small := pooled_grid(grid, max_tokens)) == grid:
        return features
    patches = grid[0] * grid[1]
    special, patch = features.tokens[:, :-patches], features.tokens[:, -patches:]
    maps = patch.transpose(1, 2).reshape(patch.shape[0], -1, *grid)
    pooled = torch.nn.functional.adaptive_avg_pool2d(maps.float(), small)
    tokens = torch.cat([special, pooled.flatten(2).transpose(1, 2)], 1)
    return Features(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device), features.pooled)


def pooled_grid(grid: Grid, max_tokens: int) -> Grid:
    """The grid that ``pool_grid`` makes of a grid."""
    side = int(max_tokens**0.5)
    return grid if grid[0] * grid[1] <= max_tokens else (min(side, grid[0]), min(side, grid[1]))


def as_cached(features: Features, grid: Grid | None, max_tokens: int) -> Features:
    """What a token cache stores of a locked tower's features: the grid pooled to ``max_tokens``, tokens in float16, and
    the pooled vector in float32, because a pretrained model compares samples by it."""
    small = pool_grid(features, grid, max_tokens)
    return Features(small.tokens.half(), small.mask, small.pooled.float())
