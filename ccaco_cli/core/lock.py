"""One writer per artefact: a lock file beside its folder.

The operating system releases it when the process ends, in whatever way.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import filelock

from ccaco_cli.core.errors import DataError
from ccaco_cli.core.manifest import read_json, write_bytes


@contextmanager
def hold(folder: Path, kind: str) -> Iterator[None]:
    """Holds the lock of an artefact during a ``with`` block.

    Args:
        folder: of the artefact; need not exist. The lock file lies beside it, in a parent folder that is made for it
            and removed again if it is empty at the end.
        kind: run, data set ... for the error message.
    Raises:
        DataError: another process holds the lock; names the process, its host and the time.
    """
    folder = Path(os.path.abspath(folder))
    parent_is_new = not folder.parent.exists()
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder.with_name(f".{folder.name}.lock"), blocking=False)
    note = folder.with_name(f".{folder.name}.holder")
    try:
        lock.acquire()
    except filelock.Timeout:
        raise DataError(
            f"another process is writing this {kind} ({_holder(note)})",
            where=folder,
            next="wait for it, or use another name",
        ) from None
    try:
        for leftover in folder.parent.glob(f".{note.name}.*.tmp"):  # of a killed process
            leftover.unlink(missing_ok=True)
        since = datetime.now(UTC).isoformat(timespec="seconds")
        write_bytes(note, json.dumps({"process": os.getpid(), "host": socket.gethostname(), "since": since}).encode())
        yield
    finally:
        note.unlink(missing_ok=True)
        Path(lock.lock_file).unlink(missing_ok=True)  # while it is held: afterwards it may belong to another process
        lock.release()
        if parent_is_new:
            with suppress(OSError):  # something lies in it
                folder.parent.rmdir()


def _holder(note: Path) -> str:
    try:
        holder = read_json(note)
        return f"process {int(holder['process'])} on {holder['host']} since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return "it has just begun"
