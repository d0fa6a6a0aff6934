"""Rows of one modality of an index (vectors, tokens, content columns), and new files made of rows of several."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ccaco_cli.core import fault, ragged
from ccaco_cli.core.retrieval import token_store, vectors
from ccaco_cli.core.retrieval.token_store import Tokens

Array = np.ndarray[Any, Any]
ITEMS = "items.arrow"
BLOCK = 8192
"""Most rows that are copied at once."""


@dataclass(frozen=True)
class StoredVectors:
    """Vectors in a database, read in slices as those of a file are."""

    vectors: vectors.Vectors

    def __len__(self) -> int:
        return self.vectors.ntotal

    def __getitem__(self, rows: slice) -> Array:
        return self.vectors.read(np.arange(*rows.indices(len(self))))


@dataclass(frozen=True, eq=False)
class SideRows:
    """One modality of an index, or a part of one, by memory map.

    Attributes:
        z: [n, E] float32, unit norm.
        tokens: of n rows; None = none are stored.
        items: n rows.
    """

    z: Array
    tokens: Tokens | None
    items: pa.Table

    @classmethod
    def open(cls, folder: Path) -> SideRows:
        """Raises OSError, ValueError or ArrowException: files that are broken or do not belong together."""
        z: Any = (
            StoredVectors(vectors.open(folder))
            if (folder / vectors.DATABASE).exists()
            else np.load(folder / vectors.VECTORS, mmap_mode="r", allow_pickle=False)
        )
        items = pa.ipc.open_file(pa.memory_map(str(folder / ITEMS))).read_all()
        if len(items) != len(z):
            raise ValueError("vectors and items of other rows")
        tokens = None
        if (folder / token_store.TOKENS).exists():
            tokens = Tokens.open(folder)
            tokens.check(len(z))
        return cls(z, tokens, items)


@dataclass(frozen=True, eq=False)
class Picks:
    """Which row of which source each row of a new side is.

    Attributes:
        sources: the sides, or parts of sides.
        source, row: [n] int64.
    """

    sources: Sequence[SideRows]
    source: Array
    row: Array

    def __len__(self) -> int:
        return len(self.row)

    def runs(self, first: int = 0, last: int | None = None) -> Iterator[tuple[SideRows, int, int]]:
        """Yields (source, first row, last row + 1) of rows that lie side by side, for the rows first .. last - 1."""
        source, row = self.source[first:last], self.row[first:last]
        if not len(row):
            return
        breaks = np.flatnonzero((np.diff(source) != 0) | (np.diff(row) != 1)) + 1
        for begin, end in zip([0, *breaks.tolist()], [*breaks.tolist(), len(row)], strict=True):
            for start in range(begin, end, BLOCK):
                length = min(BLOCK, end - start)
                yield self.sources[int(source[start])], int(row[start]), int(row[start]) + length

    def column(self, name: str, kind: pa.DataType, first: int = 0, last: int | None = None) -> pa.Array:
        """A column of the items, null where a source does not have it."""
        parts = [
            source.items[name].slice(begin, end - begin).combine_chunks().cast(kind)
            if name in source.items.column_names
            else pa.nulls(end - begin, kind)
            for source, begin, end in self.runs(first, last)
        ]
        flat = [chunk for part in parts for chunk in (part.chunks if isinstance(part, pa.ChunkedArray) else [part])]
        return pa.concat_arrays(flat) if flat else pa.nulls(0, kind)


def write_vectors(folder: Path, picks: Picks) -> None:
    """Writes the vectors of some rows, copied to the byte."""
    with ragged.GrowingArray(folder / vectors.VECTORS) as out:
        for source, first, last in picks.runs():
            out.add(source.z[first:last])
    fault.point("merge.vectors")


def write_tokens(folder: Path, picks: Picks, store: str) -> None:
    """Writes the tokens of some rows, copied to the byte; ``store`` is an entry of ``token_store.STORES``, or none."""
    if store == "none":
        return
    with token_store.Writer(folder, store) as writer:
        for source, first, last in picks.runs():
            assert source.tokens is not None, "the sources have one way to store tokens"
            writer.copy(source.tokens, first, last)
    fault.point("merge.tokens")
