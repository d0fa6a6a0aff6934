"""Rows of differing length, one behind the other in one array: row i is ``values[offsets[i] : offsets[i + 1]]``."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


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
