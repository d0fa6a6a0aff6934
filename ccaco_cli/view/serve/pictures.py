"""Heat maps of an answer as pictures for the page."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

from ccaco_cli.core.reporting.hit_explanation import explain_hits
from ccaco_cli.core.retrieval.index import Index
from ccaco_cli.core.retrieval.search import Hit
from ccaco_cli.view.heat import SIDE, enlarged, overlay

MAX_WORDS = 24


def explanation(index: Index, modality: str, query: str | bytes, hit: Hit, method: str) -> dict[str, Any]:
    """Why an item matches a query: a heat map for each content word, and whether the match score depends on it.

    Args:
        modality: of the query; a text, or an encoded file.
    Returns:
        JSON types: the numbers of ``Explanation.facts``, and one picture (a data URI) for each of the first words.
    Raises:
        DataError: the query cannot be decoded, or this index has no cross branch.
        ConfigError: the matcher has no attention.
    """
    explained = next(explain_hits(index, modality, query, [hit], method))
    facts = explained.explanation.facts()
    image = np.full((SIDE, SIDE, 3), 128, np.uint8) if explained.image is None else explained.image
    maps = zip(facts["words"][:MAX_WORDS], explained.explanation.heat, strict=False)
    words = [{**word, "picture": _data_uri(overlay(image, heat))} for word, heat in maps]
    return facts | {"words": words, "weight": explained.weight, "input": _data_uri(enlarged(image))}


def _data_uri(picture: Image.Image) -> str:
    data = io.BytesIO()
    picture.save(data, "WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode()}"
