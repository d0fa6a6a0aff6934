from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from ccaco_cli.core import fault, manifest
from ccaco_cli.core.errors import ConfigError, DataError
from ccaco_cli.core.experiments.request import TrainRequest
from ccaco_cli.core.experiments.run_folder import TrainOptions, load_run
from ccaco_cli.core.training import checkpoint
from ccaco_cli.core.workflows.train import train, train_notes

RESUME = TrainOptions(resume=True)


@pytest.fixture
def finished(run: Path, tmp_path: Path) -> Path:
    """A finished run that a test may continue."""
    shutil.copytree(run, tmp_path / "first")
    return tmp_path / "first"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def longer(small: dict[str, Any], **settings: Any) -> TrainRequest:
    length = {"optim.steps": small["optim.steps"] + 4} if "optim.steps" in small else {"optim.epochs": 4}
    return TrainRequest("scenes", explicit=small | length | settings)


def log(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "validation" not in line]


def test_a_finished_run_is_continued_beside_it(finished: Path, small: dict[str, Any], data_root: Path) -> None:
    before = contents(finished)
    run = train(longer(small), finished, RESUME, data_root=data_root)
    assert run.path.name == "first-stage2"
    assert contents(finished) == before, "the first stage stays as it was"
    first, second = run.facts["stages"]
    steps = manifest.open(finished, kind="run").facts["fitted"]["steps"]
    assert (first["name"], first["steps"], first["run"]) == ("first", steps, manifest.open(finished, kind="run").sha256)
    assert (second["name"], second["from_step"]) == ("first-stage2", steps)
    assert second["steps"] == run.facts["fitted"]["steps"] - steps > 0
    assert "a new warm-up and cosine over the added steps" in second["schedule"]
    assert run.inputs["previous_stage"]["sha256"] == first["run"]
    entries = log(run.path)
    assert [entry["step"] for entry in entries] == list(range(1, run.facts["fitted"]["steps"] + 1))
    rates = [entry["lr"] for entry in entries]
    assert max(rates[steps:]) > rates[steps - 1], "the learning rate rises again from the end of the first cosine"
    assert any("first is unchanged; first-stage2 adds" in note for note in train_notes(run))
    load_run(run.path, "cpu")
    third = train(
        longer(small, **{"optim.steps": second["from_step"] + second["steps"] + 2}),
        finished,
        RESUME,
        data_root=data_root,
    )
    assert [stage["name"] for stage in third.facts["stages"]] == ["first", "first-stage2", "first-stage3"]


@pytest.mark.parametrize("point", ["train.stage_copied", "checkpoint.renamed", "train.scored"])
def test_a_killed_stage_leaves_the_finished_run_and_goes_on(
    finished: Path, small: dict[str, Any], data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    before = contents(finished)
    undisturbed = tmp_path / "other" / "first"
    shutil.copytree(finished, undisturbed)
    expected = train(longer(small), undisturbed, RESUME, data_root=data_root)

    def kill(name: str) -> None:
        if name == point:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fault, "point", kill)
        with pytest.raises(KeyboardInterrupt):
            train(longer(small), finished, RESUME, data_root=data_root)
    assert contents(finished) == before
    assert not manifest.exists(finished.with_name("first-stage2"))
    run = train(longer(small), finished, RESUME, data_root=data_root)
    assert run.facts["metrics"] == expected.facts["metrics"]
    assert log(run.path) == log(expected.path)


@pytest.mark.parametrize("case", ["same length", "shorter", "other setting", "diverged", "no checkpoint"])
def test_what_cannot_be_continued_is_refused_and_leaves_nothing(
    finished: Path, small: dict[str, Any], data_root: Path, case: str
) -> None:
    request, error, words = {
        "same length": (TrainRequest("scenes", explicit=small), DataError, "this run is finished.*--resume latest"),
        "shorter": (longer(small, **{"optim.steps": 1}), DataError, "this run is finished.*optim.steps=|--epochs"),
        "other setting": (longer(small, **{"optim.wd": 0.5}), ConfigError, "optim.wd was .*, is 0.5.*--accept-changes"),
        "diverged": (longer(small), DataError, "not finite"),
        "no checkpoint": (longer(small), DataError, "no checkpoint to continue from"),
    }[case]
    if case == "diverged":
        from tests.manifests import edited

        with edited(finished) as body:
            body["facts"]["warnings"] = [{"step": 3, "kind": "not-finite", "what": "a loss"}]
    if case == "no checkpoint":
        last = checkpoint.latest(finished / "checkpoints")
        assert last is not None
        shutil.rmtree(last)
    with pytest.raises(error, match=words):
        train(request, finished, RESUME, data_root=data_root)
    assert not manifest.exists(finished.with_name("first-stage2"))
    assert not (finished.with_name("first-stage2") / "checkpoints").exists()
