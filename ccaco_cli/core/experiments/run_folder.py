"""A folder as the place of one run: what the run was started with, and what a resumed one may have changed since."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from ccaco_cli.core import config as configs
from ccaco_cli.core import distributed, fault, manifest, runtime
from ccaco_cli.core.config import RunConfig
from ccaco_cli.core.data.shards import PairData
from ccaco_cli.core.errors import ConfigError, DataError, ManifestError
from ccaco_cli.core.manifest import Manifest
from ccaco_cli.core.model import aligner as aligners
from ccaco_cli.core.model import weights
from ccaco_cli.core.model.aligner import Aligner

STARTED = "started.json"
"""In a run's folder: the data set and the number of processes that it was begun with."""
MAY_DIFFER = ("workers", "parallel.timeout")
"""Settings that a resumed run may have changed: they say how fast it goes and not where to."""


class RunFolder:
    """Makes a folder the place of a run: writes down what it was started with, or holds a resumed run to it.

    differing  what changed since the first start, as sentences; filled when the changes were accepted
    """

    def __init__(self, folder: Path, config: RunConfig, data: PairData, resume: bool, accept: bool):
        self.folder, self.config, self.resume, self.accept = folder, config, resume, accept
        self.started = {"dataset": data.manifest.sha256, "processes": distributed.world()}
        self.differing: list[str] = []

    def __call__(self) -> None:
        """Raises DataError: an interrupted run lies here and was not to be resumed; ConfigError: what was changed since, by name."""
        file, note = self.folder / "config.toml", self.folder / STARTED
        if not file.exists():
            manifest.write_json(note, self.started)
            fault.point("train.claimed")
            manifest.write_bytes(file, configs.to_toml(self.config).encode())
            return
        if not self.resume:
            raise DataError(
                "an interrupted run lies here",
                where=self.folder,
                expected="--resume latest, or a new --name",
                next=f"add --resume latest, or rm -r {self.folder}",
            )
        self.differing = self._differing(file, note)
        if self.differing and not self.accept:
            raise ConfigError(
                f"cannot resume, for this was changed: {'; '.join(self.differing)}",
                where=self.folder,
                expected="the flags, data and processes of the first start",
                next="choose another --name, or add --accept-changes",
            )
        if self.differing:
            manifest.write_json(note, self.started)
            manifest.write_bytes(file, configs.to_toml(self.config).encode())

    def _differing(self, file: Path, note: Path) -> list[str]:
        before, now = configs.load(file), configs.flatten(asdict(self.config))
        now = {key: list(value) if isinstance(value, tuple) else value for key, value in now.items()}
        keys = [key for key in {**before, **now} if key not in MAY_DIFFER and before.get(key) != now.get(key)]
        found = [f"{key} was {before.get(key, 'not there')}, is {now.get(key, 'not there')}" for key in keys]
        try:
            started = manifest.read_json(note)
        except (OSError, ValueError):
            return [*found, f"{note.name} is gone, so nobody knows its data set"]
        if started.get("dataset") != self.started["dataset"]:
            found.append(f"the data set was {str(started.get('dataset'))[:12]}, is {str(self.started['dataset'])[:12]}")
        if started.get("processes") != self.started["processes"]:
            what = "the same batches, summed in another order, so equal within float noise"
            found.append(f"processes were {started.get('processes')}, are {self.started['processes']} ({what})")
        return found


def load_run(
    path: Path, device: str = "auto", verify: str = manifest.FULL
) -> tuple[Aligner, dict[str, Any], RunConfig, Manifest]:
    """The best model of a finished run, with its towers (for preprocessing)."""
    found = manifest.open(path, kind="run", verify=verify)
    config = configs.from_dict(found.config)
    if config.method != "gradient":
        raise ManifestError(
            "this run keeps its figures only, no model",
            where=path,
            expected="a trained run",
            next="ccaco train --arm ccaco, or --arm clip",
        )
    first, second = found.facts["modalities"]
    runtime.seed(config.seed)  # a locked tower without published weights is rebuilt as training built it
    aligner, towers = aligners.build(config.model, config.loss, (first, second))
    for modality, fingerprint in found.facts["towers"].items():
        if config.model.tower(modality).lock and towers[modality].fingerprint != fingerprint:
            raise ManifestError(
                "the weights of a locked tower are not those of this run",
                where=config.model.tower(modality).spec,
                expected=fingerprint[:12],
            )
    weights.load_weights(path / "checkpoints/best" / weights.WEIGHTS, aligner)
    return aligner.to(runtime.device(device)).eval(), towers, config, found


def refuse_other_modalities(run: Manifest, data: PairData) -> None:
    """Raises DataError: the data set is not of the modalities that the run aligns."""
    if tuple(run.facts["modalities"]) != data.modalities:
        raise DataError(
            "this run aligns other modalities", where=data.manifest.path, expected=" and ".join(run.facts["modalities"])
        )
