"""Which pairs a model is asked to choose between, besides ranking a whole gallery: drawn once, the same for every model and arm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ccaco_cli.core.data.shards import Split

Array = NDArray[Any]


def partners(group: Array, row_a: Array, row_b: Array) -> tuple[Tensor, Tensor]:
    """Pairs of items [items of b, 2]: each item of b with its own partner, and with one of another group."""
    if len(np.unique(group[row_a])) < 2:
        return _pairs([], []), _pairs([], [])
    items, other = np.arange(len(row_b)), of_other_groups(group[row_a], group[row_b])
    own = np.searchsorted(row_a, row_b)
    return _pairs(own, items), _pairs(other, items)


def of_other_groups(pool: Array, own: Array) -> Array:
    """For each group number of ``own`` [...] an item of ``pool`` [n] that is of another one: [...] int64, always the same draw.

    There must be two groups in the pool.
    """
    rng = np.random.default_rng(0)
    found = rng.integers(len(pool), size=own.shape)
    while (clash := pool[found] == own).any():
        found[clash] = rng.integers(len(pool), size=int(clash.sum()))
    return found


def among(ways: int, group: Array, row_a: Array, row_b: Array) -> tuple[Tensor, Tensor]:
    """Pairs of items: each of a with its own (first) item of b [n, 2], and with ``ways - 1`` of as many other groups [n * (ways - 1), 2].

    Nothing when there are fewer groups than ways.
    """
    of_b = group[row_b]
    by_group = np.argsort(of_b, kind="stable")
    groups, start, count = np.unique(of_b[by_group], return_index=True, return_counts=True)
    if ways < 2 or len(groups) < ways:
        return _pairs([], []), _pairs([], [])
    rng = np.random.default_rng(0)
    place = np.searchsorted(groups, group[row_a])
    # all places but one's own: those from one's own on move up by one
    drawn = np.stack([rng.choice(len(groups) - 1, ways - 1, replace=False) for _ in row_a])
    drawn += drawn >= place[:, None]
    others = by_group[start[drawn] + (rng.random(drawn.shape) * count[drawn]).astype(np.int64)]
    items = np.arange(len(row_a))
    return _pairs(items, np.searchsorted(row_b, row_a)), _pairs(np.repeat(items, ways - 1), others.ravel())


def twins(split: Split, row_a: Array, row_b: Array) -> tuple[Tensor, Tensor]:
    """Pairs of items [n, 2]: each item of a that has a near-twin with its own (first) item of b, and with its twin's."""
    items: dict[int, list[int]] = {}
    for item, family in enumerate(split.family[row_a]):
        items.setdefault(int(family), []).append(item)
    found = [
        (one, row_a[one], row_a[other])
        for family in items.values()
        for one, other in zip(family, family[1:] + family[:1], strict=True)
        if split.group[row_a[one]] != split.group[row_a[other]]
    ]
    own, mine, its = np.array(found, np.int64).reshape(-1, 3).T
    return _pairs(own, np.searchsorted(row_b, mine)), _pairs(own, np.searchsorted(row_b, its))


def swapped(split: Split, row_a: Array) -> tuple[Tensor, Tensor]:
    """Pairs (thing, true caption) and (thing, swapped caption), for swapped captions that are captions of the split (of the twin)."""
    pairs: tuple[list[tuple[int, int]], list[tuple[int, int]]] = ([], [])
    if split.modalities[1] == "text":
        at: Mapping[str, int] = {text: item for item, text in enumerate(split.captions)}
        for item, row in enumerate(row_a):
            for said in split.meta(int(row)).get("binding") or ():
                if all(text in at for text in said):
                    for side, text in zip(pairs, said, strict=True):
                        side.append((item, at[text]))
    one, other = (torch.tensor(side, dtype=torch.long).view(-1, 2) for side in pairs)
    return one, other


def _pairs(one: Any, other: Any) -> Tensor:
    return torch.from_numpy(np.stack([np.asarray(one, np.int64), np.asarray(other, np.int64)], 1))
