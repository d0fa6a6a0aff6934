"""``ccaco train``: from a prepared data set to a run folder with checkpoints, a log and results."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

from ccaco_cli.core import distributed, fault, lock, manifest, runtime
from ccaco_cli.core.config import RunConfig
from ccaco_cli.core.data import shards
from ccaco_cli.core.data.domains import across
from ccaco_cli.core.data.shards import PairData
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.experiments.datasets import prepared
from ccaco_cli.core.experiments.methods import METHODS, FittedModel
from ccaco_cli.core.experiments.request import TrainRequest, check
from ccaco_cli.core.experiments.run_folder import RunFolder
from ccaco_cli.core.manifest import Manifest
from ccaco_cli.core.scoring.score import score
from ccaco_cli.core.training.state import Saving
from ccaco_cli.core.types import OnProgress, no_progress


def train(
    asked: TrainRequest,
    folder: Path,
    *,
    resume: bool = False,
    accept: bool = False,
    saving: Saving | None = None,
    verify: str = manifest.QUICK,
    data_root: Path = Path("data"),
    on_progress: OnProgress = no_progress,
) -> Manifest:
    """Trains one model and scores its best checkpoint. Under a launcher, all processes train; then the first one scores and the others end.

    folder   the run; must not hold a finished one
    resume   continue an interrupted run from its last checkpoint
    accept   although config, data set or number of processes changed since; what differs is kept in the facts
    verify   quick | full: whether every file of the data set is hashed first
    Returns  the run's manifest: facts {"metrics", "headline", "weight", "fitted", "warnings", "modalities", ...}
    Raises   DataError: another process is writing this run, ...; LostProcess; Interrupted: asked to end, and saved
    """
    with distributed.process_group(asked.device, asked.timeout):
        tell = on_progress if distributed.main() else no_progress
        data = distributed.main_process_first(lambda: shards.open(prepared(asked.dataset, data_root, tell), verify))
        data, config = distributed.main_process_first(lambda: _resolve(asked, data, folder))
        with lock.held(folder, "run") if distributed.main() else nullcontext():
            if distributed.main():
                manifest.sweep(folder)
            runtime.threads(config.workers)
            runtime.seed(config.seed)
            claim = RunFolder(folder, config, data, resume, accept)
            fit = METHODS[config.method](data, config, folder, claim, resume, saving, tell)
            if not distributed.main():
                raise distributed.Leaves(0)
            with distributed.single_process():
                return _finish(data, config, folder, fit, claim.differing)


def _finish(data: PairData, config: RunConfig, folder: Path, fit: FittedModel, differing: Sequence[str]) -> Manifest:
    facts = score(data, fit.encode, fit.aligner, config, folder, fit.oracle) | fit.facts
    facts |= {"name": folder.name, "arm": config.arm, "seed": config.seed, "modalities": list(data.modalities)}
    facts |= {
        "fitted": asdict(fit.fitted),
        "warnings": list(fit.fitted.warnings),
        "protocol": data.manifest.facts["protocol"],
    }
    facts |= {"resumed_with": list(differing)} if differing else {}
    files = [manifest.file_entry(folder, file) for file in fit.files]
    device = str(runtime.device(config.device))
    fault.point("train.scored")
    return manifest.write(
        folder, "run", facts=facts, inputs={"dataset": data.manifest}, config=asdict(config), files=files, device=device
    )


def _resolve(asked: TrainRequest, data: PairData, folder: Path) -> tuple[PairData, RunConfig]:
    config = asked.resolve(data)
    data = across(data, config.domain)
    check(config, data)
    if distributed.main() and manifest.exists(folder):
        raise DataError(
            "this run is finished",
            where=folder,
            expected="a new name",
            next=f"ccaco report {folder}, or choose another --name",
        )
    return data, config
