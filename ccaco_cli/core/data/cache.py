"""Arrays that are computed once and then read by memory map."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from ccaco_cli.core.errors import ManifestError


def key(**parts: Any) -> str:
    """A short name for what a cached array depends on: equal parts, equal name."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def folder(path: Path, write: Callable[[Path], None], *, resumes: bool = False) -> Path:
    """The folder at ``path``, made by ``write(temporary folder)`` when it is not there; whole or absent, whatever happens.

    Processes that ask for it at the same time wait for the one that makes it. With ``resumes`` the temporary folder stays when the
    work is interrupted, and ``write`` finds in it what it had written.
    """
    if not path.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(f".{path.name}.lock")
        with filelock.FileLock(lock):
            try:
                if not path.is_dir():
                    with _temporary(path, resumes) as temp:
                        write(temp)
                        os.replace(temp, path)
            finally:
                lock.unlink(missing_ok=True)  # those who wait for it hold it still
    return path


def new_array(path: Path, shape: tuple[int, ...], dtype: Any) -> np.memmap[Any, Any]:
    """A ``.npy`` file of this shape, open for writing by memory map."""
    array: np.memmap[Any, Any] = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    return array


def read_array(path: Path) -> np.ndarray[Any, Any]:
    """A ``.npy`` file by memory map, read only; pickles are refused."""
    try:
        found: np.ndarray[Any, Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy raises many kinds for a broken header, of its tokenizer too
        raise damaged(path.parent, " ".join(str(error).split())[:100]) from None
    return found


def arrays(path: Path, make: Callable[[], dict[str, np.ndarray[Any, Any]]]) -> dict[str, np.ndarray[Any, Any]]:
    """What ``make`` gives, name -> array, kept in a folder and read from it by memory map."""

    def write(folder: Path) -> None:
        for name, array in make().items():
            np.save(folder / f"{name}.npy", array)

    return {file.stem: read_array(file) for file in sorted(folder(path, write).glob("*.npy"))}


def damaged(path: Path, what: str) -> ManifestError:
    """The error of a folder of arrays that cannot be read."""
    return ManifestError(f"damaged arrays ({what})", where=path, next=f"rm -r {path}, then the same command")


@contextmanager
def _temporary(path: Path, resumes: bool) -> Iterator[Path]:
    """Under its lock: one name is enough, and what a killed process left there is taken up or cleared."""
    temp = path.with_name(f".{path.name}.tmp")
    if not resumes:
        shutil.rmtree(temp, ignore_errors=True)
    temp.mkdir(exist_ok=True)
    try:
        yield temp
    finally:
        if not resumes:
            shutil.rmtree(temp, ignore_errors=True)
