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
FILES = TOKENS, OFFSETS, SCALES = "tokens.npy", ragged.OFFSETS, "scales.npy"


def _float16(tokens: Array) -> tuple[Array, Array | None]:
    return tokens.astype(np.float16, copy=False), None


def _int8(tokens: Array) -> tuple[Array, Array | None]:
    """Symmetric, one scale a token, for tokens differ in norm (a gate may travel in it) more than their entries do."""
    wide = tokens.astype(np.float32)
    scale = np.maximum(np.abs(wide).max(1, initial=0.0) / 127, 1e-12)
    return np.rint(wide / scale[:, None]).astype(np.int8), scale


STORES: dict[str, Callable[[Array], tuple[Array, Array | None]]] = {"float16": _float16, "int8": _int8}
"""tokens [n, D] -> as they are stored, and one scale each where they need one."""


def check(store: str) -> None:
    """Raises ConfigError: no such way to store tokens."""
    if store not in (*STORES, "none"):
        raise ConfigError(
            "no such way to store tokens", where=f"--store-tokens {store}", expected=" | ".join((*STORES, "none"))
        )


class Writer:
    """Tokens of one row after another, straight to ``folder``: none of them stays in memory. ``store`` is an entry of
    ``STORES``.

    A context, at whose end the files are there: none where nothing was added.
    """

    def __init__(self, folder: Path, store: str):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.store = folder, STORES[store]
        self.tokens, self.scales = (ragged.GrowingArray(folder / name) for name in (TOKENS, SCALES))
        self.counts: list[Array] = []

    def __enter__(self) -> Writer:
        return self

    def add(self, tokens: Array, mask: Array) -> None:
        """tokens [n, N, D] float, mask [n, N] bool True = real."""
        stored, scale = self.store(tokens[mask])
        self._add(stored, mask.sum(1), scale)

    def copy(self, source: Tokens, first: int, last: int) -> None:
        """Appends the rows first .. last - 1 of a source of the same ``store``, to the byte."""
        begin, end = int(source.offsets[first]), int(source.offsets[last])
        scales = None if source.scales is None else source.scales[begin:end]
        self._add(source.tokens[begin:end], np.diff(source.offsets[first : last + 1]), scales)

    def _add(self, stored: Array, counts: Array, scales: Array | None) -> None:
        self.tokens.add(stored)
        self.counts.append(counts)
        if scales is not None:
            self.scales.add(scales)

    def __exit__(self, *_: object) -> None:
        with self.tokens, self.scales:
            if self.counts:
                np.save(self.folder / OFFSETS, np.concatenate([[0], np.cumsum(np.concatenate(self.counts))]))


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
        return cls(
            tokens,
            offsets,
            np.load(folder / SCALES, mmap_mode="r", allow_pickle=False) if (folder / SCALES).exists() else None,
        )

    def check(self, rows: int) -> None:
        """Raises ValueError: arrays that do not belong together, or to so many rows."""
        ragged.check(self.tokens, self.offsets, rows)
        if self.scales is not None and len(self.scales) != len(self.tokens):
            raise ValueError("scales of other tokens")

    def read(self, rows: Any) -> tuple[Array, Array]:
        """Rows [n] -> tokens [n, N, D] float32 padded with zeros to the longest of them, mask [n, N] bool."""
        where, mask = ragged.gather_index(self.offsets, np.asarray(rows, np.int64))
        padded = np.zeros((*mask.shape, self.tokens.shape[1]), np.float32)
        padded[mask] = self.tokens[where]
        if self.scales is not None:
            padded[mask] *= self.scales[where][:, None]
        return padded, mask
