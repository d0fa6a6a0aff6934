"""The folder of a run: records what the run was started with, checks a resumed run against it, and loads a finished
run.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ccaco_cli.core import config_io, distributed, fault, manifest, runtime
from ccaco_cli.core.config import RunConfig
from ccaco_cli.core.data import shards
from ccaco_cli.core.data.shards import PairData, PreparedData
from ccaco_cli.core.errors import ConfigError, DataError, ManifestError, TowerError
from ccaco_cli.core.experiments import stages
from ccaco_cli.core.experiments.stages import Stage
from ccaco_cli.core.manifest import Manifest
from ccaco_cli.core.model import aligner as aligners
from ccaco_cli.core.model import weights
from ccaco_cli.core.model.aligner import Aligner
from ccaco_cli.core.shell import quoted_path
from ccaco_cli.core.training.checkpoint_saver import CheckpointOptions

STARTED = "started.json"
"""File in the folder of a run: the data set and the number of processes at its start."""
START_RUN = "start"
"""Name of the run that a run started from, in the inputs of its manifest."""
MAY_DIFFER = ("workers", "parallel.timeout")
"""Settings that may change between start and resume, because they affect the speed of a run and not its result."""


@dataclass(frozen=True)
class TrainOptions:
    """How a run is started, resumed and saved; nothing here changes its result.

    Attributes:
        resume: continue an interrupted run from its last checkpoint.
        accept_changes: resume although config, data set or number of processes changed; the changes are recorded.
        saving: how often checkpoints are written; None = after each epoch.
        verify: quick | full: whether every file of the data set is hashed first.
    """

    resume: bool = False
    accept_changes: bool = False
    saving: CheckpointOptions | None = None
    verify: str = manifest.QUICK


class RunFolder:
    """The folder of a run that is being trained.

    Attributes:
        path: the folder.
        options: whether to resume, how often to save.
        stage: None for the first stage of a run.
        changes: what changed since the start of a resumed run, as sentences; filled when the changes were accepted.
    """

    def __init__(
        self, path: Path, config: RunConfig, data: PairData, options: TrainOptions, stage: Stage | None = None
    ):
        self.path, self.config, self.options, self.stage = path, config, options, stage
        self.started = {"dataset": data.manifest.sha256, "processes": distributed.world()}
        self.changes: list[str] = []

    def create_or_resume(self) -> None:
        """Records config and data set of a new run, or checks those of a resumed run.

        Raises:
            DataError: the folder holds an interrupted run, and resuming was not requested.
            ConfigError: config, data set or number of processes changed since the start; the message names the changes.
        """
        config_file, started_file = self.path / "config.toml", self.path / STARTED
        if not config_file.exists():
            self._start_stage()
            manifest.write_json(started_file, self.started)
            fault.point("train.claimed")
            manifest.write_bytes(config_file, config_io.to_toml(self.config).encode())
            return
        if not self.options.resume:
            raise DataError(
                "an interrupted run lies here",
                where=self.path,
                expected="--resume latest, or a new --name",
                next=f"add --resume latest, or rm -r {quoted_path(self.path)}",
            )
        self.changes = self._changes(config_file, started_file)
        self._refuse_changes()
        if self.changes:
            manifest.write_json(started_file, self.started)
            manifest.write_bytes(config_file, config_io.to_toml(self.config).encode())

    @contextmanager
    def removed_when_refused(self) -> Iterator[None]:
        """Removes a folder that this block creates when config, data or tower are refused before the first checkpoint.

        Otherwise the same command with a better value would find an interrupted run.
        """
        existed = self.path.exists()
        try:
            yield
        except (ConfigError, DataError, TowerError):
            trained = any((self.path / "checkpoints").glob("*"))
            if distributed.main() and not existed and not trained:
                shutil.rmtree(self.path, ignore_errors=True)
            raise

    def _refuse_changes(self) -> None:
        if self.changes and not self.options.accept_changes:
            raise ConfigError(
                f"cannot resume, for this was changed: {'; '.join(self.changes)}",
                where=self.path,
                expected="the flags, data and processes of the first start",
                next="choose another --name, or add --accept-changes",
            )

    def _start_stage(self) -> None:
        """Starts a further stage of a finished run from its checkpoints, after the same checks as a resumed run."""
        if self.stage is None:
            return
        previous = self.stage.previous
        self.changes = stages.changes_since(previous, self.config, MAY_DIFFER)
        if (old := previous.inputs["dataset"]["sha256"]) != self.started["dataset"]:
            self.changes.append(f"the data set was {old[:12]}, is {str(self.started['dataset'])[:12]}")
        self._refuse_changes()
        self.stage.copy_checkpoints()
        fault.point("train.stage_copied")

    def _changes(self, config_file: Path, started_file: Path) -> list[str]:
        before, now = config_io.load(config_file), config_io.flatten(asdict(self.config))
        now = {key: list(value) if isinstance(value, tuple) else value for key, value in now.items()}
        keys = [key for key in {**before, **now} if key not in MAY_DIFFER and before.get(key) != now.get(key)]
        changes = [f"{key} was {before.get(key, 'not set')}, is {now.get(key, 'not set')}" for key in keys]
        try:
            started = manifest.read_json(started_file)
        except (OSError, ValueError):
            return [*changes, f"{started_file.name} is missing, so the data set of the first start is unknown"]
        if started.get("dataset") != self.started["dataset"]:
            old, new = str(started.get("dataset"))[:12], str(self.started["dataset"])[:12]
            changes.append(f"the data set was {old}, is {new}")
        if started.get("processes") != self.started["processes"]:
            effect = "the same batches, summed in another order, so equal within float noise"
            changes.append(f"processes were {started.get('processes')}, are {self.started['processes']} ({effect})")
        return changes


def load_run(
    path: Path, device: str = "auto", verify: str = manifest.FULL
) -> tuple[Aligner, dict[str, Any], RunConfig, Manifest]:
    """Loads the best model of a finished run.

    Args:
        verify: quick | full: whether every file of the run is hashed first.
    Returns:
        The model in eval mode, its towers (for preprocessing), the config and the manifest of the run.
    Raises:
        ManifestError: no finished run, no stored model, or a locked tower has other weights now.
    """
    run = manifest.open(path, kind="run", verify=verify)
    config = config_io.from_dict(run.config)
    if config.method != "gradient" or not run.files:
        raise ManifestError(
            "this run stores its metrics only, no model",
            where=path,
            expected="a run that trained an aligner",
            next=run.facts.get("stored_by", "ccaco train --arm ccaco, or --arm clip"),
        )
    first, second = run.facts["modalities"]
    runtime.seed(config.seed)  # a locked tower without published weights is rebuilt as training built it
    aligner, towers = aligners.build(config.model, config.loss, (first, second))
    aligner.stores_locked_towers = START_RUN in run.inputs
    for modality, fingerprint in run.facts["towers"].items():
        if aligner.stores_locked_towers:
            towers[modality] = replace(towers[modality], fingerprint=fingerprint)
        elif config.model.tower(modality).lock and towers[modality].fingerprint != fingerprint:
            raise ManifestError(
                "the weights of a locked tower are not those of this run",
                where=config.model.tower(modality).spec,
                expected=fingerprint[:12],
            )
    weights.load_weights(path / "checkpoints/best" / weights.WEIGHTS, aligner)
    return aligner.to(runtime.device(device)).eval(), towers, config, run


def dataset_of_run(run: Manifest) -> PairData:
    """Opens the data set that a run was trained on.

    Raises:
        DataError: it is not where it was.
        ManifestError: it was prepared again since.
    """
    source = run.inputs["dataset"]
    return open_unchanged(source["path"], source["sha256"])


def open_unchanged(folder: str, sha256: str) -> PairData:
    """Opens the data set that a run was trained or scored on; raises what ``dataset_of_run`` raises."""
    if not manifest.exists(Path(folder)):
        raise DataError(
            "the data set of this run is not where it was",
            where=folder,
            next="run this from the folder of the training",
        )
    data = shards.open(Path(folder))
    if data.manifest.sha256 != sha256:
        raise ManifestError(
            "the data set of this run was prepared anew",
            where=folder,
            expected=f"sha256 {sha256[:12]}",
        )
    return data


def refuse_other_modalities(run: Manifest, data: PreparedData, sides: Sequence[str] = ()) -> None:
    """Raises DataError when the data set has other modalities than the run; one of its two is enough.

    Args:
        sides: where all that a model encodes will do, and not only its pair: ``sides_of`` the run.
    """
    modalities = tuple(run.facts["modalities"])
    fits = set(data.modalities) <= {*sides} or modalities == data.modalities
    if not fits and (len(data.modalities) > 1 or data.modalities[0] not in modalities):
        raise DataError(
            f"the model aligns other modalities: {' and '.join(modalities)}",
            where=data.manifest.path,
            expected=f"a model of {' and '.join(data.modalities)}, or another data set",
        )
