"""Where a run happens: device, precision, threads, processes and seeds."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from ccaco_cli.core.errors import ConfigError


def device(name: str) -> Any:
    """``auto`` -> cuda when there is one, else cpu; of several processes each has its own. Raises ConfigError: no such device."""
    import torch

    if name in ("auto", "cuda") and torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", launched()[0])) % torch.cuda.device_count())
    if name == "auto":
        return torch.device("cpu")
    try:
        found = torch.device(name)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError):
        raise ConfigError("no such device on this machine", where=name, expected="auto, cpu or cuda[:N]") from None
    return found


def launched() -> tuple[int, int]:
    """(rank, world) as a launcher of several processes says; (0, 1) without one."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


THREADS = "OMP_NUM_THREADS"


def cores() -> int:
    """Of the CPU, those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def thread_count(workers: int = 0) -> int:
    """As many as ``OMP_NUM_THREADS`` says, else one a core that no loader's worker needs: threads that lack a core of their own all wait.

    Libraries' own guesses ignore containers and swing on shared machines.
    """
    asked = os.environ.get(THREADS, "").partition(",")[0]
    return int(asked) if asked.isdigit() and int(asked) else max(1, cores() - workers)


def threads(workers: int = 0) -> None:
    """Holds torch to ``thread_count``."""
    import torch

    torch.set_num_threads(thread_count(workers))


def follow_parent() -> None:
    """A worker leaves interrupts to its parent, and does not outlive it (after a kill -9 it would wait for ever)."""
    import multiprocessing
    import signal
    import threading

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def seed(value: int) -> None:
    """Seeds Python, numpy and torch (every device)."""
    import random

    import numpy as np
    import torch

    random.seed(value)
    np.random.seed(value % 2**32)
    torch.manual_seed(value)


def resident_memory() -> int:
    """Bytes of memory that this process holds now (0 where the system does not say)."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0


def available_memory(device: Any) -> int:
    """Bytes that a run may take: of the GPU, or of this machine (what is free, and what this process holds already) and its container."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    rooms = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        rooms.append(
            int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) * 1024 + resident_memory()
        )
    with contextlib.suppress(OSError, ValueError):  # a container without a limit says "max"
        rooms.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(rooms)


PRECISIONS = ("auto", "fp32", "amp_bf16", "amp_fp16")


def autocast(precision: str, device: Any) -> contextlib.AbstractContextManager[Any]:
    """The mixed-precision context of ``--precision``; ``auto`` is bf16 on CUDA and fp32 elsewhere (bf16 is slower on CPUs without AMX)."""
    import torch

    if precision not in PRECISIONS:
        raise ConfigError("unknown precision", where=precision, expected=" | ".join(PRECISIONS))
    if precision == "auto":
        precision = "amp_bf16" if device.type == "cuda" else "fp32"
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16 if precision == "amp_bf16" else torch.float16)


ENCODING = ("auto", "fp32", "bf16", "fp16")


def encoding(precision: str, device: Any) -> Any:
    """The torch dtype that towers compute in while they only encode.

    ``auto`` is a narrow one where the device multiplies it faster: bf16 on a GPU (fp16 on one without it) and on CPUs with AVX512-BF16 or
    AMX, 3.3 times the rate of fp32 there; fp32 elsewhere, for other CPUs convert every number first.

    Raises ConfigError: no such precision
    """
    import torch

    if precision not in ENCODING:
        raise ConfigError("unknown precision", where=precision, expected=" | ".join(ENCODING))
    if precision == "auto" and device.type == "cuda":
        precision = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    elif precision == "auto":
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        precision = "bf16" if device.type == "cpu" and native else "fp32"
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
