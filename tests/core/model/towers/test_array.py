"""Towers of arrays: shapes, padding, order, normalisation, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ccaco_cli.core.data.loader import pad
from ccaco_cli.core.errors import DataError, TowerError
from ccaco_cli.core.model import towers
from ccaco_cli.core.model.towers.array import REGIONS, farthest_points
from ccaco_cli.core.model.towers.tower import Tower
from ccaco_cli.core.tower_config import TowerConfig

SPECS = ["array:mlp", "array:set", "array:sequence"]


def build(spec: str, **settings: Any) -> Tower:
    """As the probes of ``towers.build`` check it: padding, batch and repetition change nothing."""
    return towers.build(TowerConfig(**({"columns": 4, "rows": 50, "spec": spec} | settings)), "array")


def encoded(tower: Tower, *samples: Any) -> Any:
    tower.module.eval()
    with torch.no_grad():
        return tower.module(pad([tower.preprocess(np.asarray(sample, np.float32)) for sample in samples]))


def cloud(count: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=(count, 4)).astype(np.float32)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("rows", [1, 3, 23, 24, 25, 200])
def test_samples_of_any_length_have_real_tokens(spec: str, rows: int) -> None:
    tower = build(spec)
    features = encoded(tower, cloud(rows), cloud(60, 1))
    assert features.tokens.shape[2] == tower.width and features.mask.any(1).all()
    assert features.tokens.isfinite().all() and features.pooled.isfinite().all()
    alone = encoded(tower, cloud(rows))
    assert torch.allclose(alone.pooled, features.pooled[:1], atol=1e-5)
    expected = {"array:mlp": rows, "array:set": min(rows, REGIONS), "array:sequence": -(-rows // 4)}
    assert int(alone.mask.sum()) == expected[spec]


def test_the_order_of_a_set_changes_nothing_and_that_of_a_sequence_does() -> None:
    points = cloud(40)
    shuffled = points[np.random.default_rng(5).permutation(40)]
    for spec, changes in (("array:set", False), ("array:mlp", False), ("array:sequence", True)):
        tower = build(spec)
        first, second = encoded(tower, points).pooled, encoded(tower, shuffled).pooled
        assert torch.allclose(first, second, atol=1e-5) != changes, spec
    tokens = [encoded(build_seeded("array:set"), values).tokens for values in (points, shuffled)]
    assert torch.allclose(*tokens, atol=1e-5)


def build_seeded(spec: str) -> Tower:
    torch.manual_seed(0)
    return build(spec)


def test_equal_points_are_one_region() -> None:
    features = encoded(build("array:set"), np.ones((9, 4)), cloud(30))
    assert features.mask.sum(1).tolist() == [1, REGIONS]


def test_farthest_points_are_the_corners_and_padding_is_none() -> None:
    corners = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 7.0], [9.0, 7.0], [4.0, 3.0], [100.0, 100.0]])
    mask = torch.tensor([[True] * 5 + [False]])
    chosen = farthest_points(corners[None], mask, 4)[0]
    assert {tuple(point) for point in chosen.tolist()} == {(0, 0), (9, 0), (0, 7), (9, 7)}


@pytest.mark.parametrize("spec", SPECS)
def test_every_weight_gets_a_gradient(spec: str) -> None:
    tower = build(spec)
    features = tower.module(pad([torch.from_numpy(cloud(n, n)) for n in (5, 60, 30)]))
    (features.tokens * torch.randn_like(features.tokens)).sum().backward()
    start_at_zero = ("temporal",)  # its output projections are zero at first, and hide the layers before them
    for name, weight in tower.module.named_parameters():
        if not name.startswith(start_at_zero):
            assert weight.grad is not None and weight.grad.abs().sum() > 0, name


def test_columns_are_normalised_by_the_settings() -> None:
    tower = build("array:mlp", mean=(1.0, 2.0, 3.0, 4.0), std=(1.0, 2.0, 4.0, 8.0))
    rows = np.array([[1, 2, 3, 4], [2, 4, 7, 12]], np.float32)
    assert tower.preprocess(rows).tolist() == [[0, 0, 0, 0], [1, 1, 1, 1]]
    again = towers.build(TowerConfig(spec=tower.save_assets(Path()), columns=4, rows=50), "array")
    assert {k: v.shape for k, v in again.module.state_dict().items()} == {
        k: v.shape for k, v in tower.module.state_dict().items()
    }


def test_tiny_is_chosen_by_the_rows() -> None:
    kinds = {rows: type(build("tiny", rows=rows).module).__name__ for rows in (1, 2, 50)}
    assert kinds == {1: "MlpModule", 2: "SetModule", 50: "SetModule"}
    assert build("tiny", rows=1).tokens == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"spec": "array:mpl"}, "unknown array tower.*array:mlp"),
        ({"spec": "tiny:vit"}, "unknown array tower"),
        ({"spec": "array:set@laion"}, "unknown array tower"),
        ({"spec": "array"}, "unknown array tower"),
        ({"columns": 0}, r"width of the arrays is not known.*model\.array\.columns = 0.*--set model\.array\.columns"),
        ({"mean": (1.0, 2.0)}, "mean of 2 columns for arrays of 4"),
        ({"std": (1.0,) * 5}, "std of 5 columns for arrays of 4"),
    ],
)
def test_what_cannot_be_built_is_one_line(settings: Any, message: str) -> None:
    with pytest.raises(TowerError, match=message):
        build(**({"spec": "array:set"} | settings))


def test_arrays_of_another_shape_are_refused() -> None:
    with pytest.raises(DataError, match=r"another shape than this model takes.*\[2, 3\].*\[N, 4\]"):
        build("array:set").preprocess(np.zeros((2, 3), np.float32))
    with pytest.raises(DataError, match=r"another shape.*\[2, 4\].*\[1, 4\]"):
        build("array:mlp", rows=1).preprocess(np.zeros((2, 4), np.float32))
