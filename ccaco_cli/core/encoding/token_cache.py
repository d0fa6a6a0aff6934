"""Tokens of locked towers: computed once, pooled, and kept on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ccaco_cli.core import ragged
from ccaco_cli.core.data import cache
from ccaco_cli.core.data.loader import CachedColumn, Column
from ccaco_cli.core.encoding.batching import BATCH, _ahead, _batches
from ccaco_cli.core.model.token_pooling import as_cached
from ccaco_cli.core.types import OnProgress, move, no_progress

PART, PART_BYTES = 4096, 1 << 27
"""Most items of a part of a token cache, and about how many bytes: what a killed process has to do again."""


def cached(
    tower: Any,
    column: Column,
    path: Path,
    *,
    grid: tuple[int, int] | None,
    most: int,
    device: Any,
    on_progress: OnProgress = no_progress,
) -> CachedColumn:
    """The column of a locked tower's tokens: computed once into ``path``, then read by memory map. A killed process's part of it stays.

    tower  module: inputs -> Features
    grid   (height, width) of the patch grid, or None; larger grids are average-pooled to at most ``most`` tokens
    """
    size = min(64, PART)

    @torch.inference_mode()
    def some(first: int) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        nonlocal size
        items = np.arange(first, min(first + size, len(column.row)))
        tokens: list[Any] = [None] * len(items)
        pooled: list[Any] = [None] * len(items)
        for positions, inputs in _ahead(
            lambda positions: column.inputs(items[positions]), _batches(column, items, BATCH["cpu"])
        ):
            told = as_cached(tower(move(inputs, device)), grid, most).to("cpu")
            for place, one, mask, summary in zip(
                positions, told.tokens.numpy(), told.mask.numpy(), told.pooled.numpy(), strict=True
            ):
                tokens[place], pooled[place] = one[mask], summary
        on_progress(int(items[-1]) + 1, len(column.row), {})
        values = np.concatenate(tokens)
        size = min(2 * size, PART) if values.nbytes < PART_BYTES else max(1, size // 2)
        return np.array([len(t) for t in tokens]), {"tokens": values}, {"pooled": np.stack(pooled)}

    def write(folder: Path) -> None:
        tower.eval()
        ragged.write(folder, len(column.row), some)

    return CachedColumn(cache.folder(path, write, resumes=True), column.row, column.start)
