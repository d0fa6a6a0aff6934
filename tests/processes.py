"""Several processes for a test, met as ``torchrun`` would have them meet.

They are forked from a server that has imported much and computed nothing. Each starts in milliseconds, and none
inherits the threads, locks and streams of this process: autograd, OpenMP and Arrow do not survive a fork once they
have been used.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "tests.conftest",
        "ccaco_cli.core.workflows.ablate",
        "ccaco_cli.core.retrieval.export",
        "onnxscript",
        "onnxruntime",
    ]
)


def free_port() -> int:
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def launch(world: int, work: Callable[..., None], *arguments: Any, seconds: float = 300.0) -> list[int | None]:
    """Runs ``work(*given)`` in ``world`` processes with the launcher's variables set.

    Returns their exit codes; None = was killed.

    work  a function of a module, or a ``partial`` of one: it travels to the other processes by name
    """
    launcher = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    environment = os.environ | launcher
    started = [CONTEXT.Process(target=_run_rank, args=(rank, environment, work, arguments)) for rank in range(world)]
    for process in started:
        process.start()
    end = time.monotonic() + seconds
    for process in started:
        process.join(max(0.0, end - time.monotonic()))
    codes = [process.exitcode for process in started]
    for process in started:
        process.kill()
    return codes


def _run_rank(rank: int, environment: Mapping[str, str], work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.environ.clear()
    os.environ |= {**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}
    code = 0
    try:
        work(*arguments)
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        code = 70
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
