"""Which items are encoded together, and reading them ahead of the device."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from ccaco_cli.core.data.loader import Column

BATCH = {"cpu": 64, "cuda": 256}
"""Items that are encoded at a time. On a CPU the maps of 64 pictures still lie in cache: convolutions take twice as long with 256."""


TOKENS, PIXELS = 1 << 15, 1 << 24
"""Most text tokens, and numbers of other media, that are encoded at a time: one picture of 4096 x 4096."""


def _ahead(make: Callable[[Any], Any], jobs: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    """Each job and what ``make`` gives for it, which a thread begins while the job before is worked on: the device does not wait."""
    with ThreadPoolExecutor(1) as pool:
        waiting: deque[tuple[Any, Future[Any]]] = deque()
        for job in jobs:
            waiting.append((job, pool.submit(make, job)))
            if len(waiting) > 1:
                done, made = waiting.popleft()
                yield done, made.result()
        for done, made in waiting:
            yield done, made.result()


def _batches(column: Column, chosen: Any, size: int) -> Iterator[Any]:
    """Positions in ``chosen``, by length, at most ``size`` at a time and fewer of what is large."""
    if len(chosen) == 1:  # whatever its size; to measure it would decode it twice
        yield np.arange(1)
        return
    if column.length is None:
        one = column.inputs(chosen[:1]) if len(chosen) else None
        cost = max(t[0].numel() for t in one.values()) // 3 if isinstance(one, dict) else 1
        order, limits = np.arange(len(chosen)), np.full(len(chosen), PIXELS // max(1, cost))
    else:
        length = np.asarray(column.length)[chosen]
        order = np.argsort(length, kind="stable")
        limits = TOKENS // np.maximum(1, length[order])
    first = 0
    while first < len(order):
        room = np.maximum(1, limits[first : first + size])  # by the longest so far
        count = int((np.arange(1, len(room) + 1) <= room).sum())
        yield order[first : first + count]
        first += count
