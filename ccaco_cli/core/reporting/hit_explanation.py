"""``ccaco retrieve --explain``: why each answer was found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ccaco_cli.core.errors import DataError
from ccaco_cli.core.modalities import MODALITIES
from ccaco_cli.core.model.towers.tower import Tower
from ccaco_cli.core.retrieval import explain
from ccaco_cli.core.retrieval.explain import Explanation
from ccaco_cli.core.retrieval.index import Index
from ccaco_cli.core.retrieval.search import Hit, encode_query, from_file


@dataclass(frozen=True, eq=False)
class Explained:
    """An answer, and why it was found.

    picture  [H, W, 3] uint8, what the model saw (a spectrogram of sound); None where the index keeps no media
    weight   of the match score in the ranking; at 0 the explanation is of a score that had no say
    """

    query: str
    hit: Hit
    why: Explanation
    picture: NDArray[np.uint8] | None
    weight: float

    def facts(self) -> dict[str, Any]:
        """The numbers as JSON types."""
        hit = self.hit
        found = {"query": self.query, "rank": hit.rank, "id": hit.item["id"], "score": hit.score, "cosine": hit.cosine}
        return found | {"weight": self.weight} | self.why.facts()


def explained(index: Index, modality: str, query: str | Path, hits: Sequence[Hit], method: str) -> Iterator[Explained]:
    """Why each answer was found: which words met which cells of the picture, and whether its match score rests on them.

    query  a text, or the file of a ``modality``, as given to ``by_text`` and ``by_file``
    Raises DataError: an index without a cross branch, or of a tower without a grid; ConfigError: as ``explain.relevance``
    """
    first, second = index.modalities
    towers = index.model[1]
    if not all(side.has_tokens for side in index.sides.values()):
        raise DataError(
            "this index holds vectors only, no tokens to explain",
            where=index.manifest.path,
            expected="an index of a run with beta > 0",
        )
    backwards = modality == first
    sample, asked = (
        from_file(index, modality, query)
        if isinstance(query, Path)
        else (query, encode_query(index, modality, [query]))
    )
    query_tokens = asked.local_tokens
    weight = 1.0 if index.headline == "cross" else index.weight
    for hit in hits:
        item_tokens = index.sides[second if backwards else first].local_tokens([hit.row])
        a, b = (query_tokens, item_tokens) if backwards else (item_tokens, query_tokens)
        kept = (
            hit.item.get("thumbnail") if MODALITIES[first].picture_is_sample else None
        )  # of clips an index keeps posters, which no tower takes
        seen = sample if backwards else MODALITIES[first].decode(kept) if kept else None
        said = hit.item["text"] if backwards else sample
        words = explain.spoken(towers[second], said) if second == "text" else []
        grid = explain.cells(index.model[0], towers[first], int(a.mask.sum()))
        why = explain.explain(index.model[0], a, b, grid, words, method)
        yield Explained(str(query), hit, why, None if seen is None else as_seen(towers[first], seen), weight)


def as_seen(tower: Tower, sample: Any) -> NDArray[np.uint8]:
    """What a tower sees of a decoded sample, as a picture [H, W, 3] uint8: the crop of an image, a spectrogram with low tones below."""
    seen = np.asarray(tower.preprocess(sample))
    if seen.dtype == np.uint8 and seen.shape[0] == 3:
        return np.ascontiguousarray(seen.transpose(1, 2, 0))
    bands = seen.astype(np.float64).T  # time first
    grey = (bands - bands.min()) / max(float(np.ptp(bands)), 1e-9) * 255
    return np.repeat(grey[::-1, :, None].round(), 3, 2).astype(np.uint8)
