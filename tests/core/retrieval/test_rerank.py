from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ccaco_cli.core.retrieval.rerank import Scorer, score_kind


@pytest.mark.parametrize("make", [np.array, torch.tensor, float])
def test_the_score_is_that_of_the_formula(make: object) -> None:
    cosine, match = (make(0.5), make(3.0)) if make is float else (make([0.5, -1.0]), make([3.0, 4.0]))  # type: ignore[operator]
    values = {kind: Scorer.of(kind, 10.0, 2.0)(cosine, match) for kind in ("cosine", "two-stage", "cross")}
    first = {kind: float(value if make is float else value[0]) for kind, value in values.items()}
    assert first == {"cosine": 0.5, "two-stage": 11.0, "cross": 3.0}


def test_without_weight_the_match_logit_is_not_read() -> None:
    for scorer in (Scorer.of("two-stage", 10.0, 0.0), Scorer.of("cosine", 10.0, 2.0)):
        assert scorer == Scorer("cosine")
        assert scorer(0.5) == scorer(0.5, math.nan) == 0.5
    assert Scorer("two-stage", 10.0, 0.0)(0.5, math.nan) == 5.0


def test_the_kind_follows_from_what_was_trained_and_the_weight() -> None:
    assert score_kind(1.0, 0.3, 0.5) == "two-stage"
    assert score_kind(1.0, 0.3, 0.0) == "cosine"
    assert score_kind(0.0, 0.3, 0.0) == "cross"
    assert score_kind(0.0, 0.0, 0.0) == "classes"
