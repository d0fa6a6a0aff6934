from __future__ import annotations

import numpy as np
import pytest

from ccaco_cli.core import ragged

VALUES, OFFSETS = np.arange(12.0).reshape(6, 2), np.array([0, 2, 2, 6])


def test_places_are_those_of_the_rows_in_the_order_asked_for() -> None:
    where, mask = ragged.places(OFFSETS, np.array([2, 1, 0]))
    assert where.tolist() == [2, 3, 4, 5, 0, 1]
    assert mask.tolist() == [[True] * 4, [False] * 4, [True, True, False, False]]


@pytest.mark.parametrize(
    ("values", "offsets", "rows", "what"),
    [
        (VALUES, OFFSETS, 4, "other rows"),
        (VALUES[:, 0], OFFSETS, 3, "other rows"),
        (VALUES, OFFSETS.astype(np.float32), 3, "other rows"),
        (VALUES, OFFSETS + 1, 3, "leave the values"),
        (VALUES[:5], OFFSETS, 3, "leave the values"),
        (VALUES, np.array([0, 4, 2, 6]), 3, "leave the values"),
    ],
)
def test_arrays_that_do_not_belong_together_are_refused(values: np.ndarray, offsets: np.ndarray, rows: int, what: str) -> None:
    ragged.check(VALUES, OFFSETS, 3)
    ragged.check(VALUES[:0], np.array([0]), 0)
    with pytest.raises(ValueError, match=what):
        ragged.check(values, offsets, rows)
