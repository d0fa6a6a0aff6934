"""From a query to ranked answers: shortlist by the dot product, then cosine and cross-attention together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ccaco_cli.core.data.loader import COLLATE
from ccaco_cli.core.retrieval.index import Index
from ccaco_cli.core.retrieval.rerank import match
from ccaco_cli.core.types import Encoded


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


@torch.inference_mode()
def encode_query(index: Index, modality: str, samples: Sequence[Any]) -> Encoded:
    """Queries as the index's model sees them.

    samples  texts, or decoded media (PIL images, recordings)
    Returns  Encoded with tokens prepared for the cross branch, on the CPU
    """
    aligner, towers, _ = index.model
    tower = towers[modality]
    inputs = tower.preprocess(list(samples)) if modality == "text" else COLLATE[modality]([tower.preprocess(s) for s in samples])
    encoded = aligner.encode(modality, inputs)
    return aligner.local(modality, encoded)


def search(index: Index, modality: str, query: Encoded, k: int, rerank: int | None = None) -> list[list[Hit]]:
    """Best k items of the other modality for each query.

    query   of ``encode_query``
    rerank  how many candidates the cross branch reorders; None = as many as in the run's evaluation, 0 = none
    Returns one list a query, best first
    """
    side = index.sides[index.other(modality)]
    exhaustive = index.headline == "cross"
    if rerank is None:
        settings = index.model[2].eval
        rerank = settings.shortlist_back if modality == index.modalities[0] else settings.shortlist
    if not side.has_tokens or (index.weight == 0 and not exhaustive):
        rerank = 0
    wanted = side.vectors.ntotal if exhaustive else min(side.vectors.ntotal, max(k, rerank))
    cosines, rows = side.vectors.search(np.ascontiguousarray(query.z.numpy(), np.float32), wanted)
    return [_rank(index, modality, query[i : i + 1], cosines[i], rows[i], k, wanted if exhaustive else rerank) for i in range(len(query.z))]


def _rank(index: Index, modality: str, query: Encoded, cosines: Any, rows: Any, k: int, rerank: int) -> list[Hit]:
    side = index.sides[index.other(modality)]
    scores, matches = cosines.astype(np.float64), np.full(len(rows), np.nan)
    if rerank:
        aligner = index.model[0]
        candidates = side.encoded(rows[:rerank])
        pairs = torch.stack([torch.zeros(len(candidates.z), dtype=torch.long), torch.arange(len(candidates.z))], 1)
        query_first = modality == index.modalities[0]
        found = match(aligner, query, candidates, pairs) if query_first else match(aligner, candidates, query, pairs.flip(1))
        matches[: len(found)] = found.numpy()
        scale, weight = (0.0, 1.0) if index.headline == "cross" else (float(aligner.logit_scale().detach()), index.weight)
        scores[: len(found)] = scale * scores[: len(found)] + weight * matches[: len(found)]
        order = np.concatenate([np.argsort(-scores[: len(found)], kind="stable"), np.arange(len(found), len(rows))])
    else:
        order = np.arange(len(rows))
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
