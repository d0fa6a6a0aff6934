"""stdout and stderr that may be closed, full, or read by a process that has ended.

Results that cannot be written end the command with an error, except where the reader has ended (``| head``).
Messages that cannot be written are lost, and the command continues.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import TextIO

from ccaco_cli.core.escape import printable
from ccaco_cli.core.runtime import launcher_rank


def prepare_streams() -> None:
    """Opens closed standard streams on the null device, and makes characters that a terminal cannot show escapes.

    Without this, the next file that is opened would become stdout, and Python's ``sys.stdout`` would be None.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        mode = "r" if name == "stdin" else "w"
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            setattr(sys, name, None)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def write_result(text: str) -> bool:
    """Writes to stdout at once.

    Returns:
        False when the process that reads stdout has ended; what is written later goes nowhere.
    Raises:
        OSError: stdout cannot be written, such as a file on a full disk.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        _discard(sys.stdout)
        return False
    return True


def write_result_bytes(data: bytes) -> bool:
    """Writes bytes to stdout at once, as ``write_result`` writes text."""
    try:
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        _discard(sys.stdout)
        return False
    return True


def write_message(line: str, *, any_rank: bool = False) -> None:
    """Prints one line on stderr; it is lost when stderr cannot be written.

    Args:
        any_rank: True prints in every process of a launcher, False in the main process only.
    """
    if launcher_rank()[0] and not any_rank:
        return
    try:
        print(printable(line), file=sys.stderr, flush=True)
    except OSError:
        _discard(sys.stderr)


def _discard(stream: TextIO) -> None:
    """Sends what a stream still holds, and all that follows, to the null device."""
    with contextlib.suppress(io.UnsupportedOperation):  # a stream in memory
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
