"""Which items are encoded together, and reading them ahead of the device."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # captions by an exported decoder load no torch
    from ccaco_cli.core.data.loader import Column

BATCH_SIZE = {"cpu": 64, "cuda": 256}
"""Items that are encoded at a time. On a CPU the feature maps of 64 images still fit in cache: convolutions of 256 take
twice as long for each image."""
MAX_TEXT_TOKENS, MAX_PIXELS = 1 << 15, 1 << 24
"""Limits of one batch: tokens of texts, and numbers of other media / 3 (one image of 4096 x 4096 pixels)."""


def prefetch(read: Callable[[Any], Any], jobs: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    """Yields each job and what ``read`` returns for it; a thread reads the next job meanwhile, so that the device does
    not wait."""
    with ThreadPoolExecutor(1) as pool:
        waiting: deque[tuple[Any, Future[Any]]] = deque()
        for job in jobs:
            waiting.append((job, pool.submit(read, job)))
            if len(waiting) > 1:
                first, future = waiting.popleft()
                yield first, future.result()
        for first, future in waiting:
            yield first, future.result()


def batch_positions(column: Column, chosen: Any, size: int) -> Iterator[Any]:
    """Divides items into batches of like length.

    Args:
        chosen: [n] items of the column.
        size: most items of a batch; batches of large items are smaller.
    Yields:
        [b] int64, positions in ``chosen``, each once.
    """
    if len(chosen) == 1:  # no need to measure it: that would decode it twice
        yield np.arange(1)
        return
    if column.length is None:
        sample = column.inputs(chosen[:1]) if len(chosen) else None
        pixels = max(tensor[0].numel() for tensor in sample.values()) // 3 if isinstance(sample, dict) else 1
        order, limits = np.arange(len(chosen)), np.full(len(chosen), MAX_PIXELS // max(1, pixels))
    else:
        length = np.asarray(column.length)[chosen]
        order = np.argsort(length, kind="stable")
        limits = MAX_TEXT_TOKENS // np.maximum(1, length[order])
    start = 0
    while start < len(order):
        max_items = np.maximum(1, limits[start : start + size])  # of a batch that ends here, by its longest item
        count = int((np.arange(1, len(max_items) + 1) <= max_items).sum())
        yield order[start : start + count]
        start += count
