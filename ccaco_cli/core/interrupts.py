"""Being asked to end: Ctrl-C and SIGTERM (how a cluster takes its machine back) become a wish that work in steps can grant in order."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from ccaco_cli.core.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class StopSignal:
    """signal  the number of the one that came, 0 = none"""

    signal: int = 0


def code(number: int) -> int:
    """Exit code of a process that a signal ended: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + number


def ended(number: int, saved: str) -> Interrupted:
    """The exception that ends the work, with its exit code."""
    return Interrupted(code(number), saved)


@contextmanager
def listening() -> Iterator[StopSignal]:
    """For the time of a block signals are noted; a second one ends the process at once. Only the main thread can listen."""
    asked = StopSignal()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def note(number: int, frame: FrameType | None) -> None:
        if asked.signal:
            raise Interrupted(code(number), "ended at once")
        asked.signal = number

    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def raising() -> Iterator[None]:
    """For the time of a block SIGTERM raises ``Interrupted``, as Ctrl-C raises KeyboardInterrupt, so that temporary files are cleared."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise Interrupted(code(number))

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
