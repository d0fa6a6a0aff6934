"""``ccaco train``: from a prepared data set to a run folder with checkpoints, a log and results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ccaco_cli.core import config as configs
from ccaco_cli.core import distributed, fault, lock, manifest, runtime
from ccaco_cli.core.config import ParallelConfig, RunConfig
from ccaco_cli.core.data import shards
from ccaco_cli.core.data.domains import across
from ccaco_cli.core.data.shards import PairData
from ccaco_cli.core.errors import ConfigError, DataError, ManifestError
from ccaco_cli.core.evaluation.protocols import by_similarity, evaluate, pools
from ccaco_cli.core.manifest import Manifest
from ccaco_cli.core.model import aligner as aligners
from ccaco_cli.core.model.aligner import Aligner
from ccaco_cli.core.training import checkpoint, loop
from ccaco_cli.core.training.state import Saving
from ccaco_cli.core.types import OnProgress, silent
from ccaco_cli.core.workflows import arms
from ccaco_cli.core.workflows.claim import Claim
from ccaco_cli.core.workflows.fit import FITTERS, Fit
from ccaco_cli.core.workflows.prepare import prepared
from ccaco_cli.core.workflows.score import score


@dataclass(frozen=True)
class Asked:
    """What the user asked for, before it is resolved: file settings (``base``), then flags (``explicit``), then the arm."""

    dataset: str
    arm: str = "ccaco"
    base: Mapping[str, Any] | None = None
    explicit: Mapping[str, Any] | None = None

    @property
    def seed(self) -> int:
        return int((self.explicit or {}).get("seed", (self.base or {}).get("seed", 0)))

    @property
    def device(self) -> str:
        return str(self._setting("device", "auto"))

    @property
    def timeout(self) -> float:
        """Minutes after which another process counts as lost."""
        value = self._setting("parallel.timeout", ParallelConfig.timeout)
        return float(value) if isinstance(value, int | float) and value > 0 else ParallelConfig.timeout

    def _setting(self, key: str, default: Any) -> Any:
        return (self.explicit or {}).get(key, (self.base or {}).get(key, default))

    def resolve(self, data: PairData) -> RunConfig:
        config = configs.build(base=self.base or {}, explicit=self.explicit or {}, modalities=data.modalities)
        return arms.apply(replace(config, dataset=self.dataset), self.arm)


def train(
    asked: Asked,
    folder: Path,
    *,
    resume: bool = False,
    accept: bool = False,
    saving: Saving | None = None,
    verify: str = manifest.QUICK,
    data_root: Path = Path("data"),
    on_progress: OnProgress = silent,
) -> Manifest:
    """Trains one model and scores its best checkpoint. Under a launcher, all processes train; then the first one scores and the others end.

    folder   the run; must not hold a finished one
    resume   continue an interrupted run from its last checkpoint
    accept   although config, data set or number of processes changed since; what differs is kept in the facts
    verify   quick | full: whether every file of the data set is hashed first
    Returns  the run's manifest: facts {"metrics", "headline", "weight", "fitted", "warnings", "modalities", ...}
    Raises   DataError: another process is writing this run, ...; LostProcess; Interrupted: asked to end, and saved
    """
    with distributed.together(asked.device, asked.timeout):
        tell = on_progress if distributed.main() else silent
        data = distributed.in_turn(lambda: shards.open(prepared(asked.dataset, data_root, tell), verify))
        data, config = distributed.in_turn(lambda: _resolve(asked, data, folder))
        with lock.held(folder, "run") if distributed.main() else nullcontext():
            if distributed.main():
                manifest.sweep(folder)
            runtime.threads(config.workers)
            runtime.seed(config.seed)
            claim = Claim(folder, config, data, resume, accept)
            fit = FITTERS[config.method](data, config, folder, claim, resume, saving, tell)
            if not distributed.main():
                raise distributed.Leaves(0)
            with distributed.apart():
                return _finish(data, config, folder, fit, claim.differing)


def _finish(data: PairData, config: RunConfig, folder: Path, fit: Fit, differing: Sequence[str]) -> Manifest:
    facts = score(data, fit.encode, fit.aligner, config, folder, fit.oracle) | fit.facts
    facts |= {"name": folder.name, "arm": config.arm, "seed": config.seed, "modalities": list(data.modalities)}
    facts |= {"fitted": asdict(fit.fitted), "warnings": list(fit.fitted.warnings), "protocol": data.manifest.facts["protocol"]}
    facts |= {"resumed_with": list(differing)} if differing else {}
    files = [manifest.file_entry(folder, file) for file in fit.files]
    device = str(runtime.device(config.device))
    fault.point("train.scored")
    return manifest.write(folder, "run", facts=facts, inputs={"dataset": data.manifest}, config=asdict(config), files=files, device=device)


def load_run(path: Path, device: str = "auto", verify: str = manifest.FULL) -> tuple[Aligner, dict[str, Any], RunConfig, Manifest]:
    """The best model of a finished run, with its towers (for preprocessing)."""
    found = manifest.open(path, kind="run", verify=verify)
    config = configs.from_dict(found.config)
    if config.method != "gradient":
        raise ManifestError(
            "this run keeps its figures only, no model", where=path, expected="a trained run", next="ccaco train --arm ccaco, or --arm clip"
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
    checkpoint.load_weights(path / "checkpoints/best" / checkpoint.WEIGHTS, aligner)
    return aligner.to(runtime.device(device)).eval(), towers, config, found


def refuse_other_modalities(run: Manifest, data: PairData) -> None:
    """Raises DataError: the data set is not of the modalities that the run aligns."""
    if tuple(run.facts["modalities"]) != data.modalities:
        raise DataError("this run aligns other modalities", where=data.manifest.path, expected=" and ".join(run.facts["modalities"]))


def check(config: RunConfig, data: PairData) -> None:
    """Raises ConfigError or DataError for settings that would only fail when the run is over."""
    loop.check(config)
    if config.method not in FITTERS:
        raise ConfigError("no such method", where=f"method = {config.method!r}", expected=" | ".join(FITTERS))
    known = evaluate("full", [0], [0], by_similarity(np.ones((1, 1)), np.ones((1, 1)), [0], [0]), data.modalities).metrics
    if config.eval.select not in known:
        raise ConfigError("no such validation figure", where=f"eval.select = {config.eval.select!r}", expected=" | ".join(known))
    part = data.split("test" if "test" in data.splits else "val")
    pools(
        config.eval.protocol if part.name == "test" else "full",
        *(part.group[part.caption_row] if m == "text" else part.group for m in data.modalities),
    )


def _resolve(asked: Asked, data: PairData, folder: Path) -> tuple[PairData, RunConfig]:
    config = asked.resolve(data)
    data = across(data, config.domain)
    check(config, data)
    if distributed.main() and manifest.exists(folder):
        raise DataError(
            "this run is finished", where=folder, expected="a new name", next=f"ccaco report {folder}, or choose another --name"
        )
    return data, config
