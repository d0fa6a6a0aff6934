"""Further training of a finished run: the run NAME stays as it is, and NAME-stage2, NAME-stage3 ... continue it.

Each stage is a complete run folder. It starts from the last checkpoint of the stage before it: weights, optimiser state
and position. Its learning rate follows the same rule over the added steps: a new warm-up, then a cosine to zero.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ccaco_cli.core import manifest
from ccaco_cli.core.config import RunConfig
from ccaco_cli.core.config_io import flatten
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.manifest import Manifest
from ccaco_cli.core.shell import quoted_path
from ccaco_cli.core.training import checkpoint, health_checks
from ccaco_cli.core.training.loop import TrainingSummary
from ccaco_cli.core.training.state import StageStart

LENGTH_KEYS = ("optim.epochs", "optim.steps")
"""Settings in which a stage differs from the stage before it: the length of the training, counted from the first."""
SCHEDULE = "a new warm-up and cosine over the added steps; loss weights stay at the end of their ramps"
"""The rule of a further stage, as the manifest and the log say it."""
FIRST_SCHEDULE = "warm-up and cosine over all steps"


@dataclass(frozen=True)
class Stage:
    """One further stage of a finished run.

    Attributes:
        number: from 2.
        folder: of the new stage.
        previous: manifest of the finished stage before it.
        start: the step and the epoch of its last checkpoint.
    """

    number: int
    folder: Path
    previous: Manifest
    start: StageStart

    def copy_checkpoints(self) -> None:
        """Gives the new folder the checkpoints and the log of the stage before it.

        Files are hard-linked where the file system can; they are only ever replaced, never changed in place.
        """
        source = self.previous.path
        shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)  # of a process that was killed while copying
        shutil.copytree(source / "checkpoints", self.folder / "checkpoints", copy_function=_link_or_copy)
        shutil.copyfile(source / "metrics.jsonl", self.folder / "metrics.jsonl")  # training appends to it

    def entries(self, config: RunConfig, fitted: TrainingSummary) -> list[dict[str, Any]]:
        """The list ``stages`` of the manifest: those before this one, and this one."""
        facts = self.previous.facts
        first = {
            "name": facts["name"],
            "run": self.previous.sha256,
            "epochs": self.start.epoch,
            "steps": self.start.step,
            "schedule": FIRST_SCHEDULE,
        }
        added = {
            "name": self.folder.name,
            "from_epoch": self.start.epoch,
            "from_step": self.start.step,
            "epochs": fitted.epochs - self.start.epoch,
            "steps": fitted.steps - self.start.step,
            "schedule": f"{SCHEDULE}; lr {config.optim.lr:g}",
        }
        return [*facts.get("stages", [first]), added]


def folder_to_train(folder: Path, resume: bool) -> Path:
    """The folder that ``train`` writes: the run, or the first stage after it that is not finished."""
    number = 2
    current = folder
    while resume and manifest.exists(current):
        current = stage_folder(folder, number)
        number += 1
    return current


def stage_folder(folder: Path, number: int) -> Path:
    """The folder of stage ``number`` (from 2), beside the first stage."""
    return folder.with_name(f"{folder.name}-stage{number}")


def next_stage(folder: Path, config: RunConfig) -> Stage:
    """The stage that continues a finished run, or its last finished stage.

    Raises:
        DataError: the run cannot be continued, or not for longer than it has been trained; the message says why.
        ManifestError: the finished stage is damaged.
    """
    number = 2
    finished = folder
    while manifest.exists(stage_folder(folder, number)):
        finished = stage_folder(folder, number)
        number += 1
    previous = manifest.open(finished, kind="run", verify=manifest.FULL)
    _refuse_unfit(previous, config)
    last = checkpoint.latest(finished / "checkpoints")
    if last is None:
        raise DataError(
            "this run has no checkpoint to continue from",
            where=finished / "checkpoints",
            expected="the folder as ccaco train left it",
            next="train anew under another --name",
        )
    step, epoch = map(int, last.name.split("-"))
    return Stage(number, stage_folder(folder, number), previous, StageStart(step, epoch))


def finished_error(folder: Path, run: Manifest, length: str = "") -> DataError:
    """The refusal to train a finished run again, with the flag that trains it further."""
    flag = length or ("--set optim.steps=MORE" if run.config["optim"]["steps"] else "--epochs MORE")
    return DataError(
        f"this run is finished ({_length(run)})",
        where=folder,
        expected="a new name, or more epochs",
        next=f"ccaco report {quoted_path(folder)}, or add --resume latest {flag}, or choose another --name",
    )


def _length(run: Manifest) -> str:
    steps, epochs = int(run.config["optim"]["steps"]), int(run.config["optim"]["epochs"])
    return f"{steps:,} steps" if steps else f"{epochs:,} epochs"


def _refuse_unfit(run: Manifest, config: RunConfig) -> None:
    """Raises DataError: no method of steps, an end by a number that is not finite, or no added steps."""
    if run.config["method"] in ("cca", "zero-shot"):
        raise DataError(
            "this run took no training steps, so there is nothing to add",
            where=run.path,
            expected="a run that was trained by gradient descent",
            next="choose another --name",
        )
    if health_checks.is_fatal(run.facts["warnings"]):
        raise DataError(
            "this run ended because a loss or gradient was not finite, so it cannot be trained further",
            where=run.path,
            expected="a run that ended after its last step",
            next="train anew under another --name with a lower --lr",
        )
    before, now = run.config["optim"], config.optim
    done = int(run.facts["fitted"]["steps"])
    added = now.steps > done if now.steps else not before["steps"] and now.epochs > before["epochs"]
    if not added:
        flag = f"--set optim.steps={2 * done}" if now.steps or before["steps"] else f"--epochs {before['epochs'] * 2}"
        raise finished_error(run.path, run, flag)


def changes_since(run: Manifest, config: RunConfig, may_differ: tuple[str, ...]) -> list[str]:
    """The settings that differ from those of a finished run, besides its length, as sentences."""
    before = flatten(run.config)
    now = {k: list(v) if isinstance(v, tuple) else v for k, v in flatten(asdict(config)).items()}
    ignored = {*may_differ, *LENGTH_KEYS}
    keys = [key for key in {**before, **now} if key not in ignored and before.get(key) != now.get(key)]
    return [f"{key} was {before.get(key, 'not set')}, is {now.get(key, 'not set')}" for key in keys]


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
