"""Retrieval by language: one pool for each language, with all images and the captions of that language."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
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


def parallel_pairs(language: Array, row: Array) -> Array:
    """Pairs of captions of one sample that say the same in two languages: caption k in each of them.

    Args:
        language: [items of b] str; row: [items of b] int64, the sample of each caption.
    Returns:
        [pairs, 2] int64 items of b.
    """
    of_row: dict[int, dict[str, list[int]]] = {}
    for item, (sample, code) in enumerate(zip(row.tolist(), language.tolist(), strict=True)):
        of_row.setdefault(sample, {}).setdefault(code, []).append(item)
    pairs = [
        pair
        for captions in of_row.values()
        for first, second in combinations(captions.values(), 2)
        for pair in zip(first, second, strict=False)
    ]
    return np.array(pairs, np.int64).reshape(-1, 2)


def agreement(pairs: Array, top: Array) -> NDArray[np.bool_]:
    """[pairs] True where both captions have the same first answer.

    Args:
        pairs: [pairs, 2] items of b. top: [items of b] the first answer to each; -1 = none is alone at the top, which
            agrees with nothing: a model that gives every query one score has no agreement.
    """
    first, second = top[pairs].reshape(-1, 2).T
    same: NDArray[np.bool_] = (first == second) & (first >= 0)
    return same
