"""Explanations of search hits (``ccaco retrieve --explain``)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ccaco_cli.core.encoding.samples import decoded
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.modalities import MODALITIES
from ccaco_cli.core.model.towers.tower import Tower
from ccaco_cli.core.retrieval import explain
from ccaco_cli.core.retrieval.explain import Explanation
from ccaco_cli.core.retrieval.index import Index
from ccaco_cli.core.retrieval.search import Hit, encode_query


@dataclass(frozen=True, eq=False)
class ExplainedHit:
    """A hit of a search and the explanation of its match score.

    Attributes:
        image: [H, W, 3] uint8, what the model sees (a spectrogram of audio); None where the index has no media.
        weight: of the match score in the ranking; with 0 the ranking does not use the score that is explained.
    """

    query: str
    hit: Hit
    explanation: Explanation
    image: NDArray[np.uint8] | None
    weight: float

    def facts(self) -> dict[str, Any]:
        """The numbers as JSON types."""
        hit = self.hit
        ranking = {
            "query": self.query,
            "rank": hit.rank,
            "id": hit.item["id"],
            "score": hit.score,
            "cosine": hit.cosine,
        }
        return ranking | {"weight": self.weight} | self.explanation.facts()


def explain_hits(
    index: Index,
    modality: str,
    query: str | Path | bytes,
    hits: Sequence[Hit],
    method: str,
    language: str = "",
) -> Iterator[ExplainedHit]:
    """Explains hits: the relevance of each image cell for each word, and whether the match score depends on it.

    Args:
        query: a text; or a file of the ``modality``, or its bytes.
        language: of the texts, a code of BCP 47; "" = it is detected.
    Raises:
        DataError: an index without a cross branch, or of a tower without a grid; a hit of a modality that has no match
            score with the query.
        ConfigError: as ``explain.relevance``.
    """
    first, second = index.modalities
    target = next((hit.modality for hit in hits if {modality, hit.modality} != {first, second}), None)
    if target is not None:
        pair = f"one modality ({modality})" if target == modality else f"{modality} and {target}"
        raise DataError(
            f"a query and items of {pair} have no match score to explain",
            where=index.manifest.path,
            expected=f"a query by {second if target == first else first}",
        )
    aligner, towers, _ = index.model
    if not all(index.sides[hit.modality].has_tokens for hit in hits):
        raise DataError(
            "this index holds vectors only, no tokens to explain",
            where=index.manifest.path,
            expected="an index of a run with beta > 0",
        )
    from_first = modality == first
    query_tokens = encode_query(index, modality, [query]).local_tokens
    sample = decoded(modality, query, towers[modality].preprocess)
    weight = index.scorer.weight
    name = "" if isinstance(query, bytes) else str(query)
    for hit in hits:
        item_tokens = index.sides[hit.modality].local_tokens([hit.row])
        a, b = (query_tokens, item_tokens) if from_first else (item_tokens, query_tokens)
        # an index stores one frame of a video, which the video tower does not take
        stored = hit.item.get("thumbnail") if MODALITIES[first].picture_is_sample else None
        first_sample = sample if from_first else MODALITIES[first].decode(stored) if stored else None
        second_sample = hit.item["text"] if from_first else sample
        words = explain.content_word_spans(towers[second], second_sample, language) if second == "text" else []
        grid = explain.patch_grid(aligner, towers[first], int(a.mask.sum()), index.store_grid)
        explanation = explain.explain(aligner, a, b, grid, words, method)
        image = None if first_sample is None else model_input_image(towers[first], first_sample)
        yield ExplainedHit(name, hit, explanation, image, weight)


def model_input_image(tower: Tower, sample: Any) -> NDArray[np.uint8]:
    """What a tower sees of a decoded sample, as an image [H, W, 3] uint8.

    That is the crop of an image, or the spectrogram of audio with low frequencies at the bottom.
    """
    inputs = np.asarray(tower.preprocess(sample))
    if inputs.dtype == np.uint8 and inputs.shape[0] == 3:
        return np.ascontiguousarray(inputs.transpose(1, 2, 0))
    bands = inputs.astype(np.float64).T  # time first
    grey = (bands - bands.min()) / max(float(np.ptp(bands)), 1e-9) * 255
    return np.repeat(grey[::-1, :, None].round(), 3, 2).astype(np.uint8)
