from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ccaco_cli.core import runtime
from ccaco_cli.core.errors import ConfigError
from ccaco_cli.core.experiments.estimate import estimate
from ccaco_cli.core.experiments.request import TrainRequest
from ccaco_cli.core.model import towers


def test_a_run_that_fits_is_one_row(
    small: dict[str, Any], data_root: Path, ccaco: Callable[..., Any], tmp_path: Path
) -> None:
    done = ccaco(
        *("train", "--estimate", "--format", "json", "--data", data_root, "--logs", tmp_path, "--device", "cpu"),
        *("--set", "model.width=16", "--image-size", 32, "--batch-size", 8),
    )
    assert done.code == 0, done.err
    (row,) = json.loads(done.out)
    assert row["what"] == "as asked" and row["fits"] is True
    assert row["parameters"] > 1e6 and row["GFLOPs"] > 0
    assert runtime.resident_memory() / 2**21 < row["memory_MiB"] < row["available_MiB"]
    assert not list(tmp_path.iterdir()), "nothing is written"


def test_what_does_not_fit_names_the_setting_to_change(
    small: dict[str, Any], data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "available_memory", lambda device: 1 << 20)
    monkeypatch.setattr(runtime, "resident_memory", lambda: 0)
    monkeypatch.setattr(towers, "_refuse_large_samples", lambda *_: None)  # a single sample fits
    settings = small | {"model.image.size": 128}
    first, *others = estimate(TrainRequest("scenes", explicit=settings), data_root=data_root)
    assert first.fits is False
    assert "--batch-size 4" in {row.change for row in others}
    assert all(row.memory_mib < first.memory_mib for row in others)


def test_a_locked_tower_costs_no_activations(small: dict[str, Any], data_root: Path) -> None:
    open_, locked = (
        estimate(
            TrainRequest("scenes", explicit=small | {"model.image.lock": lock, "model.text.lock": lock}),
            data_root=data_root,
        )[0]
        for lock in (False, True)
    )
    assert locked.gflops < 0.5 * open_.gflops
    assert locked.parameters < open_.parameters


def test_a_picture_with_several_captions_is_encoded_once(small: dict[str, Any], data_root: Path) -> None:
    smaller, larger = (
        estimate(TrainRequest("scenes", explicit=small | {"optim.captions": n, "loss.beta": 0.0}), data_root=data_root)[
            0
        ]
        for n in (1, 2)
    )
    assert smaller.gflops < larger.gflops < 1.8 * smaller.gflops


def test_an_arm_without_steps_is_refused(data_root: Path) -> None:
    with pytest.raises(ConfigError, match="only training by gradient descent"):
        estimate(TrainRequest("scenes", arm="handmade"), data_root=data_root)


def test_memory_of_this_machine() -> None:
    import torch

    assert 1 << 24 < runtime.resident_memory() < runtime.available_memory(torch.device("cpu"))
