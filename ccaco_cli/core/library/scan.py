"""The media files of a folder that an index is made from: their names, sizes and times, without reading any."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ccaco_cli.core.data.checks import OUTSIDE, is_within
from ccaco_cli.core.data.sources.media_files import CLOSED, PassedOver, media_below
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.modalities import MODALITIES

Array = np.ndarray[Any, Any]
NOT_UTF8 = "name is not UTF-8"
NOT_A_FILE = "not a file"


class Reject(NamedTuple):
    """A file that is no item: a line of ``rejects.csv``."""

    path: str
    reason: str
    where: str = ""


@dataclass(frozen=True, eq=False)
class Scan:
    """The media files of a folder, in the order of a walk.

    Attributes:
        paths: names below the folder, with "/" between folders.
        size, mtime_ns: [n] int64, bytes and time of the last change.
        rejects: files that need not be read to know that they are no items.
        closed: folders that cannot be read now; nothing is known of the files below them.
    """

    paths: Sequence[str]
    size: Array
    mtime_ns: Array
    rejects: Sequence[Reject] = field(default_factory=list)
    closed: Sequence[str] = field(default_factory=list)


def scan(root: Path, modality: str, option: str) -> Scan:
    """Walks a folder. Hidden files are passed over; a link is followed where it stays inside the folder.

    Args:
        root: folder, a real path.
        modality: of the files.
        option: flag that named the folder, for the error message.
    Raises:
        DataError: no such folder, or no media of this modality in it.
    """
    if not root.is_dir():
        raise DataError("no such folder", where=f"--{option} {root}", expected=f"a folder of {modality} files")
    passed_over = PassedOver()
    prefix = len(str(root).rstrip(os.sep)) + 1
    paths, sizes, times = [], [], []
    rejects, closed = [], []
    for file in media_below(root, MODALITIES[modality], passed_over=passed_over):
        path = str(file.path)
        name = path[prefix:].replace(os.sep, "/")
        problem, status = file.problem, None
        if problem == CLOSED:
            closed.append(name)
        if not problem and not _is_utf8(name):
            problem = NOT_UTF8
        if not problem:
            problem, status = _stat(path, str(root))
        if status is None:
            rejects.append(Reject(name, problem))
            continue
        paths.append(name)
        sizes.append(status.st_size)
        times.append(status.st_mtime_ns)
    if not paths and not rejects:
        raise DataError(
            f"no {modality} files in this folder",
            where=f"--{option} {root}",
            expected=f"files such as *{MODALITIES[modality].suffixes[0]} in it or below; it has {passed_over}",
        )
    return Scan(paths, np.array(sizes, np.int64), np.array(times, np.int64), rejects, closed)


def _stat(path: str, root: str) -> tuple[str, os.stat_result | None]:
    """The reason why a path is no item and None, or "" and its status."""
    try:
        status = os.lstat(path)
        if stat.S_ISLNK(status.st_mode):
            if not is_within(os.path.realpath(path), [root]):
                return OUTSIDE, None
            status = os.stat(path)
    except OSError as error:
        return f"unreadable file ({error.strerror})", None
    return ("", status) if stat.S_ISREG(status.st_mode) else (NOT_A_FILE, None)


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
