"""Reads files of a folder and hashes their content. Imports no torch: most updates have nothing to encode."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ccaco_cli.core import runtime
from ccaco_cli.core.data.checks import MAX_FILE_BYTES
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.library.scan import NOT_A_FILE
from ccaco_cli.core.types import OnProgress

CHANGING = "file changes while it is read"
EMPTY = "empty file"
FILES_AT_ONCE = 256
"""Files that are hashed before it is decided whether a content is new."""
_NONBLOCKING = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
"""A named pipe with the name of a photo must not stop the work."""


@dataclass(frozen=True, slots=True)
class FileState:
    """What is known of a file that was read.

    Attributes:
        path: name below the folder, with "/" between folders.
        size, mtime_ns: when it was read; 0 = it could not be read.
        sha256: hex digest of its content; "" = it could not be read.
        problem: why it is no item; "" = its content is an item.
        where: details of the problem, for people.
    """

    path: str
    size: int = 0
    mtime_ns: int = 0
    sha256: str = ""
    problem: str = ""
    where: str = ""


def read_unchanged(path: Path) -> tuple[bytes, os.stat_result]:
    """The bytes of a file and its status; a file that changes meanwhile is read once more.

    Raises:
        DataError: unreadable, not a file, too large, or it changes again.
    """
    for _ in range(2):
        try:
            with open(path, "rb", opener=lambda name, flags: os.open(name, flags | _NONBLOCKING)) as file:
                before = os.fstat(file.fileno())
                if not stat.S_ISREG(before.st_mode):
                    raise DataError(NOT_A_FILE)
                if before.st_size > MAX_FILE_BYTES:
                    raise DataError("file too large", where=f"at most {MAX_FILE_BYTES} bytes")
                data = file.read()
                after = os.fstat(file.fileno())
        except (OSError, ValueError) as error:
            raise DataError("unreadable file", where=getattr(error, "strerror", None) or error) from None
        if (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns) and len(data) == after.st_size:
            return data, after
    raise DataError(CHANGING)


def hashed(root: Path, path: str) -> tuple[FileState, bytes]:
    """The state of a file, and its bytes; of one that cannot be read a problem, and no bytes.

    Args:
        root: folder.
        path: name below it.
    """
    try:
        data, status = read_unchanged(root / path)
    except DataError as error:
        return FileState(path, problem=error.what, where=str(error.where or "")), b""
    digest = hashlib.sha256(data).hexdigest()
    return FileState(path, status.st_size, status.st_mtime_ns, digest, "" if data else EMPTY), data


def read_known(
    root: Path, paths: Sequence[str], known: set[str], on_progress: OnProgress
) -> tuple[list[FileState], Sequence[str]]:
    """Hashes files until one of them has a new content.

    Args:
        paths: names below ``root``.
        known: hashes of the contents that are known.
    Returns:
        States of files that need not be encoded (moved, touched, unreadable), and the paths that remain.
    """
    states: list[FileState] = []
    with ThreadPoolExecutor(runtime.cpu_cores()) as pool:
        for first in range(0, len(paths), FILES_AT_ONCE):
            group = list(pool.map(lambda path: hashed(root, path)[0], paths[first : first + FILES_AT_ONCE]))
            new = {state.path for state in group if not state.problem and state.sha256 not in known}
            states += [state for state in group if state.path not in new]
            on_progress(len(states), len(paths), {"what": "files"})
            if new:
                behind = paths[first + FILES_AT_ONCE :]
                return states, [path for path in paths[first : first + FILES_AT_ONCE] if path in new] + [*behind]
    return states, ()
