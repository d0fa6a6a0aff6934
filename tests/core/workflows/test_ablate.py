from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ccaco_cli.core import manifest
from ccaco_cli.core.errors import ConfigError
from ccaco_cli.core.experiments.grid import AblationRequest
from ccaco_cli.core.experiments.request import TrainRequest
from ccaco_cli.core.reporting.rows import as_dicts
from ccaco_cli.core.workflows.ablate import ablate

ARMS = ["ccaco", "clip"]


def stamps(folder: Path) -> dict[str, int]:
    return {p.parent.name: p.stat().st_mtime_ns for p in folder.glob("*/manifest.json")}


def test_real_cells_are_trained_once(small: dict[str, Any], data_root: Path, tmp_path: Path) -> None:
    request, folder = TrainRequest("scenes", explicit=small | {"optim.steps": 1}), tmp_path / "abl"
    ablation = ablate(AblationRequest(request, ARMS, 1), folder, data_root=data_root)
    assert sorted((row["run"], row["arm"], row["seed"]) for row in as_dicts(ablation.rows)) == [
        ("ccaco-s0", "ccaco", 0),
        ("clip-s0", "clip", 0),
    ]
    assert ablation.failures == {}
    assert manifest.open(folder, kind="ablation").kind == "ablation"
    before = stamps(folder)
    assert ablate(AblationRequest(request, ARMS, 1), folder, data_root=data_root).rows == ablation.rows
    assert stamps(folder) == before, "finished cells are left alone"
    changed = TrainRequest("scenes", explicit=small | {"optim.steps": 2})
    assert [
        row["steps"]
        for row in as_dicts(ablate(AblationRequest(changed, ["clip"], 1), folder, data_root=data_root).rows)
    ] == [2]


def test_cells_at_once_are_those_of_cells_in_turn(small: dict[str, Any], data_root: Path, tmp_path: Path) -> None:
    """Real processes, each with half of the cores."""
    request = TrainRequest("scenes", explicit=small | {"optim.steps": 1})
    sequential, at_once = (
        ablate(AblationRequest(request, ARMS, 1), tmp_path / str(jobs), jobs=jobs, data_root=data_root)
        for jobs in (1, 2)
    )
    assert at_once.failures == {}
    for row, other in zip(as_dicts(sequential.rows), as_dicts(at_once.rows), strict=True):
        assert [other[key] for key in ("run", "arm", "seed", "steps")] == [
            row[key] for key in ("run", "arm", "seed", "steps")
        ]
        assert other["loss_contrastive"] == pytest.approx(row["loss_contrastive"], rel=1e-4)


def test_an_interrupt_stops_every_cell(small: dict[str, Any], data_root: Path, tmp_path: Path) -> None:
    """Workers that nobody waits for would train on for hours."""
    settings = [word for key, value in (small | {"optim.steps": 10**6}).items() for word in ("--set", f"{key}={value}")]
    command = [
        "ablate",
        "--arms",
        ",".join(ARMS),
        "--seeds",
        "1",
        "--jobs",
        "2",
        "--logs",
        str(tmp_path),
        "--name",
        "abl",
        *settings,
    ]
    run = subprocess.Popen(
        [sys.executable, "-m", "ccaco_cli", *command, "--data", str(data_root)],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    logs = [tmp_path / "abl" / f"{arm}-s0" / "metrics.jsonl" for arm in ARMS]
    try:
        while not all(log.exists() for log in logs):
            assert run.poll() is None
            time.sleep(0.1)
        run.send_signal(signal.SIGINT)
        error_output = run.communicate(timeout=60)[1]  # until the last process that could write has ended
    finally:
        run.kill()
    assert run.returncode == 130
    assert "Traceback" not in error_output
    sizes = [log.stat().st_size for log in logs]
    time.sleep(0.5)
    assert [log.stat().st_size for log in logs] == sizes


def test_an_arm_with_the_settings_of_another_is_not_trained_again(
    small: dict[str, Any], data_root: Path, tmp_path: Path
) -> None:
    """By the towers, an arm can be what the base is already; its name still serves as a reference."""
    request = TrainRequest("scenes", explicit=small | {"optim.steps": 1, "model.fusion.share": False})
    ablation = ablate(
        AblationRequest(request, ["ccaco", "-collaboration"], 1, reference="-collaboration"),
        tmp_path / "abl",
        data_root=data_root,
    )
    assert [row["arm"] for row in as_dicts(ablation.table)] == ["ccaco"]
    assert ablation.equal == {"-collaboration": "ccaco"}
    assert not (tmp_path / "abl" / "-collaboration-s0").exists()


def test_a_misspelt_arm_is_refused_before_anything_is_trained(
    small: dict[str, Any], data_root: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="unknown arm: clpi"):
        ablate(
            AblationRequest(TrainRequest("scenes", explicit=small), ["ccaco", "clpi"], 1),
            tmp_path / "abl",
            data_root=data_root,
        )
    assert not (tmp_path / "abl").exists()
