"""``ccaco train``: trains on a prepared data set and writes a run folder with checkpoints, a log and results."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
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
from ccaco_cli.core.experiments.run_folder import RunFolder, TrainOptions
from ccaco_cli.core.manifest import Manifest
from ccaco_cli.core.scoring.score import score
from ccaco_cli.core.types import OnProgress, no_progress


def train(
    request: TrainRequest,
    folder: Path,
    options: TrainOptions = TrainOptions(),
    *,
    data_root: Path = Path("data"),
    on_progress: OnProgress = no_progress,
) -> Manifest:
    """Trains one model and scores its best checkpoint.

    Under a launcher all processes train; then the main process scores and the others end.

    Args:
        folder: the run; must not hold a finished one.
        options: whether to resume, how often to save.
    Returns:
        The manifest of the run: facts {"metrics", "headline", "weight", "fitted", "warnings", "modalities", ...}.
    Raises:
        DataError: the run is finished, or another process is writing it.
        LostProcess: a process of the launcher does not answer.
        Interrupted: the process was asked to end; a checkpoint is saved.
    """
    with distributed.session(request.device, on_progress, request.timeout) as report_progress:
        data = distributed.main_process_first(
            lambda: shards.open(prepared(request.dataset, data_root, report_progress), options.verify)
        )
        data, config = distributed.main_process_first(lambda: _resolve(request, data, folder))
        with distributed.on_main_process(lambda: lock.hold(folder, "run")):
            if distributed.main():
                manifest.sweep(folder)
            runtime.limit_threads(config.workers)
            runtime.seed(config.seed)
            run_folder = RunFolder(folder, config, data, options)
            fitted_model = METHODS[config.method](data, config, run_folder, report_progress)
            with distributed.main_process_continues():
                return _score_and_write(data, config, folder, fitted_model, run_folder.changes)


def _score_and_write(
    data: PairData, config: RunConfig, folder: Path, fitted_model: FittedModel, changes: Sequence[str]
) -> Manifest:
    fitted = fitted_model.fitted
    facts = score(data, fitted_model.encode, fitted_model.aligner, config, folder, fitted_model.oracle)
    facts |= fitted_model.facts
    facts |= {"name": folder.name, "arm": config.arm, "seed": config.seed, "modalities": list(data.modalities)}
    facts |= {
        "fitted": asdict(fitted),
        "warnings": list(fitted.warnings),
        "protocol": data.manifest.facts["protocol"],
    }
    facts |= {"resumed_with": list(changes)} if changes else {}
    files = [manifest.file_entry(folder, file) for file in fitted_model.files]
    device = str(runtime.device(config.device))
    fault.point("train.scored")
    return manifest.write(
        folder, "run", facts=facts, inputs={"dataset": data.manifest}, config=asdict(config), files=files, device=device
    )


def _resolve(request: TrainRequest, data: PairData, folder: Path) -> tuple[PairData, RunConfig]:
    config = request.resolve(data)
    data = across(data, config.domain)
    check(config, data)
    if distributed.main() and manifest.exists(folder):
        raise DataError(
            "this run is finished",
            where=folder,
            expected="a new name",
            next=f"ccaco report {shlex.quote(str(folder))}, or choose another --name",
        )
    return data, config
