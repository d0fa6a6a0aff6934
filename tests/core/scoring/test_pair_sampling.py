from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ccaco_cli.core.scoring.pair_sampling import matching_pairs, n_way_pairs, twin_pairs

GROUP = np.array([5, 5, 6, 7, 8, 9])
ROW_A = np.arange(6)
ROW_B = np.repeat(ROW_A, 2)


def test_partners_are_of_another_group() -> None:
    true, false = matching_pairs(GROUP, ROW_A, ROW_B)
    assert true[:, 1].tolist() == false[:, 1].tolist() == list(range(12)) and (ROW_A[true[:, 0]] == ROW_B).all()
    assert (GROUP[ROW_A[false[:, 0]]] != GROUP[ROW_B]).all()
    assert len(matching_pairs(np.zeros(6, int), ROW_A, ROW_B)[0]) == 0


@pytest.mark.parametrize("ways", [2, 3, 5])
def test_each_chooses_among_so_many_groups(ways: int) -> None:
    positives, others = n_way_pairs(ways, GROUP, ROW_A, ROW_B)
    assert positives.tolist() == [[i, 2 * i] for i in range(6)]
    for item, row in enumerate(others.view(6, ways - 1, 2)):
        groups = GROUP[ROW_B[row[:, 1].numpy()]]
        assert (row[:, 0] == item).all() and len(set(groups)) == ways - 1 and GROUP[item] not in groups
    drawn = {int(b) for _, b in n_way_pairs(2, np.arange(200), np.arange(200), np.repeat(np.arange(200), 2))[1]}
    assert len(drawn) > 100, "all over the gallery"


def test_no_choice_among_more_than_there_are() -> None:
    for ways in (6, 1):
        assert [len(pairs) for pairs in n_way_pairs(ways, GROUP, ROW_A, ROW_B)] == [0, 0]


def test_twins() -> None:
    split: Any = SimpleNamespace(family=np.array([1, 1, 0, 2, 0, 3]), group=np.array([5, 5, 6, 7, 8, 9]))
    positives, other = twin_pairs(split, ROW_A, ROW_B)
    assert positives.tolist() == [[2, 4], [4, 8]] and other.tolist() == [[2, 8], [4, 4]], (
        "those of one group are no twins to tell apart"
    )
    split.family = np.arange(6)
    assert [len(pairs) for pairs in twin_pairs(split, ROW_A, ROW_B)] == [0, 0]
