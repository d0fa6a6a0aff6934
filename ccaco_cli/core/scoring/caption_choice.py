"""Caption choice (SugarCrepe, arXiv:2306.14610): an image chooses between its true caption and a hard negative made for
it.

Some choices can be made without the image, because a negative made by rule reads oddly. So each accuracy is stored with
two blind accuracies, which a model that uses the image must exceed (arXiv:2306.14610, section 3), and with that of a
bigram model where the data set has one.
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
from ccaco_cli.core.evaluation.choice_metrics import choice_accuracy
from ccaco_cli.core.scoring.pair_sampling import draw_from_other_groups
from ccaco_cli.core.types import EncodedSamples

Array = NDArray[Any]
BLIND_IMAGES = 16
"""Images of other groups whose mean score is the score of a text without its image."""
PREFIX = "choice"


@dataclass(frozen=True)
class CaptionChoices:
    """The caption choices of a split.

    Attributes:
        kind: [n] what the negative changes: replace_att, swap_obj ...
        row: [n] int64, row of the image.
        pair: [n, 2] int64, index of the true and of the false text.
        texts: the distinct texts, encoded.
        bigram_advantage: [n] float64, by how many nats the true text is likelier under a bigram model of training
            captions; None where the data set does not say.
    """

    kind: list[str]
    row: Array
    pair: Array
    texts: EncodedSamples
    bigram_advantage: Array | None = None


@dataclass(frozen=True)
class _Sentences:
    """Texts, one per row, in the form that ``TextColumn`` takes."""

    captions: list[str]
    caption_row: Array
    caption_start: Array


def encode_choices(
    split: Split, tokenize: Callable[[list[str]], Any], encode: Callable[[TextColumn], EncodedSamples]
) -> CaptionChoices | None:
    """Reads the choices of a split and encodes their texts; None when it has none.

    Each choice of ``Split.meta["choices"]`` is a kind, the true and the false text, and in some data sets the advantage
    of the true text under a bigram model.
    """
    choices = [(row, *choice) for row in range(len(split)) for choice in split.meta(row).get("choices") or ()]
    if not choices:
        return None
    index: dict[str, int] = {}
    pair = np.array([[index.setdefault(text, len(index)) for text in choice[2:4]] for choice in choices])
    column = TextColumn(_Sentences(list(index), np.arange(len(index)), np.arange(len(index) + 1)), tokenize)
    return CaptionChoices(
        kind=[choice[1] for choice in choices],
        row=np.array([choice[0] for choice in choices]),
        pair=pair,
        texts=encode(column),
        bigram_advantage=np.array([choice[4] for choice in choices]) if len(choices[0]) > 4 else None,
    )


def score_choices(
    choices: CaptionChoices, group: Array, score: Callable[[Tensor], Tensor]
) -> tuple[dict[str, float], dict[str, Any]]:
    """Accuracies of one score, 0..1; a tie or a NaN is wrong.

    Args:
        group: [rows] int64 of the split; row r is item r of the images.
        score: index pairs [M, 2] (image, text of the choices) -> [M], higher = better match.
    Returns:
        Metrics ``choice_KIND_accuracy``; ``choice_KIND_text_only_accuracy`` (mean score over 16 images of other groups,
        a fixed draw); ``choice_KIND_shuffled_accuracy`` (score with one of these); ``choice_KIND_bigram_accuracy`` (the
        likelier text); and ``choice_accuracy`` ..., the means over kinds. A kind ``PART/NAME`` also counts in
        ``choice_PART_accuracy``, the mean over kinds of the part.
        Items ``choice_KIND`` -> 0 or 1 of each choice, and ``choice_KIND_row`` -> the row of its image.
    """
    kind_of_choice = np.array(choices.kind)
    correct = {"": _correct(choices, choices.row[:, None], score)}
    if len(np.unique(group)) > 1:
        other_images = draw_from_other_groups(group, np.repeat(group[choices.row][:, None], BLIND_IMAGES, 1))
        correct["_text_only"] = _correct(choices, other_images, score)
        correct["_shuffled"] = _correct(choices, other_images[:, :1], score)
    if choices.bigram_advantage is not None:
        correct["_bigram"] = choice_accuracy(choices.bigram_advantage, np.zeros(len(choices.row)))
    metrics: dict[str, float] = {}
    items: dict[str, Any] = {}
    kinds = sorted(set(choices.kind))
    for kind in kinds:
        selected = kind_of_choice == kind
        for condition, outcome in correct.items():
            metrics[f"{PREFIX}_{kind}{condition}_accuracy"] = float(outcome[selected].mean())
        items[f"{PREFIX}_{kind}"] = correct[""][selected].astype(int).tolist()
        items[f"{PREFIX}_{kind}_row"] = choices.row[selected].tolist()
    means = {PREFIX: kinds}
    for kind in kinds:
        if "/" in kind:
            means.setdefault(f"{PREFIX}_{kind.partition('/')[0]}", []).append(kind)
    for name, members in means.items():
        for condition in correct:
            accuracies = [metrics[f"{PREFIX}_{kind}{condition}_accuracy"] for kind in members]
            metrics[f"{name}{condition}_accuracy"] = float(np.mean(accuracies))
    return metrics, items


def _correct(choices: CaptionChoices, images: Array, score: Callable[[Tensor], Tensor]) -> Array:
    """[n] 1.0 where the mean score over images [n, k] is higher for the true text than for the false one."""
    mean_scores = []
    for text in choices.pair.T:
        pairs = np.stack([images, np.broadcast_to(text[:, None], images.shape)], -1).reshape(-1, 2)
        mean_scores.append(score(torch.from_numpy(pairs)).reshape(images.shape).mean(1))
    return choice_accuracy(*mean_scores)
