"""Where a run happens: device, precision, threads and seeds."""

from __future__ import annotations

import contextlib
import os
import random
from typing import Any

from ccaco_cli.core.errors import ConfigError


def device(name: str) -> Any:
    """``auto`` -> cuda when there is one, else cpu. Raises ConfigError for a device that is not there."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(name)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError):
        raise ConfigError("no such device on this machine", where=name, expected="auto, cpu or cuda[:N]") from None
    return found


def threads() -> None:
    """One thread a core that this process may use: torch's own guess ignores containers and swings on shared machines."""
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def seed(value: int) -> None:
    """Seeds Python, numpy and torch (every device)."""
    import numpy as np
    import torch

    random.seed(value)
    np.random.seed(value % 2**32)
    torch.manual_seed(value)


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
