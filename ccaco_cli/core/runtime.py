"""Device, precision, threads, launcher variables and seeds of a run."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ccaco_cli.core.errors import ConfigError

ALLOCATOR_VARIABLES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
"""Settings of torch's memory allocator on GPUs, under both of their names."""


def device(name: str) -> Any:
    """The torch device of a name; ``auto`` is cuda where there is a GPU, else cpu.

    Under a launcher each process has its own GPU. The GPU becomes the current one: collectives and ``torch.cuda``
    functions without a device argument use it. Its memory is reserved in segments that can grow, unless the user has
    set ``PYTORCH_CUDA_ALLOC_CONF``: batches of many shapes then leave no gaps.

    Raises:
        ConfigError: no such device, or several processes would share a GPU.
    """
    if name != "cpu" and not any(variable in os.environ for variable in ALLOCATOR_VARIABLES):
        os.environ[ALLOCATOR_VARIABLES[0]] = "expandable_segments:True"  # read when torch first uses the GPU
    import torch

    if name in ("auto", "cuda") and torch.cuda.is_available():
        chosen = torch.device("cuda", _process_gpu(torch.cuda.device_count()))
    else:
        chosen = _named_device("cpu" if name == "auto" else name)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    return chosen


def _process_gpu(gpus: int) -> int:
    """Number of the GPU of this process. Raises ConfigError: more processes on this machine than GPUs."""
    local_rank = int(os.environ.get("LOCAL_RANK", launcher_rank()[0] % gpus))  # launchers such as mpirun do not set it
    processes = max(local_rank + 1, int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    if processes > gpus:
        raise ConfigError(
            "more processes than GPUs on this machine",
            where=f"{processes} processes, {gpus} GPUs",
            expected=f"torchrun --nproc-per-node {gpus}, or --device cpu",
        )
    return local_rank


def _named_device(name: str) -> Any:
    """The torch device of a name. Raises ConfigError: no such device, or one GPU is named for several processes."""
    import torch

    try:
        chosen = torch.device(name)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError):
        raise ConfigError("no such device on this machine", where=name, expected="auto, cpu or cuda[:N]") from None
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", launcher_rank()[1]))
    if chosen.type == "cuda" and processes > 1:
        raise ConfigError(
            "several processes cannot share one GPU",
            where=f"--device {name} with {processes} processes",
            expected="--device cuda, which gives each process its own",
        )
    return chosen


def must_wait(tensor: Any) -> bool:
    """Whether reading a value of this tensor lets the program wait: the device must first do all its work so far.

    Shapes that depend on values (a boolean index, ``unique``, ``nonzero``) need such a read.
    """
    return bool(tensor.device.type != "cpu")


def launcher_rank() -> tuple[int, int]:
    """(rank, world) as set by a launcher such as torchrun; (0, 1) without one."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


THREADS_VARIABLE = "OMP_NUM_THREADS"


def cpu_cores() -> int:
    """Number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def thread_count(workers: int = 0) -> int:
    """``OMP_NUM_THREADS`` if it is set, else one thread per core that no data loader worker needs: more threads than
    cores are slower.

    The defaults of the libraries ignore the limits of containers and vary on shared machines.
    """
    requested = os.environ.get(THREADS_VARIABLE, "").partition(",")[0]
    return int(requested) if requested.isdigit() and int(requested) else max(1, cpu_cores() - workers)


def decoding_threads() -> int:
    """Threads that decode media in this process: as many as torch has.

    Under torchrun, which gives torch one thread, each process has its share of the cores; a worker process that loads
    data has one thread.
    """
    import torch
    from torch.utils.data import get_worker_info

    if get_worker_info() is not None or "TORCHELASTIC_RUN_ID" not in os.environ:
        return torch.get_num_threads()
    return max(torch.get_num_threads(), cpu_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def limit_threads(workers: int = 0) -> None:
    """Limits torch to ``thread_count`` threads."""
    import torch

    torch.set_num_threads(thread_count(workers))


def end_with_parent() -> None:
    """For worker processes: ignores Ctrl-C, which the parent handles, and ends with the parent (also after kill -9)."""
    import multiprocessing
    import signal
    import threading

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def wait_for_parent() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait_for_parent, daemon=True).start()


def seed(value: int) -> None:
    """Seeds Python, numpy and torch (every device)."""
    import random

    import numpy as np
    import torch

    random.seed(value)
    np.random.seed(value % 2**32)
    torch.manual_seed(value)


def resident_memory() -> int:
    """Memory of this process in bytes; 0 where the system does not report it."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0


def available_memory(device: Any) -> int:
    """Memory in bytes that a run may use, of the GPU or of the machine (within its container limit): free memory plus
    that of this process."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device))
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        limits.append(
            int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) * 1024 + resident_memory()
        )
    with contextlib.suppress(OSError, ValueError):  # a container without a limit says "max"
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(limits)


def free_memory(device: Any) -> int:
    """Memory of a GPU in bytes that new tensors can have: free memory, and what torch has reserved and does not use."""
    import torch

    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0] + unused)


@contextlib.contextmanager
def tensor_float32(device: Any) -> Iterator[None]:
    """Inside, a GPU multiplies float32 matrices with 10 bits of mantissa (TF32), several times as fast.

    For encoding and scoring without gradients: cosines change by less than 1e-3. Losses need full float32.
    """
    import torch

    if device.type != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


PRECISIONS = ("auto", "fp32", "amp_bf16", "amp_fp16")


def training_precision(precision: str, device: Any) -> str:
    """What ``--precision`` means on a device: ``auto`` is bf16 on CUDA, else fp32 (slower in bf16 without AMX).

    Raises:
        ConfigError: no such precision.
    """
    if precision not in PRECISIONS:
        raise ConfigError("unknown precision", where=precision, expected=" | ".join(PRECISIONS))
    if precision != "auto":
        return precision
    return "amp_bf16" if device.type == "cuda" else "fp32"


def autocast(precision: str, device: Any) -> contextlib.AbstractContextManager[Any]:
    """The mixed-precision context of ``--precision`` (``training_precision``)."""
    import torch

    precision = training_precision(precision, device)
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16 if precision == "amp_bf16" else torch.float16)


def locked_dtype(device: Any) -> Any:
    """The torch dtype in which locked towers compute on a device, for token caches and for queries alike.

    A 16-bit type on GPUs (bf16, or fp16 where there is no bf16): tokens are stored in 16 bits anyway. Else float32.
    """
    import torch

    return encoding_dtype("auto", device) if device.type == "cuda" else torch.float32


def locked_precision(device: Any) -> contextlib.AbstractContextManager[Any]:
    """The context in which locked towers compute (``locked_dtype``)."""
    import torch

    if device.type != "cuda":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=locked_dtype(device))


ENCODING_PRECISIONS = ("auto", "fp32", "bf16", "fp16")


def encoding_dtype(precision: str, device: Any) -> Any:
    """The torch dtype in which towers compute when they encode without training.

    ``auto`` is a 16-bit type where the device multiplies it faster: bf16 on GPUs (fp16 on those without bf16) and on
    CPUs with AVX512-BF16 or AMX (3.3 times the rate of fp32); else fp32, since other CPUs would convert every number
    first.

    Raises:
        ConfigError: no such precision.
    """
    import torch

    if precision not in ENCODING_PRECISIONS:
        raise ConfigError("unknown precision", where=precision, expected=" | ".join(ENCODING_PRECISIONS))
    if precision == "auto" and device.type == "cuda":
        precision = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    elif precision == "auto":
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        precision = "bf16" if device.type == "cpu" and native else "fp32"
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
