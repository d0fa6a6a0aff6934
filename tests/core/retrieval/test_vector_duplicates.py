from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ccaco_cli.core.retrieval import vector_duplicates
from ccaco_cli.core.retrieval.vector_duplicates import csv_text, listed_ids

N = 600


def vectors(count: int = N, width: int = 32) -> Any:
    """Random directions, of which rows 5, 300 and 301 and rows 7 and 20 are near-duplicates."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(count, width))
    for first, second in ((5, 300), (300, 301), (7, 20)):
        z[second] = z[first] + 0.05 * rng.normal(size=width)
    return (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)


def rows_of(groups: Any) -> list[list[int]]:
    return [[row for row, _ in group] for group in groups]


def test_groups_are_those_of_all_pairs() -> None:
    z = vectors()
    groups = vector_duplicates.near_duplicates(z, np.arange(N))
    assert rows_of(groups) == [[5, 300, 301], [7, 20]]
    cosines = z @ z.T - 2 * np.eye(N)
    for group in groups:
        for row, cosine in group:  # type: ignore[misc]
            assert cosine == pytest.approx(cosines[row].max(), abs=1e-6)
            assert cosine >= 0.97
    assert vector_duplicates.near_duplicates(z[10:20], np.arange(10)) == []


def test_new_rows_are_enough_where_the_groups_of_before_are_checked_again() -> None:
    z = vectors()
    assert rows_of(vector_duplicates.near_duplicates(z, np.array([20]))) == [[7, 20]]
    assert rows_of(vector_duplicates.near_duplicates(z, np.array([300]))) == [[5, 300, 301]]
    assert vector_duplicates.near_duplicates(z, np.array([], np.int64)) == []


def test_many_rows_are_compared_by_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    z = vectors(4000)
    exact = vector_duplicates.near_duplicates(z, np.arange(len(z)))
    monkeypatch.setattr(vector_duplicates, "MAX_PRODUCTS", 0)
    monkeypatch.setattr(vector_duplicates, "_LISTS", 16)
    likely = vector_duplicates.near_duplicates(z, np.arange(len(z)))
    assert rows_of(likely) == rows_of(exact)


@pytest.mark.parametrize("products", [0, 10**12])
def test_a_model_that_sees_no_difference_has_no_groups(products: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector_duplicates, "MAX_PRODUCTS", products)
    monkeypatch.setattr(vector_duplicates, "MAX_PAIRS_PER_ROW", 4)
    z = np.ones((1000, 4), np.float32) / 2
    assert "sees no difference" in str(vector_duplicates.near_duplicates(z, np.arange(1000)))
    monkeypatch.setattr(vector_duplicates, "MAX_ROWS", 999)
    assert vector_duplicates.near_duplicates(z, np.arange(1000)) == "more than 999 items"


def test_the_file_names_every_item_of_a_group(tmp_path: Path) -> None:
    text = csv_text([[(0, 1.0), (2, 0.98)]], ["a.jpg", "b.jpg", 'c,"d"\n.jpg'])
    assert text == 'group,id,cosine\n0,a.jpg,1.0000\n0,"c,""d""\n.jpg",0.9800\n'
    (tmp_path / "duplicates.csv").write_text(text)
    assert listed_ids(tmp_path) == {"a.jpg", 'c,"d"\n.jpg'}
    assert listed_ids(tmp_path / "nowhere") is None
