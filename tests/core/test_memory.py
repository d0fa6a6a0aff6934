"""The anonymous peak of a block, and the allocator that keeps freed memory."""

from __future__ import annotations

import mmap
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from ccaco_cli.core import memory

CPU = torch.device("cpu")
SIZE = 64 << 20
needs_statm = pytest.mark.skipif(not memory.anonymous_memory(), reason="the system does not report anonymous memory")
needs_glibc = pytest.mark.skipif(memory._glibc() is None, reason="glibc with its default settings")


@needs_statm
def test_the_peak_holds_memory_that_was_freed_within_the_block() -> None:
    before = memory.anonymous_memory() / 2**20
    with memory.PeakMemory(CPU) as peak:
        with mmap.mmap(-1, SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as pages:  # does not depend on the heap
            for page in range(0, SIZE, mmap.PAGESIZE):
                pages[page] = 1
            time.sleep(10 * memory.SAMPLING_INTERVAL)
    assert before + 60 < peak.mib < before + 90


@needs_statm
def test_pages_of_mapped_files_do_not_count(tmp_path: Path) -> None:
    np.save(tmp_path / "tokens.npy", np.ones(SIZE, np.uint8))
    before = memory.anonymous_memory() / 2**20
    with memory.PeakMemory(CPU) as peak:
        mapped = np.load(tmp_path / "tokens.npy", mmap_mode="r")
        assert mapped.max() == 1  # reads every page
        time.sleep(10 * memory.SAMPLING_INTERVAL)
    assert peak.mib < before + 16


def test_the_resident_peak_where_anonymous_memory_is_not_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "STATM", tmp_path / "missing")
    assert memory.anonymous_memory() == 0
    with memory.PeakMemory(CPU) as peak:
        pass
    assert peak.mib == pytest.approx(memory._resident_peak(), rel=0.01)
    assert peak.mib > 50


PAGE_FAULTS = """
import resource, torch
from ccaco_cli.core import memory

def page_faults(repeats):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(repeats):
        torch.ones(64 << 20, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(page_faults(8))
with memory.keep_freed_memory():
    page_faults(16)  # aligned blocks need several rounds until one fits into the place of another
    print(page_faults(8))
"""


RETURNED = """
import torch
from ccaco_cli.core import memory

torch.ones(1)
print(memory.anonymous_memory())
try:
    with memory.keep_freed_memory():
        torch.ones(256 << 20, dtype=torch.uint8)
        print(memory.anonymous_memory())
        raise ZeroDivisionError
except ZeroDivisionError:
    print(memory.anonymous_memory())
"""


@needs_glibc
def test_freed_memory_is_used_again_within_the_block() -> None:
    """In a process of its own: the heap of this one holds blocks that other tests have freed."""
    done = subprocess.run([sys.executable, "-c", PAGE_FAULTS], capture_output=True, text=True, check=True)
    before, within = map(int, done.stdout.split())
    assert within < before / 8


@needs_glibc
@needs_statm
def test_freed_memory_is_returned_after_the_block_and_after_an_error() -> None:
    done = subprocess.run([sys.executable, "-c", RETURNED], capture_output=True, text=True, check=True)
    before, within, after = map(int, done.stdout.split())
    assert within > before + 3 * SIZE
    assert after < before + SIZE


@pytest.mark.parametrize(
    ("name", "value"), [("MALLOC_TRIM_THRESHOLD_", "1"), ("GLIBC_TUNABLES", "glibc.malloc.mmap_max=1")]
)
def test_settings_of_the_environment_are_kept(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    assert memory._glibc() is None
    with memory.keep_freed_memory():
        pass
