"""Groups of images that look alike: perceptual hashes that differ in few bits.

All pairs are never compared. A hash is cut into one band more than bits may differ, so that two hashes within the
distance agree in one band at least, and only those are compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np

BITS = 64
DISTANCE = 4
"""Bits in which the hashes of near-duplicates differ at most: a picture that was saved again or made smaller differs in
0 to 4, two pictures of one scene usually in more."""
PAIRS_AT_ONCE = 1 << 22
"""Pairs that are held before they are joined to groups."""

Hashes = np.ndarray[Any, np.dtype[np.uint64]]
Array = np.ndarray[Any, Any]


def near_groups(hashes: Hashes, distance: int = DISTANCE) -> Array:
    """The group of each hash: hashes that differ in few bits, and those that such hashes connect.

    Args:
        hashes: [n] uint64.
        distance: bits in which two hashes of a group differ at most.
    Returns:
        [n] int64, numbered from 0 in the order of first mention; -1 = no other hash is near.
    """
    values, value_of = np.unique(hashes, return_inverse=True)
    group = _connected(values, distance)[value_of]
    _, first, group = np.unique(group, return_index=True, return_inverse=True)
    sizes = np.bincount(group, minlength=len(first))
    number = np.full(len(first), -1)
    alike = np.flatnonzero(sizes > 1)
    number[alike[np.argsort(first[alike])]] = np.arange(len(alike))
    groups: Array = number[group]
    return groups


def _connected(values: Hashes, distance: int) -> Array:
    """[m] component of each distinct hash. Memory grows with their number only, however many are near each other."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    component = np.arange(len(values))

    def join(pairs: list[tuple[Array, Array]]) -> None:
        a, b = (component[np.concatenate(side)] for side in zip(*pairs, strict=True))
        graph = coo_array((np.ones(len(a), bool), (a, b)), (len(values), len(values)))
        component[:] = connected_components(graph, directed=False)[1][component]

    pairs: list[tuple[Array, Array]] = []
    for pair in _near_pairs(values, distance):
        pairs.append(pair)
        if sum(len(a) for a, _ in pairs) >= PAIRS_AT_ONCE:
            join(pairs)
            pairs = []
    if pairs:
        join(pairs)
    return component


def _near_pairs(values: Hashes, distance: int) -> Iterator[tuple[Array, Array]]:
    """Pairs of positions whose hashes differ in at most ``distance`` bits; a pair may come several times."""
    edges = np.linspace(0, BITS, distance + 2).round().astype(np.uint64)
    for low, high in pairwise(edges):
        band = (values >> low) & np.uint64((1 << int(high - low)) - 1)
        order = np.argsort(band, kind="stable")
        band, hashes = band[order], values[order]
        first, step = np.arange(len(values)), 1
        while len(first := first[first + step < len(values)]):
            first = first[band[first] == band[first + step]]
            near = first[np.bitwise_count(hashes[first] ^ hashes[first + step]) <= distance]
            if len(near):
                yield order[near], order[near + step]
            step += 1
