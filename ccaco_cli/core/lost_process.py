"""Finds which process of a launcher was lost, and ends the waiting of the others.

The processes share a key-value store. A process that ends with an error writes the reason there.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from ccaco_cli.core.errors import LostProcess

DIAGNOSIS_TIMEOUT = timedelta(seconds=10)
"""How long the remaining processes wait for a sign of life from each other before they report which process is lost."""
WATCH_INTERVAL = 1.0
"""Seconds between two looks at the store for failures of other processes."""
PULSE_INTERVAL = 5.0
"""Seconds between two signs of life of a process."""


@dataclass(frozen=True)
class Members:
    """The processes of a group, seen from one of them.

    Attributes:
        store: key-value store that the processes share.
        rank: number of this process.
        size: number of processes.
        timeout: how long the others wait for a process that does not answer.
    """

    store: Any
    rank: int
    size: int
    timeout: timedelta = timedelta(minutes=30)

    @property
    def others(self) -> set[int]:
        """Numbers of the other processes."""
        return set(range(self.size)) - {self.rank}

    def record_failure(self, message: str) -> None:
        """Stores the reason why this process ends, so that the others can report it."""
        with suppress(RuntimeError):
            self.store.set(f"left/{self.rank}", " ".join(message.split())[:300])

    @contextmanager
    def shows_life(self) -> Iterator[None]:
        """Stores signs of life of this process while the block runs."""
        # a connection of its own: this process may wait on the other one
        thread_members = Members(self.store.clone(), self.rank, self.size)
        stop = threading.Event()
        threading.Thread(target=thread_members.store_pulses, args=(stop,), daemon=True).start()
        try:
            yield
        finally:
            stop.set()

    def store_pulses(self, stop: threading.Event) -> None:
        """Stores a new sign of life every few seconds until ``stop`` is set, or the store is gone."""
        pulse = 0
        with suppress(RuntimeError):
            while not stop.is_set():
                self.store.set(f"pulse/{self.rank}", str(pulse))
                pulse += 1
                stop.wait(PULSE_INTERVAL)

    def wait_for(self, keys: Mapping[int, str], *, while_alive: bool) -> None:
        """Waits until each process has set its key in the store.

        Args:
            keys: rank -> key.
            while_alive: a process may take as long as it shows signs of life; else it has ``timeout``.
        Raises:
            LostProcess: a process has ended with an error, shows no sign of life for ``timeout``, or has not set its
                key in time.
            RuntimeError: the store is gone, because the process that hosted it has ended.
        """
        last_pulse: dict[int, bytes] = {}
        last_heard = dict.fromkeys(keys, time.monotonic())
        while True:
            # first, because a process sets its key before it ends
            ended = {rank for rank in keys if self.store.check([f"left/{rank}"])}
            missing = {rank: key for rank, key in keys.items() if not self.store.check([key])}
            if not missing:
                return
            now = time.monotonic()
            for rank in missing if while_alive else ():
                pulse = self.store.get(f"pulse/{rank}") if self.store.check([f"pulse/{rank}"]) else b""
                if pulse != last_pulse.get(rank):
                    last_pulse[rank], last_heard[rank] = pulse, now
            silent = {rank for rank in missing if now - last_heard[rank] > self.timeout.total_seconds()}
            if silent or ended & set(missing):
                raise self.lost(TimeoutError("no answer"))
            with suppress(RuntimeError):  # after this time; where the store is gone, the next look at it fails, too
                self.store.wait([*missing.values()], timedelta(seconds=WATCH_INTERVAL))

    @contextmanager
    def abort_on_failure(self) -> Iterator[None]:
        """Aborts the collectives of this process when another process ends with an error inside the block.

        A process that waits for a result of its GPU gets no error from NCCL while the others keep their connections
        open. After the abort its next collective fails.
        """
        # a connection of its own: this process may wait on the other one
        watcher = Members(self.store.clone(), self.rank, self.size)
        stop = threading.Event()
        threading.Thread(target=watcher.watch, args=(stop,), daemon=True).start()
        try:
            yield
        finally:
            stop.set()

    def watch(self, stop: threading.Event) -> None:
        """Looks for failures of other processes until ``stop`` is set; aborts the collectives after the first."""
        while not stop.wait(WATCH_INTERVAL):
            try:
                failed = any(self.store.check([f"left/{number}"]) for number in self.others)
            except RuntimeError:  # the process that hosted the store has ended
                failed = not stop.is_set()
            if failed:
                abort_collectives()
                return

    def lost(self, error: BaseException) -> LostProcess:
        """The error that names the lost processes: those that do not write a sign of life into the store.

        Args:
            error: the failure of a collective of this process.
        """
        silent = self.others
        reasons: dict[int, str] = {}
        try:
            self.store.set(f"alive/{self.rank}", "yes")
            end = time.monotonic() + DIAGNOSIS_TIMEOUT.total_seconds()
            while silent and time.monotonic() < end:
                for number in sorted(silent):
                    if self.store.check([f"left/{number}"]):
                        reasons[number] = self.store.get(f"left/{number}").decode("utf-8", "replace")
                    if number in reasons or self.store.check([f"alive/{number}"]):
                        silent.discard(number)
                time.sleep(0.05)
        except RuntimeError:  # the store itself is gone: the main process (or the launcher) hosted it
            silent = {0}
        lost = [f"process {number} of {self.size} ended: {reason}" for number, reason in reasons.items()]
        lost += [f"process {number} of {self.size} ended without a message" for number in sorted(silent)]
        details = " ".join(str(error).split())[:120]
        message = "; ".join(lost) or f"the connection to the other processes broke ({details})"
        return LostProcess(
            message, expected=f"{self.size} processes to the end", next="the same command with --resume latest"
        )


def abort_collectives() -> None:
    """Makes all pending and later collectives of this process fail; its process group stays registered."""
    if dist.group.WORLD is not None:
        dist.group.WORLD.abort()


def is_connection_error(error: BaseException) -> bool:
    """Whether an error means that a collective has failed."""
    return isinstance(error, dist.DistError | ConnectionError) or any(
        word in str(error) for word in ("gloo", "Connection closed", "Connection reset", "NCCL")
    )
