"""How batches reach the device of a run: loaded by worker processes, and copied to a GPU one batch ahead."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from ccaco_cli.core import runtime
from ccaco_cli.core.types import PairBatch

MAX_WORKERS = 8
SHARED_MEMORY = Path("/dev/shm")
MIN_SHARED_MEMORY = 1 << 30
"""Bytes of shared memory for each process of a run from which data is loaded by workers unless told otherwise."""


def device_batches(
    batches: Iterable[PairBatch],
    device: torch.device,
    decode: Callable[[PairBatch], PairBatch] = lambda batch: batch,
) -> Iterator[PairBatch]:
    """Yields each batch on the device.

    On a GPU a thread loads and copies the next batch, on a stream of its own, while the step of the current batch runs.
    A step waits for the copy of its own batch only. Batches should be in pinned memory (``load``): other large ones
    are copied more slowly.

    Args:
        decode: prepares a batch before it is copied; it may use the device.
    """
    source = iter(batches)  # here, because a data loader starts its processes in the main thread
    if device.type != "cuda":
        for batch in source:
            yield decode(batch).to(device)
        return
    copy_stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def copy_next() -> PairBatch | None:
        batch = next(source, None)
        if batch is None:
            return None
        with torch.cuda.stream(copy_stream):
            moved: PairBatch = decode(batch).to(device)
        return moved

    with ThreadPoolExecutor(1, initializer=torch.cuda.set_device, initargs=(device,)) as thread:
        copy = thread.submit(copy_next)
        while (current := copy.result()) is not None:
            step_stream = torch.cuda.current_stream(device)
            step_stream.wait_stream(copy_stream)
            # the memory belongs to the copy stream, which must not use it again before the step is done
            current.record_stream(step_stream)
            copy = thread.submit(copy_next)
            yield current


def worker_count(workers: int, device: torch.device) -> int:
    """Processes that load data for a run: ``workers``, or for -1 what suits the device.

    On a CPU none: it has the cores for the step. On a GPU one for each core of this process but one, at most
    ``MAX_WORKERS``: torchrun leaves each process one thread, which would decode alone. None where the shared memory,
    through which workers hand over batches, is small, as in containers with default settings.
    """
    if workers >= 0 or device.type != "cuda":
        return max(0, workers)
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    shared_memory = shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.exists() else MIN_SHARED_MEMORY
    cores = runtime.cpu_cores() // processes
    return min(MAX_WORKERS, cores - 1) if cores > 1 and shared_memory >= MIN_SHARED_MEMORY * processes else 0
