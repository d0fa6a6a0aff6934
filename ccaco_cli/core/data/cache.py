"""Folders of arrays that are computed once and then read by memory map."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from ccaco_cli.core.errors import ManifestError
from ccaco_cli.core.shell import quoted_path


def key(**parts: Any) -> str:
    """A short hash of everything that a cached array depends on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def folder(path: Path, write: Callable[[Path], None], *, resumes: bool = False) -> Path:
    """The folder at ``path``, created by ``write(temporary folder)`` if it does not exist.

    It is complete or absent at all times.

    Of several processes that need it at the same time, one writes it and the others wait. With ``resumes`` the
    temporary folder is kept after an interruption, and the next ``write`` continues in it.
    """
    if path.is_dir():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    with filelock.FileLock(lock):
        try:
            if not path.is_dir():
                with _temporary(path, resumes) as temp:
                    write(temp)
                    os.replace(temp, path)
        finally:
            lock.unlink(missing_ok=True)  # processes that wait for it still hold it open
    return path


def new_array(path: Path, shape: tuple[int, ...], dtype: Any) -> np.memmap[Any, Any]:
    """A ``.npy`` file of this shape, open for writing by memory map."""
    array: np.memmap[Any, Any] = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    return array


def read_array(path: Path) -> np.ndarray[Any, Any]:
    """A ``.npy`` file by memory map, read only. Raises ManifestError: it cannot be read; pickles are refused."""
    try:
        array: np.ndarray[Any, Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy raises many kinds of exceptions for a broken header
        raise damaged(path.parent, " ".join(str(error).split())[:100]) from None
    return array


def release(*arrays: np.ndarray[Any, Any]) -> None:
    """Removes the pages of mapped files from the memory of this process; the system keeps them in its file cache.

    Without it, all pages that were ever read stay resident, in the end as many as the files have.

    Args:
        arrays: from ``read_array``; other arrays stay as they are.
    """
    for array in arrays:
        mapped = getattr(array, "_mmap", None)  # numpy has no public name for it
        if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
            mapped.madvise(mmap.MADV_DONTNEED)


def arrays(path: Path, compute: Callable[[], dict[str, np.ndarray[Any, Any]]]) -> dict[str, np.ndarray[Any, Any]]:
    """The named arrays that ``compute`` returns, cached in a folder and read from it by memory map."""

    def write(folder: Path) -> None:
        for name, array in compute().items():
            np.save(folder / f"{name}.npy", array)

    return {file.stem: read_array(file) for file in sorted(folder(path, write).glob("*.npy"))}


def damaged(path: Path, reason: str) -> ManifestError:
    """The error for a folder of arrays that cannot be read."""
    return ManifestError(
        f"damaged arrays ({reason})", where=path, next=f"rm -r {quoted_path(path)}, then the same command"
    )


@contextmanager
def _temporary(path: Path, resumes: bool) -> Iterator[Path]:
    """The temporary folder of ``folder``, used under its lock; the work of a killed process is continued or deleted."""
    temp = path.with_name(f".{path.name}.tmp")
    if not resumes:
        shutil.rmtree(temp, ignore_errors=True)
    temp.mkdir(exist_ok=True)
    try:
        yield temp
    finally:
        if not resumes:
            shutil.rmtree(temp, ignore_errors=True)
