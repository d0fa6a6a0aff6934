"""Groups of near-duplicates among the vectors of an index, which ``duplicates.csv`` lists.

Exact below ``MAX_PRODUCTS``; above, candidates come from an inverted file, in which near vectors share a list.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
FILE = "duplicates.csv"
HEADER = ("group", "id", "cosine")
THRESHOLD = 0.97
"""Cosine from which two items are near-duplicates."""
MAX_ROWS = 200_000
MAX_PRODUCTS = 2 * 10**11
"""Multiplications of an exact comparison: about 4 s on one core."""
MAX_PAIRS_PER_ROW = 32
"""With more pairs than this, the model sees no difference between the items, and groups would say nothing."""
_COSINE_ERROR = 1e-5  # cosine of equal vectors is 1 up to this
_BLOCK, _TILE = 256, 1 << 14
_LISTS, _PROBES, _NEIGHBOURS = 256, 4, 8


def near_duplicates(z: Array, rows: Array, threshold: float = THRESHOLD) -> list[list[tuple[int, float]]] | str:
    """Groups of items that are linked by cosines of at least ``threshold``.

    Args:
        z: [n, E] float32, unit norm.
        rows: [m] int64, the rows that are compared with all others: those that are new, and those of groups of before.
    Returns:
        Groups of (row, largest cosine with another item), in the order of their first rows; or why there are none.
    """
    count, width = z.shape
    if count > MAX_ROWS:
        return f"more than {MAX_ROWS:,} items"
    exact = len(rows) * count * width <= MAX_PRODUCTS
    first, second, cosines = [], [], []
    total = 0
    for a, b, cosine in _exact_pairs(z, rows, threshold) if exact else _likely_pairs(z, threshold):
        first.append(a)
        second.append(b)
        cosines.append(cosine)
        total += len(a)
        if total > MAX_PAIRS_PER_ROW * max(count, _BLOCK):
            return f"more than {MAX_PAIRS_PER_ROW} pairs per item: this model sees no difference between them"
    if not total:
        return []
    return _groups(np.concatenate(first), np.concatenate(second), np.concatenate(cosines))


def _exact_pairs(z: Array, rows: Array, threshold: float) -> Iterator[tuple[Array, Array, Array]]:
    """Yields (rows, rows, cosines) of pairs, each pair at least once."""
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        queries = z[block]
        for tile in range(0, len(z), _TILE):
            scores = queries @ z[tile : tile + _TILE].T
            query, row = np.nonzero(scores >= threshold)
            different = block[query] != row + tile
            query, row = query[different], row[different]
            yield block[query], row + tile, scores[query, row]


def _likely_pairs(z: Array, threshold: float) -> Iterator[tuple[Array, Array, Array]]:
    """The same, of all rows with their nearest ones in a few lists of an inverted file."""
    import faiss

    vectors = np.ascontiguousarray(z)
    width = vectors.shape[1]
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, _LISTS, faiss.METRIC_INNER_PRODUCT)
    index.cp.max_points_per_centroid = 64
    index.train(vectors)
    index.add(vectors)
    index.nprobe = _PROBES
    for start in range(0, len(vectors), _TILE):
        scores, rows = index.search(vectors[start : start + _TILE], _NEIGHBOURS)
        query, place = np.nonzero((scores >= threshold) & (rows >= 0))
        row = rows[query, place]
        different = query + start != row
        query, place, row = query[different], place[different], row[different]
        yield query + start, row, scores[query, place]


def _groups(first: Array, second: Array, cosines: Array) -> list[list[tuple[int, float]]]:
    """Joins pairs to groups."""
    members, at = np.unique(np.concatenate([first, second]), return_inverse=True)
    best = np.zeros(len(members))
    np.maximum.at(best, at, np.concatenate([cosines, cosines]))
    parent = list(range(len(members)))

    def root(member: int) -> int:
        while parent[member] != member:
            parent[member] = parent[parent[member]]
            member = parent[member]
        return member

    for a, b in zip(at[: len(first)].tolist(), at[len(first) :].tolist(), strict=True):
        smaller, larger = sorted((root(a), root(b)))
        parent[larger] = smaller
    groups: dict[int, list[tuple[int, float]]] = {}
    for member, (row, cosine) in enumerate(zip(members.tolist(), best.tolist(), strict=True)):
        groups.setdefault(root(member), []).append((row, min(1.0, cosine)))
    return list(groups.values())


def group_duplicates(z: Array, threshold: float, groups: int) -> Array:
    """Groups vectors around the first ones: one joins the first group whose first vector is close enough.

    Args:
        z: [n, E] unit norm, best first.
        threshold: cosine from which two are near-duplicates.
        groups: how many groups are formed.
    Returns:
        [n] int64: group of each vector, numbered in the order of their first vectors; -1 for those of further groups.
    """
    group = np.full(len(z), -1, np.int64)
    for number in range(groups):
        waiting = np.flatnonzero(group < 0)
        if not len(waiting):
            break
        near = z[waiting] @ z[waiting[0]] >= threshold - _COSINE_ERROR
        near[0] = True
        group[waiting[near]] = number
    return group


def csv_text(groups: Sequence[Sequence[tuple[int, float]]], ids: Sequence[str]) -> str:
    """The text of ``duplicates.csv``: one line for each item of a group."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(HEADER)
    for number, group in enumerate(groups):
        writer.writerows((number, ids[row], f"{cosine:.4f}") for row, cosine in group)
    return out.getvalue()


def listed_ids(side: Path) -> set[str] | None:
    """The items that ``duplicates.csv`` of a side lists; None = there is no such file."""
    try:
        with (side / FILE).open(encoding="utf-8", newline="") as file:
            return {line[1] for line in csv.reader(file)} - {HEADER[1]}
    except (OSError, IndexError, UnicodeDecodeError):
        return None
