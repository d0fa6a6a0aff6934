"""Winoground's scores by hand, and blind baselines."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ccaco_cli.core.scoring.paired_examples import PairedExamples, score_examples

EXAMPLES = 5


@pytest.fixture
def examples() -> PairedExamples:
    """Images and texts 2i and 2i + 1 belong to example i; one image more belongs to none."""
    items = np.arange(2 * EXAMPLES).reshape(-1, 2)
    return PairedExamples(items[:, 0], items, items, np.append(np.repeat(np.arange(EXAMPLES), 2), -1))


def _by(table: Any) -> Any:
    return lambda index: torch.as_tensor(table, dtype=torch.float64)[index[:, 0], index[:, 1]]


def test_scores_by_hand(examples: PairedExamples) -> None:
    # one 2 x 2 table for each example: rows are images, columns are captions
    tables = [
        ([[2, 1], [1, 2]], (1, 1, 1)),
        ([[5, 4], [8, 9]], (1, 0, 0)),  # caption 0 prefers image 1
        ([[5, 8], [4, 9]], (0, 1, 0)),  # image 0 prefers caption 1
        ([[1, 1], [1, 1]], (0, 0, 0)),  # ties
        ([[2, 1], [float("nan"), 2]], (0, 0, 0)),
    ]
    table = np.zeros((2 * EXAMPLES + 1, 2 * EXAMPLES))
    for number, (scores, _) in enumerate(tables):
        table[2 * number : 2 * number + 2, 2 * number : 2 * number + 2] = scores
    metrics, items = score_examples(examples, _by(table))
    for column, kind in enumerate(("text", "image", "group")):
        expected = [outcome[column] for _, outcome in tables]
        assert items[f"choice_winoground_{kind}"] == expected
        assert metrics[f"choice_winoground_{kind}_accuracy"] == pytest.approx(sum(expected) / EXAMPLES)
        assert items[f"choice_winoground_{kind}_row"] == [0, 2, 4, 6, 8]


def test_a_model_that_ignores_the_image_scores_nothing(examples: PairedExamples) -> None:
    table = np.tile(np.arange(2.0 * EXAMPLES), (2 * EXAMPLES + 1, 1))
    metrics, _ = score_examples(examples, _by(table))
    assert len(metrics) == 9 and set(metrics.values()) == {0.0}


def test_blind_baselines_use_images_of_other_examples(examples: PairedExamples) -> None:
    used = []

    def score(index: Tensor) -> Tensor:
        used.append(index.numpy())
        return torch.zeros(len(index))

    score_examples(examples, score)
    with_image, text_only, shuffled = used
    assert (with_image[:, 0] // 2 == with_image[:, 1] // 2).all()
    assert len(text_only) == 16 * len(with_image) and len(shuffled) == len(with_image)
    for index in (text_only, shuffled):
        assert (examples.example_of_image[index[:, 0]] != index[:, 1] // 2).all()


def test_chance(examples: PairedExamples) -> None:
    rng, total = np.random.default_rng(0), np.zeros(3)
    for _ in range(400):
        metrics, _ = score_examples(examples, _by(rng.random((2 * EXAMPLES + 1, 2 * EXAMPLES))))
        total += [metrics[f"choice_winoground_{kind}_accuracy"] for kind in ("text", "image", "group")]
    assert total / 400 == pytest.approx([1 / 4, 1 / 4, 1 / 6], abs=0.03)
