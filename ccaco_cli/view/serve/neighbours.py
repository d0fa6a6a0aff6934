"""More like this: the items of a modality that are closest to one of them."""

from __future__ import annotations

import dataclasses

import numpy as np

from ccaco_cli.core.retrieval import vectors
from ccaco_cli.core.retrieval.index import Index
from ccaco_cli.core.retrieval.query import Query
from ccaco_cli.core.retrieval.search import Hit, SearchOptions, search


def similar_items(index: Index, modality: str, row: int, options: SearchOptions) -> list[Hit]:
    """The items that are closest to one item by the cosine, without the item itself.

    Args:
        modality: of the item and of the answers.
        row: of the item.
        options: how many, and which.
    """
    stored = np.load(index.sides[modality].folder / vectors.VECTORS, mmap_mode="r", allow_pickle=False)
    z = np.asarray(stored[row : row + 1], np.float32)
    query = Query(z, np.zeros((1, 1, 1), np.float32), np.ones((1, 1), bool))  # one modality: no tokens are compared
    wanted = dataclasses.replace(options, k=options.k + 1, target=modality)
    (hits,) = search(index, modality, query, wanted)
    others = [hit for hit in hits if hit.row != row][: options.k]
    return [dataclasses.replace(hit, rank=rank) for rank, hit in enumerate(others, 1)]
