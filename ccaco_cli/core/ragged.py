"""Rows of differing length, one behind the other in one array: row i is ``values[offsets[i] : offsets[i + 1]]``."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ccaco_cli.core import fault
from ccaco_cli.core.manifest import write_bytes

Array = np.ndarray[Any, Any]
OFFSETS = "offsets.npy"
_COUNTS = "counts.npy"
"""While rows are written: how many values each of those has that are safe on disk."""


class Growing:
    """A ``.npy`` file [n, ...] to which rows are added; numpy leaves room in its head for n to grow. A context.

    kept  rows of a file that is there already that stay; what lies behind them is cut off
    """

    def __init__(self, path: Path, kept: int = 0):
        self.path, self.rows, self.like = path, kept, _none_of(path) if kept else None
        self.file: BinaryIO = path.open("r+b" if kept else "wb")
        if self.like is not None:
            self._head()
            self.file.truncate(self.file.tell() + kept * self.like.itemsize * math.prod(self.like.shape[1:]))
            self.file.seek(0, os.SEEK_END)

    def __enter__(self) -> Growing:
        return self

    def add(self, rows: Array) -> None:
        """rows [k, ...], of the same kind every time."""
        if self.like is None:
            self.like = rows[:0]
            self._head()
        self.file.write(np.ascontiguousarray(rows).data)
        self.rows += len(rows)

    def sync(self) -> None:
        """All that was added is on disk, in a file that can be read."""
        if self.like is not None:
            self._head()
            self.file.seek(0, os.SEEK_END)
        self.file.flush()
        os.fsync(self.file.fileno())

    def __exit__(self, *_: object) -> None:
        """A file to which nothing was added goes."""
        self.sync()
        self.file.close()
        if self.like is None:
            self.path.unlink()

    def _head(self) -> None:
        assert self.like is not None
        self.file.seek(0)
        head = {
            "descr": np.lib.format.dtype_to_descr(self.like.dtype),
            "fortran_order": False,
            "shape": (self.rows, *self.like.shape[1:]),
        }
        np.lib.format.write_array_header_1_0(self.file, head)


def _none_of(path: Path) -> Array:
    """[0, ...] of the kind that a file holds."""
    found = np.load(path, mmap_mode="r", allow_pickle=False)
    return np.zeros((0, *found.shape[1:]), found.dtype)


def write(
    folder: Path, rows: int, make: Callable[[int], tuple[Array, Mapping[str, Array], Mapping[str, Array]]]
) -> None:
    """Writes rows to a folder some at a time; what a killed writer had finished there stays, and is not made again.

    make  number of the first row that is wanted -> (how many values each of the next k rows has [k], the arrays of their values by name
          [sum, ...], arrays with one entry a row [k, ...]); the same names every time
    Leaves ``NAME.npy`` of each array, and ``offsets.npy``
    """
    counts = np.load(folder / _COUNTS, allow_pickle=False) if (folder / _COUNTS).exists() else np.zeros(0, np.int64)
    files: dict[str, Growing] = {}
    try:
        while len(counts) < rows:
            more, values, singles = make(len(counts))
            for name, array in (*values.items(), *singles.items()):
                if name not in files:
                    files[name] = Growing(folder / f"{name}.npy", int(counts.sum()) if name in values else len(counts))
                files[name].add(array)
                files[name].sync()
            counts = np.concatenate([counts, more]).astype(np.int64)
            fault.point("ragged.added")
            _save(folder / _COUNTS, counts)
            fault.point("ragged.counted")
    finally:
        for file in files.values():
            file.file.close()
    _save(folder / OFFSETS, np.concatenate([[0], np.cumsum(counts)]))
    (folder / _COUNTS).unlink(missing_ok=True)


def _save(path: Path, array: Array) -> None:
    buffer = io.BytesIO()
    np.save(buffer, array)
    write_bytes(path, buffer.getbuffer())


def check(values: Array, offsets: Array, rows: int) -> None:
    """Raises ValueError: arrays [total, D] and [rows + 1] that do not belong together, or to so many rows."""
    if values.ndim != 2 or offsets.shape != (rows + 1,) or offsets.dtype.kind != "i":
        raise ValueError("arrays of other rows")
    if offsets[0] != 0 or offsets[-1] != len(values) or np.diff(offsets).min(initial=0) < 0:
        raise ValueError("offsets that leave the values")


def places(offsets: Array, rows: Array) -> tuple[Array, Array]:
    """Where the values of rows [n] lie: index [their total] int64, and the mask [n, N] bool of a batch padded to the longest of them."""
    start = np.asarray(offsets[rows])
    counts = np.asarray(offsets[rows + 1]) - start
    mask = np.arange(counts.max(initial=0)) < counts[:, None]
    return (start[:, None] + np.arange(mask.shape[1]))[mask], mask
