"""The generations of an index: a new one is built beside the old one, which open readers keep until they end."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ccaco_cli.core import manifest
from ccaco_cli.core.errors import ManifestError
from ccaco_cli.core.manifest import Manifest


@dataclass(frozen=True)
class IndexFolder:
    """Where an index is being written.

    Attributes:
        root: the index, or a hidden folder that becomes the index when it is new.
        temp: receives the files; becomes ``root/name``.
        name: of the generation.
        new: True when there is no older generation.
    """

    root: Path
    temp: Path
    name: str
    new: bool


def open_generation(path: Path, verify: str) -> tuple[Manifest, int | None]:
    """Opens the manifest of an index and locks its generation; tries again when the index was rebuilt between the two.

    Returns:
        The manifest, and the file number that holds the lock (None where the system has no locks).
    """
    for attempt in range(10):
        before = _stamp(path)
        try:
            opened = manifest.open(path, kind="index", verify=verify)
        except ManifestError:
            if attempt < 9 and _stamp(path) != before:
                continue
            raise
        number = _lock(path / str(opened.facts.get("generation")))
        if _stamp(path) == before:
            return opened, None if isinstance(number, bool) else number
        if not isinstance(number, bool):
            os.close(number)
    raise ManifestError("this index is rebuilt again and again", where=path, next="the same command, when it is done")


@contextmanager
def new_generation(index: Path | None) -> Iterator[IndexFolder | None]:
    """Locks an index for the time of a block and removes what the block did not finish; None without an index."""
    if index is None:
        yield None
        return
    with writer_lock(index), next_generation(index) as folder:
        yield folder


def writer_lock(index: Path) -> AbstractContextManager[None]:
    """The lock of the only process that may write an index. Entering it raises DataError: another process has it."""
    from ccaco_cli.core import lock  # readers do without

    return lock.hold(index, "index")


@contextmanager
def next_generation(index: Path) -> Iterator[IndexFolder]:
    """Starts the next generation of an index whose lock is held, and removes what the block did not finish."""
    new = not index.exists()
    root = index.with_name(f".{index.name}.tmp") if new else index
    if new:
        shutil.rmtree(root, ignore_errors=True)
    temp, name = begin(root)
    try:
        yield IndexFolder(root, temp, name, new)
    finally:
        shutil.rmtree(root if new else temp, ignore_errors=True)


def begin(root: Path) -> tuple[Path, str]:
    """Removes what a killed build has left, and starts the next generation of an index.

    Returns:
        The folder that it is written to, and its name once it is complete.
    """
    manifest.sweep(root)
    sweep(root, _generation(root))
    numbers = [int(folder.name.rpartition("-")[2]) for folder in root.glob("generation-*")]
    name = f"generation-{max(numbers, default=0) + 1}"
    temp = root / f".{name}.tmp"
    temp.mkdir(parents=True)
    return temp, name


def sweep(root: Path, keep: str) -> None:
    """Removes generations except ``keep`` and those that are being read, and also those that were never finished."""
    for old in [*root.glob("generation-*"), *root.glob(".generation-*.tmp")]:
        if old.name != keep and _lock(old, exclusive=True):
            shutil.rmtree(old, ignore_errors=True)


def _generation(root: Path) -> str:
    return str(manifest.open(root, kind="index").facts["generation"]) if manifest.exists(root) else ""


def _lock(folder: Path, *, exclusive: bool = False) -> int | bool:
    """Locks a folder.

    Returns:
        The file number that holds a shared lock until it is closed, or False; with ``exclusive``: whether no process
        holds one.
    """
    try:
        import fcntl

        number = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        return exclusive
    try:
        fcntl.flock(number, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except OSError:
        os.close(number)
        return False
    if exclusive:
        os.close(number)
        return True
    return number


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = (path / manifest.NAME).stat()
    except OSError:
        return 0, 0
    return status.st_ino, status.st_mtime_ns
