"""Checks a stream of records on all cores, in order, with bounded memory.

Imports little, because every worker process loads it.
"""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from ccaco_cli.core import runtime
from ccaco_cli.core.data.checks import Passed, Rejected, Rules, check_all
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.types import PairRecord

CHUNK = 32  # records per task
AHEAD = 4  # queued tasks per worker: bounds memory


def checked(
    records: Iterator[PairRecord], rules: Rules, workers: int | None
) -> Generator[tuple[PairRecord, Passed | Rejected], None, None]:
    """Yields each record with its outcome, in order.

    Args:
        records: consumed ahead of the outcomes, by a bounded number.
        rules: of ``checks.check``.
        workers: processes; None = all cores, 0 or 1 = only this one.
    Raises:
        DataError: a worker died (most likely for lack of memory).
    """
    workers = runtime.cpu_cores() if workers is None else workers
    if workers <= 1:
        for record in records:
            yield record, check_all([record], rules)[0]
        return
    # spawned, not forked: this process may have threads of Arrow or torch
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=runtime.end_with_parent)
    try:
        yield from _in_order(pool, records, rules, workers * AHEAD)
    except BrokenProcessPool:
        raise DataError(
            "a worker process died",
            expected="enough memory for every worker",
            next="the same command with fewer --workers",
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _in_order(
    pool: Executor, records: Iterator[PairRecord], rules: Rules, ahead: int
) -> Iterator[tuple[PairRecord, Passed | Rejected]]:
    queue: deque[tuple[list[PairRecord], Future[list[Passed | Rejected]]]] = deque()
    chunk: list[PairRecord] = []
    for record in records:
        chunk.append(record)
        if len(chunk) == CHUNK:
            queue.append((chunk, pool.submit(check_all, chunk, rules)))
            chunk = []
        if len(queue) > ahead:
            ready, future = queue.popleft()
            yield from zip(ready, future.result(), strict=True)
    queue.append((chunk, pool.submit(check_all, chunk, rules)))
    for ready, future in queue:
        yield from zip(ready, future.result(), strict=True)
