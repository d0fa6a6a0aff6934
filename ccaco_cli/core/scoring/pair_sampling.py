"""Pairs on which a model makes single choices, besides ranking a gallery: a fixed draw, the same for every model and
arm.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ccaco_cli.core.data.shards import Split

Array = NDArray[Any]
Choices = tuple[Tensor, Tensor]
"""Index pairs (item of a, item of b), int64: the true pairs [n, 2], and the false pairs [n * m, 2], m for each true
pair.
"""
ALIKE_OF = 10
CALIBRATION_PAIRS = 2000
"""Most true pairs on which probabilities are calibrated or measured: a slow matcher scores twice as many pairs."""


def matching_pairs(group: Array, row_a: Array, row_b: Array) -> Choices:
    """Each item of b with its own item of a, and with an item of a of another group.

    Args:
        group: [rows] int64; rows of equal group have the same content.
        row_a, row_b: [items] int64, the row of each item.
    """
    if len(np.unique(group[row_a])) < 2:
        return _pairs([], []), _pairs([], [])
    items = np.arange(len(row_b))
    true, false = np.searchsorted(row_a, row_b), draw_from_other_groups(group[row_a], group[row_b])
    return _pairs(true, items), _pairs(false, items)


def draw_from_other_groups(pool: Array, groups: Array) -> Array:
    """Draws for each group number an item of the pool that has another one; always the same draw.

    Args:
        pool: [n] group of each item; at least two different groups.
        groups: group numbers of any shape.
    Returns:
        int64 indices into the pool, of the shape of ``groups``.
    """
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(pool), size=groups.shape)
    while (clash := pool[drawn] == groups).any():
        drawn[clash] = rng.integers(len(pool), size=int(clash.sum()))
    return drawn


def calibration_pairs(group: Array, row_a: Array, row_b: Array, z_a: Tensor, z_b: Tensor) -> Choices:
    """True pairs and as many others, half of them drawn at random and half alike.

    At most ``CALIBRATION_PAIRS`` items of b, evenly spaced, stand with their own item of a. Every second of them also
    stands with an item of a of another group that is drawn at random, the rest with the one of highest cosine among
    ``ALIKE_OF`` that are drawn. (The most alike of the whole split would depend on its size, and would have a higher
    score than the true partner in most cases.) No pairs when there is only one group.

    Args:
        group: [rows] int64. row_a, row_b: [items] int64, the row of each item.
        z_a, z_b: [items, E] unit norm.
    """
    if len(np.unique(group[row_a])) < 2 or not len(row_b):
        return _pairs([], []), _pairs([], [])
    items = np.unique(np.linspace(0, len(row_b) - 1, CALIBRATION_PAIRS).astype(np.int64))
    group_a, groups = group[row_a], group[row_b[items]]
    drawn = draw_from_other_groups(group_a, np.repeat(groups[:, None], ALIKE_OF, 1))
    cosine = torch.einsum("ne,nke->nk", z_b[torch.from_numpy(items)], z_a[torch.from_numpy(drawn)])
    alike = drawn[np.arange(len(items)), cosine.nan_to_num(-1.0).argmax(1).numpy()]
    false = np.where(np.arange(len(items)) % 2, alike, drawn[:, 0])
    return _pairs(np.searchsorted(row_a, row_b[items]), items), _pairs(false, items)


def n_way_pairs(ways: int, group: Array, row_a: Array, row_b: Array) -> Choices:
    """Each item of a with its own (first) item of b, and with items of b of ``ways - 1`` other groups.

    No pairs when there are fewer groups than ways.
    """
    group_b = group[row_b]
    by_group = np.argsort(group_b, kind="stable")
    groups, start, count = np.unique(group_b[by_group], return_index=True, return_counts=True)
    if ways < 2 or len(groups) < ways:
        return _pairs([], []), _pairs([], [])
    rng = np.random.default_rng(0)
    own_group = np.searchsorted(groups, group[row_a])
    # draw from all groups but the item's own: indices from its own group on move up by one
    drawn = np.stack([rng.choice(len(groups) - 1, ways - 1, replace=False) for _ in row_a])
    drawn += drawn >= own_group[:, None]
    false = by_group[start[drawn] + (rng.random(drawn.shape) * count[drawn]).astype(np.int64)]
    items = np.arange(len(row_a))
    return _pairs(items, np.searchsorted(row_b, row_a)), _pairs(np.repeat(items, ways - 1), false.ravel())


def twin_pairs(split: Split, row_a: Array, row_b: Array) -> Choices:
    """Each item of a that has a near-twin (an item of its family), with its own (first) item of b, and with that of the
    twin.
    """
    families: dict[int, list[int]] = {}
    for item, family in enumerate(split.family[row_a]):
        families.setdefault(int(family), []).append(item)
    triples = [
        (item, row_a[item], row_a[twin])
        for family_items in families.values()
        for item, twin in zip(family_items, family_items[1:] + family_items[:1], strict=True)
        if split.group[row_a[item]] != split.group[row_a[twin]]
    ]
    items, own_rows, twin_rows = np.array(triples, np.int64).reshape(-1, 3).T
    return _pairs(items, np.searchsorted(row_b, own_rows)), _pairs(items, np.searchsorted(row_b, twin_rows))


def swapped_caption_pairs(split: Split, row_a: Array) -> Choices:
    """Each item of a with a true caption, and with the same caption with its attributes swapped, for swapped captions
    that are in the split.
    """
    true: list[tuple[int, int]] = []
    false: list[tuple[int, int]] = []
    if split.modalities[1] == "text":
        item_of_text: Mapping[str, int] = {text: item for item, text in enumerate(split.captions)}
        for item, row in enumerate(row_a):
            for true_caption, swapped_caption in split.meta(int(row)).get("binding") or ():
                if true_caption in item_of_text and swapped_caption in item_of_text:
                    true.append((item, item_of_text[true_caption]))
                    false.append((item, item_of_text[swapped_caption]))
    return torch.tensor(true, dtype=torch.long).view(-1, 2), torch.tensor(false, dtype=torch.long).view(-1, 2)


def _pairs(items_a: Any, items_b: Any) -> Tensor:
    return torch.from_numpy(np.stack([np.asarray(items_a, np.int64), np.asarray(items_b, np.int64)], 1))
