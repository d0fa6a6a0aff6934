"""From a query to ranked answers: shortlist by the dot product, then cosine and cross-attention together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ccaco_cli.core.errors import DataError
from ccaco_cli.core.modalities import MODALITIES
from ccaco_cli.core.retrieval.index import Index
from ccaco_cli.core.retrieval.query import Query
from ccaco_cli.core.types import EncodedSamples

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Hit:
    """One answer.

    score   what the ranking goes by: cosine, or scale * cosine + weight * match
    cosine  -1..1
    match   cross score, or None when the cross branch did not look
    item    the index's own columns: id, group, text, thumbnail ...
    """

    rank: int
    row: int
    score: float
    cosine: float
    match: float | None
    item: dict[str, Any]


def ask(index: Index, modality: str, samples: Sequence[Any], k: int, rerank: int | None = None) -> list[list[Hit]]:
    """``search`` for texts or decoded media, encoded by the exported query side where there is one for them, else by the model itself."""
    light = index.exported is not None and index.exported.modality == modality
    query = index.exported.encode(samples) if index.exported and light else encode_query(index, modality, samples)
    return search(index, modality, query, k, rerank)


def encode_query(index: Index, modality: str, samples: Sequence[Any]) -> EncodedSamples:
    """Encodes queries by the index's model.

    samples  texts, or decoded media (PIL images, recordings)
    Returns  EncodedSamples with tokens, on the CPU
    """
    import torch

    with torch.inference_mode():
        return _encode(index, modality, samples)


def _encode(index: Index, modality: str, samples: Sequence[Any]) -> EncodedSamples:
    aligner, towers, _ = index.model
    tower = towers[modality]
    inputs = (
        tower.preprocess(list(samples))
        if modality == "text"
        else MODALITIES[modality].collate([tower.preprocess(s) for s in samples])
    )
    embedding, features = aligner.encode(modality, inputs)
    return EncodedSamples(embedding, aligner.local_tokens(modality, features))


def search(
    index: Index, modality: str, query: EncodedSamples | Query, k: int, rerank: int | None = None
) -> list[list[Hit]]:
    """Best k items of the other modality for each query.

    query   of ``encode_query``, or of the exported query side
    rerank  how many candidates the cross branch reorders; None = as many as in the run's evaluation, 0 = none
    Returns one list a query, best first
    """
    side = index.sides[index.other(modality)]
    exhaustive = index.headline == "cross"
    if rerank is None:
        settings = index.manifest.config["eval"]
        rerank = int(settings["shortlist_back" if modality == index.modalities[0] else "shortlist"])
    if not side.has_tokens or (index.weight == 0 and not exhaustive):
        rerank = 0
    asked = query if isinstance(query, Query) else _arrays(query)
    wanted = side.vectors.ntotal if exhaustive else min(side.vectors.ntotal, max(k, rerank))
    cosines, rows = side.vectors.search(asked.z, wanted)
    return [
        _rank(index, modality, asked[i : i + 1], cosines[i], rows[i], k, wanted if exhaustive else rerank)
        for i in range(len(asked.z))
    ]


def _arrays(query: EncodedSamples) -> Query:
    return Query(query.z.numpy(), query.local_tokens.tokens.numpy(), query.local_tokens.mask.numpy())


def _rank(index: Index, modality: str, query: Query, cosines: Array, rows: Array, k: int, rerank: int) -> list[Hit]:
    side = index.sides[index.other(modality)]
    cosines, rows = cosines[rows >= 0], rows[rows >= 0]  # an approximate search may have found fewer
    scores, matches = cosines.astype(np.float64), np.full(len(rows), np.nan)
    order = np.arange(len(rows))
    if rerank:
        found = _match(index, modality, query, rows[:rerank])
        matches[: len(found)] = found
        scale, weight = (
            (0.0, 1.0) if index.headline == "cross" else (float(index.manifest.facts["scale"]), index.weight)
        )
        scores[: len(found)] = scale * scores[: len(found)] + weight * matches[: len(found)]
        order[: len(found)] = np.argsort(-scores[: len(found)], kind="stable")
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


def _match(index: Index, modality: str, query: Query, rows: Array) -> Array:
    """Match logits [n] of one query with some rows of the other modality."""
    tokens, mask = index.sides[index.other(modality)].tokens.read(rows)
    ours = np.repeat(query.tokens, len(rows), 0), np.repeat(query.mask, len(rows), 0)
    pairs = (*ours, tokens, mask) if modality == index.modalities[0] else (tokens, mask, *ours)
    if index.exported is not None and index.exported.has_matcher:
        return index.exported.match(*pairs)
    import torch

    from ccaco_cli.core.retrieval.rerank import match
    from ccaco_cli.core.types import LocalTokens

    every = torch.arange(len(rows))
    a, b = (LocalTokens(torch.from_numpy(t), torch.from_numpy(m)) for t, m in (pairs[:2], pairs[2:]))
    return match(index.model[0], a, b, torch.stack([every, every], 1)).numpy()


def from_file(index: Index, modality: str, file: Path) -> tuple[Any, EncodedSamples]:
    """What a file holds, as decoded and as the index's model sees it."""
    try:
        sample = MODALITIES[modality].decode(file.read_bytes())
        return sample, encode_query(index, modality, [sample])  # recordings are decoded here
    except OSError as error:
        raise DataError(
            f"cannot read this file ({error.strerror or error})", where=file, expected=f"a readable {modality} file"
        ) from None
    except DataError as error:  # decoders see bytes and do not know whose
        raise DataError(error.what, where=file, expected=error.expected) from None
