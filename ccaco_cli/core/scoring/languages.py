"""Retrieval by language: one pool for each language, with all images and the captions of that language."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ccaco_cli.core.data.caption_languages import LANGUAGES, language_of_each
from ccaco_cli.core.data.shards import Split
from ccaco_cli.core.evaluation.protocols import Evaluation, join_pools

Array = NDArray[Any]
PROTOCOL = "languages"


def caption_languages(split: Split) -> Array | None:
    """[captions] str, the language of each caption of a split (``Split.meta["languages"]``); None when it has none."""
    if not len(split) or LANGUAGES not in split.meta(0):
        return None
    return np.array([code for row in range(len(split)) for code in language_of_each(split.meta(row)[LANGUAGES])])


def evaluate_by_language(
    language: Array, evaluate: Callable[[Array, str], Evaluation], protocol: str = "full"
) -> Evaluation:
    """Evaluates the captions of each language by themselves.

    Args:
        language: [items of b] str.
        evaluate: (items of b, protocol) -> the evaluation of the images with them.
        protocol: where all captions are of one language: the results are those of a data set without languages.
    Returns:
        Evaluation with one pool for each language; metrics are means over languages.
    """
    names = [str(name) for name in np.unique(language)]
    if len(names) == 1:
        only = evaluate(np.arange(len(language)), protocol)
        return replace(only, pool_names=tuple(names)) if len(only.pools) == 1 else only
    return join_pools(PROTOCOL, {name: evaluate(np.flatnonzero(language == name), "full") for name in names})
