from __future__ import annotations

import numpy as np
import pytest

from ccaco_cli.core.errors import DataError
from ccaco_cli.core.evaluation.domains import plane, separability


def cloud(n: int, shift: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, 6)) + shift * np.eye(6)[0]


def test_apart_and_together() -> None:
    distant = separability(cloud(80, 0.0, 1), cloud(60, 9.0, 2))
    assert distant == {"domain_accuracy": 1.0, "proxy_a_distance": 2.0}
    same_cloud = separability(cloud(400, 0.0, 1), cloud(400, 0.0, 2))
    assert same_cloud["domain_accuracy"] == pytest.approx(0.5, abs=0.06)
    assert same_cloud["proxy_a_distance"] == pytest.approx(2 * (2 * same_cloud["domain_accuracy"] - 1))


def test_domains_of_unequal_size_weigh_alike() -> None:
    measured = separability(cloud(400, 0.0, 1), cloud(20, 0.0, 2))
    assert measured["domain_accuracy"] < 0.8, "to say 'source' every time is no knowledge"


def test_what_cannot_be_compared() -> None:
    cloud_with_nan = cloud(9, 0.0, 1)
    cloud_with_nan[3, 2] = np.nan
    for source, target in ((cloud(3, 0, 1), cloud(9, 0, 2)), (cloud_with_nan, cloud(9, 0, 2))):
        with pytest.raises(DataError, match="cannot be compared"):
            separability(source, target)


def test_the_plane_is_that_of_largest_variance() -> None:
    z = np.random.default_rng(0).normal(size=(50, 5)) * [1, 9, 1, 30, 1]
    points = plane(z)
    assert points.shape == (50, 2)
    assert abs(np.corrcoef(points[:, 0], z[:, 3])[0, 1]) > 0.99
    assert abs(np.corrcoef(points[:, 1], z[:, 1])[0, 1]) > 0.97
    assert np.allclose(plane(z), points)
