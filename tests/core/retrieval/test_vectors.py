from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ccaco_cli.core.errors import ConfigError
from ccaco_cli.core.retrieval import vectors
from ccaco_cli.core.retrieval.filters import Selection


def clustered(rows: int, seed: int, width: int = 16) -> Any:
    """Unit vectors around 40 centres, as embeddings are: on random ones no approximate index can be judged."""
    centres, rng = np.random.default_rng(0).normal(size=(40, width)), np.random.default_rng(seed)
    z = centres[rng.integers(40, size=rows)] + 0.3 * rng.normal(size=(rows, width))
    return (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)


def test_exact_search_equals_sorting_whatever_the_tile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    z, queries = clustered(300, 1), clustered(7, 2)
    built = vectors.write(tmp_path, z, "auto", None)
    assert (built.type, built.recall, built.setting) == ("flat", 1.0, 0)
    wanted = np.sort(queries @ z.T, axis=1)[:, ::-1]
    for scores in (2**24, 7 * 50, 1):
        monkeypatch.setattr(vectors, "_SCORES", scores)
        for k in (1, 10, 300, 1000):
            cosines, rows = vectors.open(tmp_path).search(queries, k)
            assert cosines.shape == rows.shape == (7, min(k, 300))
            assert np.allclose(cosines, wanted[:, :k], atol=1e-6)
            assert np.allclose(np.take_along_axis(queries @ z.T, rows, 1), cosines, atol=1e-6)


def test_equal_vectors_come_in_the_order_of_their_rows(tmp_path: Path) -> None:
    vectors.write(tmp_path, np.tile(clustered(1, 1), (50, 1)), "flat", None)
    assert vectors.open(tmp_path).search(clustered(2, 2), 50)[1].tolist() == [list(range(50))] * 2


@pytest.mark.parametrize("kind", ["ivf", "hnsw", "ivfpq"])
def test_an_approximate_index_is_tuned_until_the_target_holds(tmp_path: Path, kind: str) -> None:
    z, queries = clustered(4000, 1), clustered(200, 2)
    built = vectors.write(tmp_path, z, kind, queries)
    assert built.type == kind
    assert built.recall >= vectors.TARGET
    assert built.setting >= 1
    opened = vectors.open(tmp_path)
    assert isinstance(opened, vectors.Approximate)
    cosines, rows = opened.search(queries, 10)
    exact = np.argsort(-(queries @ z.T), axis=1)[:, :10]
    assert np.mean(
        [len(set(a) & set(b)) / 10 for a, b in zip(rows.tolist(), exact.tolist(), strict=True)]
    ) == pytest.approx(built.recall, abs=0.02)
    assert np.allclose(np.take_along_axis(queries @ z.T, rows, 1), cosines, atol=1e-6), "cosines are exact"
    assert (np.diff(cosines, axis=1) <= 0).all()


def test_a_lower_target_needs_a_smaller_setting_and_the_reported_recall_is_measured(tmp_path: Path) -> None:
    z, queries = clustered(4000, 1), clustered(200, 2)
    low, high = (vectors.write(tmp_path, z, "ivf", queries, target) for target in (0.3, 1.0))
    assert low.setting < high.setting
    assert low.recall < high.recall
    assert high.recall >= 0.999, "every list was probed if nothing less did"


def test_auto_takes_lists_for_many_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "EXACT_BELOW", 1000)
    assert vectors.write(tmp_path, clustered(1000, 1), "auto", None).type == "ivf"


def selection(rows: Any) -> Selection:
    return Selection("", lambda: np.asarray(rows, np.int64))


def brute_force(z: Any, queries: Any, k: int, rows: Any) -> Any:
    """Rows of the k best; equal scores in the order of the rows. The vectors of the tests have exact products."""
    order = np.argsort(-(queries @ z[rows].T), axis=1, kind="stable")[:, :k]
    return np.asarray(rows)[order]


def exact_vectors(rows: int, seed: int) -> Any:
    """Vectors of 16 entries +-0.25, whose products are exact in float32, so that many of them are equal."""
    return np.random.default_rng(seed).choice([-0.25, 0.25], size=(rows, 16)).astype(np.float32)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.05, 0.47, 0.53, 1.0])
@pytest.mark.parametrize("tile", [2**20, 700, 1])
def test_a_selection_is_searched_exactly_ties_included(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float, tile: int
) -> None:
    monkeypatch.setattr(vectors, "_SCORES", tile)
    z, queries = exact_vectors(2000, 1), exact_vectors(5, 2)
    vectors.write(tmp_path, z, "flat", None)
    rows = np.flatnonzero(np.random.default_rng(3).random(2000) < share)
    for k in (1, 7, 300, 5000):
        cosines, answers = vectors.open(tmp_path).search(queries, k, selection(rows))
        wanted = brute_force(z, queries, k, rows)
        assert answers.tolist() == wanted.tolist()
        assert cosines.tolist() == np.take_along_axis(queries @ z.T, wanted, 1).tolist()


@pytest.mark.parametrize("kind", ["ivf", "hnsw", "ivfpq"])
def test_an_approximate_index_searches_few_selected_rows_exactly(tmp_path: Path, kind: str) -> None:
    z, queries = clustered(4000, 1), clustered(20, 2)
    vectors.write(tmp_path, z, kind, queries, 0.3)
    rows = np.arange(5, 4000, 7)
    cosines, answers = vectors.open(tmp_path).search(queries, 10, selection(rows))
    assert answers.tolist() == brute_force(z, queries, 10, rows).tolist()
    assert np.allclose(cosines, np.take_along_axis(queries @ z.T, answers, 1), atol=1e-6)


@pytest.mark.parametrize("kind", ["ivf", "hnsw", "ivfpq"])
@pytest.mark.parametrize("selected", ["half", "few", "a few clusters"])
def test_an_approximate_index_returns_selected_rows_only_with_its_recall(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, selected: str
) -> None:
    monkeypatch.setattr(vectors, "EXACT_SELECTION", 10)
    z, queries = clustered(4000, 1), clustered(100, 2)
    built = vectors.write(tmp_path, z, kind, queries)
    choices = {
        "half": np.arange(0, 4000, 2),
        "few": np.arange(0, 4000, 20),
        "a few clusters": np.flatnonzero(z[:, 0] > np.quantile(z[:, 0], 0.8)),
    }
    rows = choices[selected]
    _, answers = vectors.open(tmp_path).search(queries, 10, selection(rows))
    assert set(answers.ravel().tolist()) <= {-1, *rows.tolist()}
    assert vectors.recall_of(answers, brute_force(z, queries, 10, rows)) >= built.recall - 0.03


def test_vectors_are_read_by_row(tmp_path: Path) -> None:
    z = clustered(200, 1)
    for kind in ("flat", "hnsw"):
        (tmp_path / kind).mkdir()
        vectors.write(tmp_path / kind, z, kind, None)
        assert np.allclose(vectors.open(tmp_path / kind).read(np.array([5, 0, 199])), z[[5, 0, 199]], atol=1e-6)


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--index-type annoy; expected auto \| flat \| ivf \| hnsw \| ivfpq"):
        vectors.check("annoy")
