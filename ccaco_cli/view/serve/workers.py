"""Threads that do the work of requests: a bounded queue for each lane, and equal jobs joined into one batch."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from ccaco_cli.view.serve.problems import HttpError

BATCH = 32
"""Jobs that are joined."""
RETRY_SECONDS = 2


@dataclass(eq=False)
class Job:
    """Work of one request.

    Attributes:
        work: arguments of joined jobs -> their results, in order.
        argument: of this job.
        key: jobs of one key are joined; None = never.
    """

    work: Callable[[Sequence[Any]], Sequence[Any]]
    argument: Any
    key: Hashable | None
    result: Future[Any] = field(default_factory=Future)


class Lane:
    """One worker thread and its queue, first in, first out.

    One thread is enough, because the libraries that it calls use all cores for one job.

    Args:
        name: of the thread.
        waiting: jobs that the queue holds.
    """

    def __init__(self, name: str, waiting: int):
        self.waiting = waiting
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        threading.Thread(target=self._run, name=name, daemon=True).start()  # the end of the process does not wait

    async def run(self, call: Callable[[], Any], seconds: float) -> Any:
        """The result of a call in the thread.

        Raises:
            HttpError: 503 where the queue is full, 504 after ``seconds``.
        """
        return await self._result(Job(lambda arguments: [call()], None, None), seconds)

    async def run_joined(
        self, work: Callable[[Sequence[Any]], Sequence[Any]], argument: Any, key: Hashable, seconds: float
    ) -> Any:
        """The result of ``work`` for one argument; waiting jobs of the same key are done in one call.

        Raises:
            HttpError: as ``run``.
        """
        return await self._result(Job(work, argument, key), seconds)

    def close(self) -> None:
        """Ends the thread after the job that it does; jobs that wait are cancelled."""
        with self._changed:
            self._closed = True
            for job in self._jobs:
                job.result.cancel()
            self._jobs.clear()
            self._changed.notify()

    async def _result(self, job: Job, seconds: float) -> Any:
        with self._changed:
            if self._closed or len(self._jobs) >= self.waiting:
                raise HttpError(
                    503,
                    "the server is busy",
                    expected=f"at most {self.waiting} waiting requests",
                    next=f"try again in {RETRY_SECONDS} seconds",
                    headers={"retry-after": str(RETRY_SECONDS)},
                )
            self._jobs.append(job)
            self._changed.notify()
        try:
            return await asyncio.wait_for(asyncio.wrap_future(job.result), seconds)  # a job that waits is then dropped
        except TimeoutError:
            raise HttpError(
                504,
                "this request took too long",
                expected=f"at most {seconds:g} seconds",
                next="a shorter query, fewer hits, or a narrower filter",
            ) from None

    def _run(self) -> None:
        while (jobs := self._next()) is not None:
            _finish(jobs)
            del jobs  # an idle thread must not keep an index of an earlier generation open

    def _next(self) -> list[Job] | None:
        """The next job and those that join it; None = the lane is closed."""
        with self._changed:
            while not self._jobs:
                if self._closed:
                    return None
                self._changed.wait()
            jobs = [self._jobs.popleft()]
            key = jobs[0].key
            if key is not None:
                for job in [job for job in self._jobs if job.key == key][: BATCH - 1]:
                    self._jobs.remove(job)
                    jobs.append(job)
        return [job for job in jobs if job.result.set_running_or_notify_cancel()]


def _finish(jobs: Sequence[Job]) -> None:
    """Sets the results of joined jobs. Where their batch fails, each is done alone, so that one cannot fail another."""
    if not jobs:
        return
    try:
        results = jobs[0].work([job.argument for job in jobs])
    except BaseException as error:  # it belongs to the request, which waits in another thread
        if len(jobs) > 1:
            for job in jobs:
                _finish([job])
        else:
            jobs[0].result.set_exception(error)
        return
    for job, result in zip(jobs, results, strict=True):
        job.result.set_result(result)
