"""Tokens for the cross branch as an index stores them: ragged, in one array, by memory map."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ccaco_cli.core import ragged
from ccaco_cli.core.errors import ConfigError

Array = np.ndarray[Any, Any]
FILES = TOKENS, OFFSETS, SCALES = "tokens.npy", "offsets.npy", "scales.npy"
_STEP = 2**16  # tokens quantised at once


def _float16(folder: Path, tokens: Array) -> None:
    np.save(folder / TOKENS, tokens.astype(np.float16, copy=False))


def _int8(folder: Path, tokens: Array) -> None:
    """Symmetric, one scale a token, for tokens differ in norm (a gate may travel in it) more than their entries do."""
    largest = np.empty(len(tokens), np.float32)
    small = np.lib.format.open_memmap(folder / TOKENS, mode="w+", dtype=np.int8, shape=tokens.shape)
    for first in range(0, len(tokens), _STEP):
        part = tokens[first : first + _STEP].astype(np.float32)
        scale = np.maximum(np.abs(part).max(1, initial=0.0) / 127, 1e-12)
        small[first : first + _STEP], largest[first : first + _STEP] = np.rint(part / scale[:, None]), scale
    small.flush()
    np.save(folder / SCALES, largest)


STORES: dict[str, Callable[[Path, Array], None]] = {"float16": _float16, "int8": _int8}


def check(store: str) -> None:
    """Raises ConfigError: no such way to store tokens."""
    if store not in (*STORES, "none"):
        raise ConfigError("no such way to store tokens", where=f"--store-tokens {store}", expected=" | ".join((*STORES, "none")))


def write(folder: Path, tokens: Array, mask: Array, store: str) -> None:
    """tokens [n, N, D] float, mask [n, N] bool True = real -> files in ``folder``; ``store`` is an entry of ``STORES``."""
    np.save(folder / OFFSETS, np.concatenate([[0], np.cumsum(mask.sum(1))]))
    STORES[store](folder, tokens[mask])


@dataclass(frozen=True)
class Tokens:
    """Stored tokens, opened. scales is None for what is stored as it is."""

    tokens: Array
    offsets: Array
    scales: Array | None

    @classmethod
    def open(cls, folder: Path) -> Tokens:
        """By memory map; pickles are refused."""
        tokens, offsets = (np.load(folder / name, mmap_mode="r", allow_pickle=False) for name in (TOKENS, OFFSETS))
        return cls(tokens, offsets, np.load(folder / SCALES, mmap_mode="r", allow_pickle=False) if (folder / SCALES).exists() else None)

    def check(self, rows: int) -> None:
        """Raises ValueError: arrays that do not belong together, or to so many rows."""
        ragged.check(self.tokens, self.offsets, rows)
        if self.scales is not None and len(self.scales) != len(self.tokens):
            raise ValueError("scales of other tokens")

    def read(self, rows: Any) -> tuple[Array, Array]:
        """Rows [n] -> tokens [n, N, D] float32 padded with zeros to the longest of them, mask [n, N] bool."""
        where, mask = ragged.places(self.offsets, np.asarray(rows, np.int64))
        padded = np.zeros((*mask.shape, self.tokens.shape[1]), np.float32)
        padded[mask] = self.tokens[where]
        if self.scales is not None:
            padded[mask] *= self.scales[where][:, None]
        return padded, mask
