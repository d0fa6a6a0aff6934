"""The attended cosine below which a word counts as not shown: chosen on words of true captions and of others."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ccaco_cli.core.data.shards import Split
from ccaco_cli.core.errors import ConfigError
from ccaco_cli.core.evaluation.choice_metrics import best_threshold
from ccaco_cli.core.model.aligner import Aligner
from ccaco_cli.core.retrieval.explain import attended_cosines, word_cosines
from ccaco_cli.core.scoring.pair_sampling import draw_from_other_groups
from ccaco_cli.core.scoring.split_scorer import SplitEncodings

CAPTIONS = 500
"""Most captions on which the threshold is chosen."""
CAPTIONS_AT_ONCE = 64


def threshold(split: Split, encodings: SplitEncodings, aligner: Aligner) -> float | None:
    """The attended cosine that best separates the words of captions with their own samples from words that are not
    there: those of a caption with a sample of another group, none of whose captions has the word.

    Args:
        encodings: of the split, with tokens, and with captions as b.
    Returns:
        -1..1; None for a model without a cross branch, without attention of words, or without words to compare.
    """
    if encodings.word_spans is None or encodings.a.tokens is None or len(np.unique(split.group[encodings.row_a])) < 2:
        return None
    items = np.unique(np.linspace(0, len(encodings.row_b) - 1, CAPTIONS).astype(np.int64))
    row_a, row_b = encodings.row_a, encodings.row_b[items]
    captions = [split.captions[item] for item in items]
    spans = [encodings.word_spans(text) for text in captions]
    true_a = np.searchsorted(row_a, row_b)
    false_a = draw_from_other_groups(split.group[row_a], split.group[row_b])
    try:
        true = _words(encodings, aligner, true_a, items, spans)
        false = _words(encodings, aligner, false_a, items, spans)
    except ConfigError:  # this matcher has no attention of words over samples
        return None
    absent = []
    for words, item in zip(false, false_a, strict=True):
        shown = _shown(split, encodings, int(row_a[item]))
        absent += [cosine for word, cosine in words if word.lower() not in shown]
    present = [cosine for words in true for _, cosine in words]
    return best_threshold(present, absent) if np.isfinite(present).any() and np.isfinite(absent).any() else None


def _words(
    encodings: SplitEncodings,
    aligner: Aligner,
    items_a: NDArray[Any],
    items_b: NDArray[Any],
    spans: list[list[tuple[str, list[int]]]],
) -> list[list[tuple[str, float]]]:
    """Content words of each pair with their attended cosines."""
    words = []
    for rows in torch.split(torch.arange(len(items_b)), CAPTIONS_AT_ONCE):
        a = encodings.a.local_tokens[torch.from_numpy(items_a)[rows]]
        b = encodings.b.local_tokens[torch.from_numpy(items_b)[rows]]
        cosines = attended_cosines(aligner, a, b)
        words += [word_cosines(line, spans[row]) for line, row in zip(cosines, rows.tolist(), strict=True)]
    return words


def _shown(split: Split, encodings: SplitEncodings, row: int) -> set[str]:
    """The content words of all captions of a row, in lower case."""
    assert encodings.word_spans is not None
    texts = split.captions[split.caption_start[row] : split.caption_start[row + 1]]
    return {word.lower() for text in texts for word, _ in encodings.word_spans(text)}
