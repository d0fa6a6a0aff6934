"""Token caches: what a locked tower computes of a split, pooled, rounded to float16 and stored once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ccaco_cli.core import memory, ragged, runtime
from ccaco_cli.core.data import cache
from ccaco_cli.core.data.loader import CachedColumn, Column, TextColumn
from ccaco_cli.core.encoding import batching
from ccaco_cli.core.encoding.batching import batch_positions, prefetch
from ccaco_cli.core.model.token_pooling import Grid, as_cached
from ccaco_cli.core.types import OnProgress, move, no_progress

PART, PART_BYTES = 4096, 1 << 27
"""Most items of one part of a cache, and about its bytes. A process that was killed computes one part again."""

BATCH_SIZE = {**batching.BATCH_SIZE, "cpu": 16, "cpu_text": batching.BATCH_SIZE["cpu"]}
"""Items that are encoded at a time. On a CPU the feature maps of 64 images need two to three times the memory of 16,
and no less time; 64 captions need little memory, and a tenth less time than four times 16."""


def cached(
    tower: Any,
    column: Column,
    path: Path,
    *,
    grid: Grid | None,
    max_tokens: int,
    device: Any,
    on_progress: OnProgress = no_progress,
) -> CachedColumn:
    """The column of a locked tower's tokens, computed on the first call and then read by memory map.

    A process that was killed leaves its finished parts, and the next call continues from them.

    Args:
        tower: module, inputs -> Features.
        path: folder of the cache.
        grid: patch grid of the tower's tokens, average-pooled to at most ``max_tokens``; None = no grid.
    """
    on_cpu = "cpu_text" if isinstance(column, TextColumn) else "cpu"
    batch_size = BATCH_SIZE[on_cpu if torch.device(device).type == "cpu" else "cuda"]
    size = min(batch_size, PART)

    @torch.inference_mode()
    def encode_part(start: int) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        nonlocal size
        items = np.arange(start, min(start + size, len(column.row)))
        tokens: list[Any] = [None] * len(items)
        pooled: list[Any] = [None] * len(items)
        for positions, inputs in prefetch(
            lambda positions: column.inputs(items[positions]), batch_positions(column, items, batch_size)
        ):
            with runtime.locked_precision(torch.device(device)):
                features = tower(move(inputs, device))
            features = as_cached(features, grid, max_tokens).to("cpu")
            arrays = features.tokens.numpy(), features.mask.numpy(), features.pooled.numpy()
            for place, item_tokens, item_mask, item_pooled in zip(positions, *arrays, strict=True):
                tokens[place], pooled[place] = item_tokens[item_mask], item_pooled
        on_progress(int(items[-1]) + 1, len(column.row), {})
        values = np.concatenate(tokens)
        size = max(1, min(PART, len(items) * PART_BYTES // max(1, values.nbytes)))
        return np.array([len(t) for t in tokens]), {"tokens": values}, {"pooled": np.stack(pooled)}

    def write(folder: Path) -> None:
        tower.eval()
        with memory.keep_freed_memory():
            ragged.write(folder, len(column.row), encode_part)

    return CachedColumn(cache.folder(path, write, resumes=True), column.row, column.start)
