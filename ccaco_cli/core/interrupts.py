"""Ctrl-C and SIGTERM (sent by cluster schedulers): long work in steps notices the signal, saves and ends in order."""

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
    """Whether a signal has arrived.

    Attributes:
        signal: its number; 0 = none yet.
    """

    signal: int = 0


def exit_code(number: int) -> int:
    """Exit code of a process that a signal ended: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + number


def interrupted(number: int, message: str) -> Interrupted:
    """The exception that ends the work after a signal, with its exit code."""
    return Interrupted(exit_code(number), message)


@contextmanager
def catch_stop_signals() -> Iterator[StopSignal]:
    """Inside the block the first signal is only recorded; a second one raises ``Interrupted`` at once.

    Works in the main thread only.
    """
    stop_signal = StopSignal()
    if threading.current_thread() is not threading.main_thread():
        yield stop_signal
        return

    def record(number: int, frame: FrameType | None) -> None:
        if stop_signal.signal:
            raise interrupted(number, "ended at once")
        stop_signal.signal = number

    previous = {number: signal.signal(number, record) for number in SIGNALS}
    try:
        yield stop_signal
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def raise_on_sigterm() -> Iterator[None]:
    """Inside the block SIGTERM raises an exception, as Ctrl-C does, so that temporary files are removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise Interrupted(exit_code(number))

    previous = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
