"""Rows of different length in one array: row i is ``values[offsets[i] : offsets[i + 1]]``."""

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
"""While rows are being written: number of values of each row that is safely on disk."""


class GrowingArray:
    """A ``.npy`` file [n, ...] to which rows are appended (numpy leaves space in the header for a larger n).

    A context manager.

    Args:
        path: the file.
        keep_rows: rows of an existing file that are kept; the rows after them are cut off.
    """

    def __init__(self, path: Path, keep_rows: int = 0):
        self.path, self.rows, self.like = path, keep_rows, _empty_like(path) if keep_rows else None
        self.file: BinaryIO = path.open("r+b" if keep_rows else "wb")
        if self.like is not None:
            self._write_header()
            self.file.truncate(self.file.tell() + keep_rows * self.like.itemsize * math.prod(self.like.shape[1:]))
            self.file.seek(0, os.SEEK_END)

    def __enter__(self) -> GrowingArray:
        return self

    def add(self, rows: Array) -> None:
        """Appends rows [k, ...], of the same dtype and shape [...] at every call."""
        if self.like is None:
            self.like = rows[:0]
            self._write_header()
        self.file.write(np.ascontiguousarray(rows).data)
        self.rows += len(rows)

    def sync(self) -> None:
        """Flushes to disk; the file is then complete and readable."""
        if self.like is not None:
            self._write_header()
            self.file.seek(0, os.SEEK_END)
        self.file.flush()
        os.fsync(self.file.fileno())

    def __exit__(self, *_: object) -> None:
        """Closes the file; an empty one is deleted."""
        self.sync()
        self.file.close()
        if self.like is None:
            self.path.unlink()

    def _write_header(self) -> None:
        assert self.like is not None
        self.file.seek(0)
        header = {
            "descr": np.lib.format.dtype_to_descr(self.like.dtype),
            "fortran_order": False,
            "shape": (self.rows, *self.like.shape[1:]),
        }
        np.lib.format.write_array_header_1_0(self.file, header)


def _empty_like(path: Path) -> Array:
    """[0, ...] of the dtype and row shape of a file."""
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    return np.zeros((0, *array.shape[1:]), array.dtype)


def write(
    folder: Path, rows: int, next_rows: Callable[[int], tuple[Array, Mapping[str, Array], Mapping[str, Array]]]
) -> None:
    """Writes rows to a folder in parts. Parts that a killed writer had finished are kept, and not computed again.

    Writes ``NAME.npy`` of each array, and ``offsets.npy``.

    Args:
        folder: exists already.
        rows: number of rows in all.
        next_rows: first row -> (number of values of each of the next k rows [k], arrays of values by name [sum of
            these, ...], arrays with one entry per row by name [k, ...]); the same names at every call.
    """
    counts = np.load(folder / _COUNTS, allow_pickle=False) if (folder / _COUNTS).exists() else np.zeros(0, np.int64)
    files: dict[str, GrowingArray] = {}
    try:
        while len(counts) < rows:
            more, values, singles = next_rows(len(counts))
            for name, array in (*values.items(), *singles.items()):
                if name not in files:
                    files[name] = GrowingArray(
                        folder / f"{name}.npy", int(counts.sum()) if name in values else len(counts)
                    )
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
    """Raises ValueError: ``values`` [total, D] and ``offsets`` [rows + 1] do not belong together."""
    if values.ndim != 2 or offsets.shape != (rows + 1,) or offsets.dtype.kind != "i":
        raise ValueError("arrays of other rows")
    if offsets[0] != 0 or offsets[-1] != len(values) or np.diff(offsets).min(initial=0) < 0:
        raise ValueError("offsets that leave the values")


def gather_index(offsets: Array, rows: Array) -> tuple[Array, Array]:
    """Index of the values of some rows, for a batch that is padded to the longest.

    Returns:
        [total] int64 positions in ``values``, and [n, N] bool mask of the batch.
    """
    start = np.asarray(offsets[rows])
    counts = np.asarray(offsets[rows + 1]) - start
    mask = np.arange(counts.max(initial=0)) < counts[:, None]
    return (start[:, None] + np.arange(mask.shape[1]))[mask], mask
