"""Two images and two captions that have to be matched (Winoground, arXiv:2204.03162).

The text score counts an example when both images choose their own caption, the image score when both captions choose
their own image, and the group score when both hold. By chance these are 1/4, 1/4 and 1/6.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ccaco_cli.core.data.shards import Split
from ccaco_cli.core.evaluation.choice_metrics import choice_accuracy
from ccaco_cli.core.scoring.caption_choice import BLIND_IMAGES, PREFIX
from ccaco_cli.core.scoring.pair_sampling import draw_from_other_groups

Array = NDArray[Any]


@dataclass(frozen=True)
class PairedExamples:
    """The examples of a split.

    Attributes:
        row: [n] int64, row of the first image of each example.
        images, texts: [n, 2] int64, the items of both modalities; image and text in one column are a true pair.
        example_of_image: [items of a] int64, the example that each image belongs to; -1 = none.
    """

    row: Array
    images: Array
    texts: Array
    example_of_image: Array


def read_examples(split: Split, row_a: Array, row_b: Array) -> PairedExamples | None:
    """Reads the examples of a split (``Split.meta["example"]`` is the same for two rows); None when it has none.

    An example with an image that was rejected is left out.

    Args:
        row_a, row_b: [items] int64, the row of each item.
    """
    if not len(split) or "example" not in split.meta(0):
        return None
    rows: dict[str, list[int]] = {}
    for row in range(len(split)):
        rows.setdefault(str(split.meta(row).get("example")), []).append(row)
    complete = np.array([pair for pair in rows.values() if len(pair) == 2], np.int64).reshape(-1, 2)
    if not len(complete):
        return None
    example_of_row = np.full(len(split), -1)
    example_of_row[complete] = np.arange(len(complete))[:, None]
    # the first item of each row; rows are in order
    images, texts = (np.searchsorted(item_rows, complete) for item_rows in (row_a, row_b))
    return PairedExamples(complete[:, 0], images, texts, example_of_row[row_a])


def score_examples(
    examples: PairedExamples, score: Callable[[Tensor], Tensor]
) -> tuple[dict[str, float], dict[str, Any]]:
    """Text, image and group score, 0..1; a tie or a NaN is wrong.

    Args:
        score: index pairs [M, 2] (image, text) -> [M], higher = better match.
    Returns:
        Metrics ``choice_winoground_text_accuracy``, ``.._image_accuracy`` and ``.._group_accuracy``, and the blind
        baselines of each: ``.._text_only_accuracy`` (mean score over 16 images of other examples, a fixed draw) and
        ``.._shuffled_accuracy`` (score with one of these). Items ``choice_winoground_text`` ... -> 0 or 1 of each
        example, and their rows.
    """
    images = {"": examples.images[..., None]}
    if len(examples.row) > 1:
        number = np.arange(len(examples.row))[:, None, None]
        excluded = np.broadcast_to(number, (len(number), 2, BLIND_IMAGES))
        drawn = draw_from_other_groups(examples.example_of_image, excluded)
        images |= {"_text_only": drawn, "_shuffled": drawn[..., :1]}
    correct = {condition: _correct(candidates, examples.texts, score) for condition, candidates in images.items()}
    metrics: dict[str, float] = {}
    items: dict[str, Any] = {}
    for kind, outcome in correct[""].items():
        name = f"{PREFIX}_winoground_{kind}"
        metrics |= {f"{name}{condition}_accuracy": float(kinds[kind].mean()) for condition, kinds in correct.items()}
        items |= {name: outcome.astype(int).tolist(), f"{name}_row": examples.row.tolist()}
    return metrics, items


def _correct(images: Array, texts: Array, score: Callable[[Tensor], Tensor]) -> dict[str, Array]:
    """Kind -> [n] 1.0 where an example is right.

    Args:
        images: [n, 2, k] items; the score of an image is its mean over the k.
        texts: [n, 2] items.
    """
    shape = (*images.shape[:2], 2, images.shape[2])
    index = np.stack(np.broadcast_arrays(images[:, :, None, :], texts[:, None, :, None]), -1)
    scores = score(torch.from_numpy(index.reshape(-1, 2).astype(np.int64))).reshape(shape).mean(-1).numpy()
    own_first, own_second = scores[:, 0, 0], scores[:, 1, 1]
    text = choice_accuracy(own_first, scores[:, 0, 1]) * choice_accuracy(own_second, scores[:, 1, 0])
    image = choice_accuracy(own_first, scores[:, 1, 0]) * choice_accuracy(own_second, scores[:, 0, 1])
    return {"text": text, "image": image, "group": text * image}
