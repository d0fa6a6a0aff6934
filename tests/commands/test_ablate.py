from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ccaco_cli.core.errors import DataError
from ccaco_cli.core.workflows import ablate as workflow


def test_arms_side_by_side(
    ccaco: Callable[..., Any], data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = [
        "--set",
        "model.width=16",
        "--set",
        "model.image.size=32",
        "--set",
        "optim.steps=1",
        "--batch-size",
        8,
        "--device",
        "cpu",
    ]
    command = [
        "ablate",
        "--arms",
        "ccaco,clip",
        "--seeds",
        1,
        "--name",
        "abl",
        "--logs",
        tmp_path,
        "--data",
        data_root,
        *small,
    ]
    done = ccaco(*command, "--format", "json")
    assert done.code == 0, done.err
    assert {row["arm"] for row in json.loads(done.out)} == {"ccaco", "clip"}
    assert done.err == f"next: ccaco report {tmp_path / 'abl'}\n"

    def fails(*arguments: Any, **more: Any) -> None:
        raise DataError("no luck")

    monkeypatch.setattr(workflow, "train", fails)
    done = ccaco(*command, "--lr", 0.5)
    assert done.code == 1
    assert "failed: ccaco-s0: no luck\nfailed: clip-s0: no luck\n" in done.err
    wrong = ccaco("ablate", "--arms", "clip,nope", "--data", data_root, "--logs", tmp_path, "--name", "y")
    assert (wrong.code, wrong.out, wrong.err.count("\n")) == (2, "", 1)
    assert "unknown arm: nope" in wrong.err
    assert not (tmp_path / "y").exists()
