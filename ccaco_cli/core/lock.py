"""One writer an artefact: a lock beside its folder, which names who holds it. The system frees it when its holder dies, however it dies."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import filelock

from ccaco_cli.core.errors import DataError
from ccaco_cli.core.manifest import read_json, write_bytes


@contextmanager
def held(folder: Path, what: str) -> Iterator[None]:
    """Holds the lock of an artefact for the time of a block.

    folder  of the artefact, which need not be there; the lock lies beside it
    what    run, data set ... for the error
    Raises  DataError: another process holds it; says which, where and since when
    """
    folder = Path(os.path.abspath(folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder.with_name(f".{folder.name}.lock"), blocking=False)
    note = folder.with_name(f".{folder.name}.holder")
    try:
        lock.acquire()
    except filelock.Timeout:
        raise DataError(
            f"another process is writing this {what} ({_holder(note)})",
            where=folder,
            next="wait for it, or use another name",
        ) from None
    try:
        for leftover in folder.parent.glob(f".{note.name}.*.tmp"):  # of a holder that was killed
            leftover.unlink(missing_ok=True)
        since = datetime.now(UTC).isoformat(timespec="seconds")
        write_bytes(note, json.dumps({"process": os.getpid(), "host": socket.gethostname(), "since": since}).encode())
        yield
    finally:
        note.unlink(missing_ok=True)
        Path(lock.lock_file).unlink(missing_ok=True)  # while it is held: afterwards it might be another's
        lock.release()


def _holder(note: Path) -> str:
    try:
        found = read_json(note)
        return f"process {int(found['process'])} on {found['host']} since {found['since']}"
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return "it has just begun"
