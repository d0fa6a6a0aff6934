"""From a query to ranked answers: shortlist by the dot product, then cosine and cross-attention together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ccaco_cli.core.retrieval.index import Index
from ccaco_cli.core.retrieval.query import Query
from ccaco_cli.core.retrieval.rerank import CROSS
from ccaco_cli.core.types import EncodedSamples

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Hit:
    """One answer.

    Attributes:
        rank: place among the answers, from 1.
        row: of the item in its side of the index.
        score: what ranks the answers (``Index.scorer``); the cosine where the cross branch did not score the item.
        cosine: -1..1.
        match: match logit, or None where the cross branch did not score the item.
        item: columns of the index: id, group, text, thumbnail ...
    """

    rank: int
    row: int
    score: float
    cosine: float
    match: float | None
    item: dict[str, Any]


@dataclass(frozen=True)
class SearchOptions:
    """What a search returns.

    Attributes:
        k: hits per query.
        rerank: candidates that the cross branch reorders; None = as many as in the evaluation of the run, 0 = none.
        target: modality of the items that are searched; "" = as ``Index.target`` chooses.
        where: a condition on the columns of the items (``filters``); "" = every item.
        dedup: hits whose cosine of their vectors reaches this are one hit; 0 = each item is a hit.
    """

    k: int = 10
    rerank: int | None = None
    target: str = ""
    where: str = ""
    dedup: float = 0.0


def ask(
    index: Index, modality: str, samples: Sequence[Any], options: SearchOptions = SearchOptions()
) -> list[list[Hit]]:
    """Encodes queries by the exported query side, if there is one for the modality, else by the model, and searches."""
    light = index.exported is not None and index.exported.modality == modality
    query = index.exported.encode(samples) if index.exported and light else encode_query(index, modality, samples)
    return search(index, modality, query, options)


def encode_query(index: Index, modality: str, samples: Sequence[Any]) -> EncodedSamples:
    """Encodes queries as the items of the index were encoded: preprocessing, token pooling, rounding, precision.

    There are two exceptions, which are encoded in float32: a precision in which this CPU is slow, and queries of the
    exported modality. Their cosines differ by less than 1e-3.

    Args:
        samples: texts; or files, encoded bytes or decoded media (PIL images, recordings).
    Returns:
        Embeddings and tokens, on the CPU.
    Raises:
        DataError: a file that cannot be read or decoded.
    """
    from ccaco_cli.core.encoding.encode import EncodeOptions
    from ccaco_cli.core.encoding.samples import encode_samples

    aligner, towers, _ = index.model
    return encode_samples(aligner, towers[modality], samples, options=EncodeOptions(max_tokens=index.store_grid))


def search(
    index: Index, modality: str, query: EncodedSamples | Query, options: SearchOptions = SearchOptions()
) -> list[list[Hit]]:
    """Best k items for each query: of the other modality, or of the only one that the index stores.

    The cross branch scores pairs of two modalities, so items of the modality of the query are ranked by the cosine.

    Args:
        query: of ``encode_query``, or of the exported query side.
    Returns:
        One list of hits for each query, best first.
    """
    target = index.target(modality, options.target)
    k, rerank = options.k, options.rerank
    side, crosses = index.sides[target], target != modality
    exhaustive = crosses and index.scorer.kind == CROSS
    if rerank is None:
        settings = index.manifest.config["eval"]
        rerank = int(settings["shortlist_back" if modality == index.modalities[0] else "shortlist"])
    if not crosses or not side.has_tokens or not index.scorer.weight:
        rerank = 0
    queries = query if isinstance(query, Query) else _arrays(query)
    wanted = side.vectors.ntotal if exhaustive else min(side.vectors.ntotal, max(k, rerank))
    cosines, rows = side.vectors.search(queries.z, wanted)
    return [
        _rank(index, (modality, target), queries[i : i + 1], cosines[i], rows[i], k, wanted if exhaustive else rerank)
        for i in range(len(queries.z))
    ]


def _arrays(query: EncodedSamples) -> Query:
    tokens = query.local_tokens
    return Query(query.z.numpy(), tokens.tokens.float().numpy(), tokens.mask.numpy())


def _rank(
    index: Index, direction: tuple[str, str], query: Query, cosines: Array, rows: Array, k: int, rerank: int
) -> list[Hit]:
    side = index.sides[direction[1]]
    cosines, rows = cosines[rows >= 0], rows[rows >= 0]  # an approximate search may have found fewer
    scores, matches = cosines.astype(np.float64), np.full(len(rows), np.nan)
    order = np.arange(len(rows))
    if rerank:
        listed = slice(min(rerank, len(rows)))
        matches[listed] = _match(index, direction, query, rows[listed])
        scores[listed] = index.scorer(scores[listed], matches[listed])
        order[listed] = np.argsort(-scores[listed], kind="stable")
    return [
        Hit(
            place + 1,
            int(rows[i]),
            float(scores[i]),
            float(cosines[i]),
            None if np.isnan(matches[i]) else float(matches[i]),
            side.item(int(rows[i])),
        )
        for place, i in enumerate(order[:k])
    ]


def _match(index: Index, direction: tuple[str, str], query: Query, rows: Array) -> Array:
    """Match logits [n] of one query with some rows of the other modality."""
    modality, target = direction
    tokens, mask = index.sides[target].tokens.read(rows)
    ours = np.repeat(query.tokens, len(rows), 0), np.repeat(query.mask, len(rows), 0)
    pairs = (*ours, tokens, mask) if modality == index.modalities[0] else (tokens, mask, *ours)
    if index.exported is not None and index.exported.has_matcher:
        return index.exported.match(*pairs)
    import torch

    from ccaco_cli.core.retrieval.match import match_logits
    from ccaco_cli.core.types import LocalTokens

    every = torch.arange(len(rows))
    a, b = (LocalTokens(torch.from_numpy(t), torch.from_numpy(m)) for t, m in (pairs[:2], pairs[2:]))
    return match_logits(index.model[0], a, b, torch.stack([every, every], 1)).numpy()
