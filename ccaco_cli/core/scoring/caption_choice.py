"""Caption choice: a picture, its true caption, and a hard negative made for that picture (``Split.meta["choices"]``; SugarCrepe).

A choice can often be made without looking: a negative made by rule reads oddly. So beside each accuracy stand two blind ones, which a model
that looks must beat (Hsieh et al., arXiv:2306.14610, section 3).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ccaco_cli.core.data.loader import TextColumn
from ccaco_cli.core.data.shards import Split
from ccaco_cli.core.evaluation.metrics import choice_accuracy
from ccaco_cli.core.scoring.pair_sampling import of_other_groups
from ccaco_cli.core.types import EncodedSamples

Array = NDArray[Any]
OTHERS = 16
"""Pictures of other groups whose mean score stands for a model that sees no picture."""
PREFIX = "choice"


@dataclass(frozen=True)
class CaptionChoices:
    """The choices of a split, each between a true caption and a hard negative.

    kind   [n] what the negative changes: replace_att, swap_obj ...
    row    [n] int64, the row of each picture
    pair   [n, 2] int64, the true and the false text
    texts  the distinct texts, encoded
    """

    kind: list[str]
    row: Array
    pair: Array
    texts: EncodedSamples


@dataclass(frozen=True)
class _Sentences:
    """Texts, one a row, as ``TextColumn`` takes them."""

    captions: list[str]
    caption_row: Array
    caption_start: Array


def find(
    split: Split, tokenize: Callable[[list[str]], Any], encode: Callable[[TextColumn], EncodedSamples]
) -> CaptionChoices | None:
    """The choices of a split, texts encoded; None when it has none."""
    told = [(row, *choice) for row in range(len(split)) for choice in split.meta(row).get("choices") or ()]
    if not told:
        return None
    at: dict[str, int] = {}
    pair = np.array([[at.setdefault(text, len(at)) for text in (true, false)] for _, _, true, false in told])
    column = TextColumn(_Sentences(list(at), np.arange(len(at)), np.arange(len(at) + 1)), tokenize)
    return CaptionChoices(
        [kind for _, kind, _, _ in told], np.array([row for row, _, _, _ in told]), pair, encode(column)
    )


def measure(
    asked: CaptionChoices, group: Array, score: Callable[[Tensor], Tensor]
) -> tuple[dict[str, float], dict[str, Any]]:
    """Accuracies of one score, 0..1; ties and NaN are wrong.

    group    [rows] int64 of the split; row r is item r of the pictures
    score    pairs [M, 2] (item of the pictures, text of the choices) -> [M], higher = better match
    Returns  metrics ``choice_KIND_accuracy``, with ``choice_KIND_text_only_accuracy`` (mean score over 16 pictures of other groups, a fixed
             draw) and ``choice_KIND_shuffled_accuracy`` (one of these), and ``choice_..`` = mean over kinds;
             items ``choice_KIND`` -> 0 or 1 of each choice, ``choice_KIND_row`` -> its picture
    """
    kinds = np.array(asked.kind)
    right = {"": _right(asked, asked.row[:, None], score)}
    if len(np.unique(group)) > 1:
        others = of_other_groups(group, np.repeat(group[asked.row][:, None], OTHERS, 1))
        right |= {"_text_only": _right(asked, others, score), "_shuffled": _right(asked, others[:, :1], score)}
    metrics: dict[str, float] = {}
    names = sorted(set(asked.kind))
    for kind in names:
        metrics |= {
            f"{PREFIX}_{kind}{how}_accuracy": float(outcome[kinds == kind].mean()) for how, outcome in right.items()
        }
    metrics |= {
        f"{PREFIX}{how}_accuracy": float(np.mean([metrics[f"{PREFIX}_{kind}{how}_accuracy"] for kind in names]))
        for how in right
    }
    items: dict[str, Any] = {}
    for kind in names:
        items[f"{PREFIX}_{kind}"] = right[""][kinds == kind].astype(int).tolist()
        items[f"{PREFIX}_{kind}_row"] = asked.row[kinds == kind].tolist()
    return metrics, items


def _right(asked: CaptionChoices, pictures: Array, score: Callable[[Tensor], Tensor]) -> Array:
    """[n] whether the mean score over some pictures [n, k] is higher for the true text."""
    true, false = (
        score(torch.from_numpy(np.stack([pictures, np.broadcast_to(text[:, None], pictures.shape)], -1).reshape(-1, 2)))
        .reshape(pictures.shape)
        .mean(1)
        for text in asked.pair.T
    )
    return choice_accuracy(true, false)
