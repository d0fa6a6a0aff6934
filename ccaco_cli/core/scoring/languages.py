"""Retrieval by language: one pool for each language, with all images and the captions of that language."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ccaco_cli.core.data.shards import Split
from ccaco_cli.core.evaluation.protocols import Evaluation, join_pools

Array = NDArray[Any]
PROTOCOL = "languages"


def caption_languages(split: Split) -> Array | None:
    """[captions] str, the language of each caption of a split (``Split.meta["languages"]``); None when it has none."""
    if not len(split) or "languages" not in split.meta(0):
        return None
    return np.array([name for row in range(len(split)) for name, n in split.meta(row)["languages"] for _ in range(n)])


def evaluate_by_language(language: Array, evaluate: Callable[[Array], Evaluation]) -> Evaluation:
    """Evaluates the captions of each language by themselves.

    Args:
        language: [items of b] str.
        evaluate: items of b -> the evaluation of all images with them.
    Returns:
        Evaluation with one pool for each language; metrics are means over languages.
    """
    names = np.unique(language)
    return join_pools(PROTOCOL, {str(name): evaluate(np.flatnonzero(language == name)) for name in names})
