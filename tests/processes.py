"""Several processes for a test: forked, so that each starts in milliseconds, and met as ``torchrun`` would have them meet."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import closing
from typing import Any


def free_port() -> int:
    with closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def launch(world: int, work: Callable[..., None], *given: Any, seconds: float = 300.0) -> list[int | None]:
    """Runs ``work(*given)`` in ``world`` processes with the launcher's variables set; returns their exit codes (None = was killed)."""
    port = free_port()
    context = multiprocessing.get_context("fork")
    started = [context.Process(target=_one, args=(rank, world, port, work, given)) for rank in range(world)]
    for process in started:
        process.start()
    end = time.monotonic() + seconds
    for process in started:
        process.join(max(0.0, end - time.monotonic()))
    codes = [process.exitcode for process in started]
    for process in started:
        process.kill()
    return codes


def _one(rank: int, world: int, port: int, work: Callable[..., None], given: tuple[Any, ...]) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    code = 0
    try:
        work(*given)
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        code = 70
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
