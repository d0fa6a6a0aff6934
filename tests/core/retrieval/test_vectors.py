from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ccaco_cli.core.errors import ConfigError
from ccaco_cli.core.retrieval import vectors


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


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--index-type annoy; expected auto \| flat \| ivf \| hnsw \| ivfpq"):
        vectors.check("annoy")
