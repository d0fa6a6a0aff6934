"""Memory of this process: its anonymous peak, and an allocator that keeps freed memory for the next batch."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

STATM = Path("/proc/self/statm")
SAMPLING_INTERVAL = 0.02
"""Seconds between two samples of the anonymous memory; one sample takes about 20 microseconds."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
"""Parameters of glibc's ``mallopt``."""


def anonymous_memory() -> int:
    """Resident memory in bytes without the pages of mapped files, which the system can drop at any time.

    0 where the system does not report it.
    """
    try:
        _, resident, shared = STATM.read_text().split()[:3]
    except (OSError, ValueError):
        return 0
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


class PeakMemory:
    """Measures the peak memory of a block. A context manager.

    On a GPU it is the peak of torch's tensors. On a CPU it is the anonymous memory of this process, sampled by a
    thread; where the system does not report that, it is the resident peak since the process started.

    Args:
        device: the torch device that computes.
    """

    def __init__(self, device: Any):
        self.device, self._bytes = device, 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample_until_ended, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._sample()
        if self._bytes and self.device.type != "cuda":
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._sample()
        if self._thread.ident is not None:
            self._thread.join()

    @property
    def mib(self) -> float:
        """The peak so far, in MiB."""
        if self.device.type == "cuda":
            import torch

            return float(torch.cuda.max_memory_allocated(self.device)) / 2**20
        return self._bytes / 2**20 if self._bytes else _resident_peak()

    def _sample(self) -> None:
        self._bytes = max(self._bytes, anonymous_memory())

    def _sample_until_ended(self) -> None:
        while not self._ended.wait(SAMPLING_INTERVAL):
            self._sample()


def _resident_peak() -> float:
    """Largest resident memory of this process since its start, in MiB."""
    unit = 2**20 if sys.platform == "darwin" else 2**10  # ru_maxrss is in bytes on macOS, in KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


@contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Within the block, glibc keeps freed memory for the next allocation; afterwards it returns what is free.

    By default glibc maps every large tensor anew and unmaps it after use, and the system fills each of its pages with
    zeros at the first touch. For convolutions on a CPU this takes as long as their arithmetic. Has no effect with other
    C libraries, or if the environment configures the allocator.
    """
    libc = _glibc()
    if libc is None:
        yield
        return
    libc.mallopt(_MMAP_MAX, 0)
    libc.mallopt(_TRIM_THRESHOLD, -1)
    try:
        yield
    finally:  # the largest values that glibc chooses by itself: changing any of them stops its own adjustment
        libc.mallopt(_MMAP_MAX, 1 << 16)
        libc.mallopt(_MMAP_THRESHOLD, 1 << 25)
        libc.mallopt(_TRIM_THRESHOLD, 1 << 26)
        libc.malloc_trim(0)


def _glibc() -> Any:
    """The C library if it is glibc and has its default settings, else None."""
    if any(name.startswith("MALLOC_") for name in os.environ) or "malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return None
    with suppress(OSError, AttributeError, ValueError):
        if os.confstr("CS_GNU_LIBC_VERSION"):  # type: ignore[attr-defined]
            return ctypes.CDLL(None)
    return None
