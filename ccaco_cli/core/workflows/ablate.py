"""``ccaco ablate``: arms x grid x seeds, each cell an ordinary run.

Finished cells are skipped, interrupted ones are continued, and failed ones are tried again.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

from ccaco_cli.core import config_io, distributed, fault, lock, manifest, runtime
from ccaco_cli.core.data import shards
from ccaco_cli.core.data.shards import PairData
from ccaco_cli.core.data.split_shares import require_splits
from ccaco_cli.core.errors import CcacoError, Interrupted, ManifestError
from ccaco_cli.core.experiments import ensemble as ensembles
from ccaco_cli.core.experiments.datasets import prepared
from ccaco_cli.core.experiments.grid import AblationPlan, AblationRequest, Cell, config_digest, plan_ablation
from ccaco_cli.core.experiments.run_folder import TrainOptions
from ccaco_cli.core.reporting import comparison, report_tables
from ccaco_cli.core.reporting.rows import ArmRow, RunRow
from ccaco_cli.core.scoring import results
from ccaco_cli.core.types import OnProgress, no_progress
from ccaco_cli.core.workflows.train import train

FAILED = "failed.json"
"""File in the folder of a cell that failed: the error. Such a cell starts from the beginning the next time; one that
was only interrupted is continued.
"""
DATA = "data.sha256"
"""File in the folder of an ablation: the data set on which its unfinished cells were started."""
Device = Mapping[str, str]
"""Environment variables that assign a GPU, or a part of the CPU, to a process."""


@dataclass(frozen=True)
class Ablation:
    """The outcome of an ablation.

    Attributes:
        table: one row per arm, with statistics.
        rows: one row per finished cell.
        failures: name of each failed cell -> its error.
        equal: arms that were left out: name -> the earlier arm that has the same settings with these towers.
    """

    table: Sequence[ArmRow]
    rows: Sequence[RunRow]
    failures: dict[str, str] = field(default_factory=dict)
    equal: dict[str, str] = field(default_factory=dict)


def ablate(
    request: AblationRequest,
    folder: Path,
    *,
    jobs: int = 1,
    data_root: Path = Path("data"),
    on_progress: OnProgress = no_progress,
) -> Ablation:
    """Trains every arm with every seed on the same data and budget; of arms with equal settings only the first.

    Args:
        request: arms, seeds, grid and the settings that all arms share.
        folder: the cells lie at ``folder/LABEL-sSEED``; the manifest of the ablation lists those of the last command.
        jobs: cells trained at once on a CPU, each with its share of the cores. Each GPU trains one cell at a time, and
            so does each process of a launcher.
    Raises:
        ConfigError: as ``plan_ablation``, before anything is trained.
    """
    with distributed.session(request.train.device, on_progress, request.train.timeout) as report_progress:
        return _ablate(request, folder, jobs, data_root, report_progress)


def _ablate(
    request: AblationRequest, folder: Path, jobs: int, data_root: Path, report_progress: OnProgress
) -> Ablation:
    dataset = request.train.dataset
    data = distributed.main_process_first(lambda: shards.open(prepared(dataset, data_root, report_progress)))
    require_splits(data.manifest, data.splits)
    plan = distributed.main_process_first(lambda: plan_ablation(request, data))
    with distributed.on_main_process(lambda: lock.hold(folder, "ablation")):
        unfinished = [cell for cell in plan.cells if not _finished(folder / cell.name, cell, data)]
        if distributed.main():
            manifest.sweep(folder)
        distributed.barrier()  # every process lists the same unfinished cells before the first process clears any
        if unfinished:
            distributed.main_process_only(lambda: _clear_outdated(folder, unfinished, data))
        local_cells = unfinished[distributed.rank() :: distributed.world()]
        finished = [cell for cell in plan.cells if cell not in unfinished]
        clock = _Clock(finished, local_cells, folder, report_progress)
        devices = _devices(plan.cells[0].config.device, jobs)[: len(local_cells)] if distributed.world() == 1 else []
        train_all = _train_in_parallel if len(devices) > 1 else _train_sequentially
        with distributed.single_process():
            failures = dict(train_all(local_cells, folder, data_root, clock, devices))
        fault.point("ablate.trained")
        distributed.barrier(while_alive=True)
        with distributed.main_process_continues():
            return _complete(request, plan, failures, data, folder, report_progress)


def _complete(
    request: AblationRequest,
    plan: AblationPlan,
    failures: dict[str, str],
    data: PairData,
    folder: Path,
    report_progress: OnProgress,
) -> Ablation:
    """Scores ensembles, writes the manifest and makes the tables, when no cell is left to train."""
    cell_names = [cell.name for cell in plan.cells]
    for name in cell_names:  # of other processes
        if name not in failures and not manifest.exists(folder / name):
            failures[name] = _stored_failure(folder / name)
    failures = {name: failures[name] for name in cell_names if name in failures}
    split = "test" if "test" in data.splits else "val"
    trained = [cell for cell in plan.cells if cell.name not in failures]
    ensemble_files = _score_ensembles(request, trained, data, split, folder, report_progress)
    _write_manifest(folder, plan.cells, failures, data, ensemble_files)
    table = comparison.arm_rows(
        results.find_runs([folder]) if trained else [],
        split=split,
        metric=request.metric,
        reference=plan.reference,
        failed=results.failed_cells([folder]),
    )
    paths = [folder / cell.name for cell in trained]
    return Ablation(table, report_tables.run_rows([*paths, *ensemble_files], split=split), failures, plan.equal)


def _score_ensembles(
    request: AblationRequest,
    trained: Sequence[Cell],
    data: PairData,
    split: str,
    folder: Path,
    report_progress: OnProgress,
) -> list[Path]:
    by_seed: dict[str, dict[int, Path]] = {}
    for cell in trained:
        if ensembles.can_ensemble(cell.config):
            by_seed.setdefault(cell.label, {})[cell.seed] = folder / cell.name
    return ensembles.score_all(
        by_seed, request.ensemble, data, split, folder, device=request.train.device, on_progress=report_progress
    )


def _stored_failure(path: Path) -> str:
    """The error of a cell that another process could not train."""
    try:
        return str(manifest.read_json(path / FAILED)["error"])
    except (OSError, ValueError, KeyError, TypeError):
        return "its process ended without an error message; next: the same command"


def _finished(path: Path, cell: Cell, data: PairData) -> bool:
    """True when a finished run of this config and this data set lies there."""
    try:
        run = manifest.open(path, kind="run")
    except ManifestError:
        return False
    same_config = config_digest(run.config) == config_digest(asdict(cell.config))
    return same_config and run.inputs["dataset"]["sha256"] == data.manifest.sha256


def _clear_outdated(folder: Path, unfinished: Sequence[Cell], data: PairData) -> None:
    """Removes cells that cannot be continued: those of another config or data set, and those that failed."""
    (folder / manifest.NAME).unlink(missing_ok=True)  # the ablation is complete only when its last cell is done
    dataset_file = folder / DATA
    same_dataset = dataset_file.is_file() and dataset_file.read_text("utf-8") == data.manifest.sha256
    for cell in unfinished:
        path = folder / cell.name
        config = path / "config.toml"
        interrupted = (
            config.is_file()
            and config.read_text("utf-8") == config_io.to_toml(cell.config)
            and not (path / FAILED).exists()
        )
        if not (same_dataset and interrupted) or manifest.exists(path):
            shutil.rmtree(path, ignore_errors=True)
    manifest.write_bytes(dataset_file, data.manifest.sha256.encode())


def _train_cell(cell: Cell, path: Path, data_root: Path, on_progress: OnProgress = no_progress) -> str:
    """Trains one cell; returns the error message, or "" without an error."""
    try:
        train(cell.request, path, TrainOptions(resume=True), data_root=data_root, on_progress=on_progress)
    except Exception as error:  # an error of one cell, such as a bug in its arm, must not end the other cells
        message = str(error) if isinstance(error, CcacoError) else " ".join(f"{type(error).__name__}: {error}".split())
        manifest.write_json(path / FAILED, {"error": message, "traceback": traceback.format_exc()})
        return message
    return ""


def _train_sequentially(
    cells: Sequence[Cell], folder: Path, data_root: Path, clock: _Clock, _: Sequence[Device]
) -> Iterator[tuple[str, str]]:
    """Yields (name, error) of each cell that failed."""
    for cell in cells:
        error = _train_cell(cell, folder / cell.name, data_root, clock.start(cell))
        clock.stop(cell)
        if error:
            yield cell.name, error


def _train_in_parallel(
    cells: Sequence[Cell], folder: Path, data_root: Path, clock: _Clock, devices: Sequence[Device]
) -> Iterator[tuple[str, str]]:
    """As ``_train_sequentially``, with one worker process per device."""
    context = multiprocessing.get_context("spawn")  # a forked process cannot use CUDA
    free_devices = context.SimpleQueue()
    for device in devices:
        free_devices.put(device)
    pool = ProcessPoolExecutor(len(devices), context, initializer=_assign_device, initargs=(free_devices,))
    try:
        futures = {pool.submit(_train_in_worker, cell, folder / cell.name, data_root): cell for cell in cells}
        for future in as_completed(futures):
            cell = futures[future]
            try:
                error = future.result()
            except BrokenProcessPool:
                error = (
                    "a worker process died; next: the same command, with more memory or fewer at once "
                    "(--jobs, CUDA_VISIBLE_DEVICES)"
                )
            clock.stop(cell)
            if error:
                yield cell.name, error
    except BaseException:  # interrupted: the next command continues these cells from their checkpoints
        for worker in multiprocessing.active_children():
            worker.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _train_in_worker(cell: Cell, path: Path, data_root: Path) -> str:
    """``_train_cell`` in a worker. An interrupted worker ends at once; otherwise its pool would give it the next
    cell.
    """
    try:
        return _train_cell(cell, path, data_root)
    except Interrupted as end:  # the checkpoint is written
        os._exit(end.code)


def _assign_device(free_devices: Any) -> None:
    runtime.end_with_parent()
    os.environ.update(free_devices.get())


def _devices(device: str, jobs: int) -> list[Device]:
    """Where cells can be trained at once: on every visible GPU, or on ``jobs`` parts of the CPU."""
    import torch

    if device == "auto" and torch.cuda.is_available():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
        return [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in gpus]
    return [{runtime.THREADS_VARIABLE: str(max(1, runtime.cpu_cores() // jobs))}] * jobs


def _write_manifest(
    folder: Path, cells: Sequence[Cell], failures: Mapping[str, str], data: PairData, ensemble_files: Sequence[Path]
) -> None:
    entries = []
    for cell in cells:
        identity = {
            "name": cell.name,
            "label": cell.label,
            "arm": cell.config.arm,
            "seed": cell.seed,
            "config": config_digest(asdict(cell.config)),
        }
        error = failures.get(cell.name)
        outcome = {"error": error} if error else {"run": manifest.open(folder / cell.name, kind="run").sha256}
        entries.append(identity | outcome)
    manifest.write(
        folder,
        "ablation",
        facts={"dataset": data.name, "cells": entries},
        inputs={"dataset": data.manifest},
        files=[manifest.file_entry(folder, file) for file in ensemble_files],
    )


class _Clock:
    """Reports progress with the estimated seconds left over all cells.

    The estimate of a cell is the mean time of finished cells of its arm, else the mean over arms, else the pace of the
    current cell.
    """

    def __init__(
        self, finished: Sequence[Cell], waiting: Sequence[Cell], folder: Path, on_progress: OnProgress
    ) -> None:
        self.total, self.waiting, self.on_progress = len(finished) + len(waiting), list(waiting), on_progress
        self.seconds: dict[str, list[float]] = {}
        """Label -> training time of each of its finished cells."""
        self.start_time = time.monotonic()
        for cell in finished:
            spent = manifest.open(folder / cell.name, kind="run").facts["fitted"]["seconds"]
            self.seconds.setdefault(cell.label, []).append(spent)

    def start(self, cell: Cell) -> OnProgress:
        """Starts the clock of a cell; returns the progress callback of its training."""
        self.start_time = time.monotonic()
        number = self.total - len(self.waiting) + 1

        def report_progress(done: int, total: int | None, facts: Mapping[str, Any]) -> None:
            # only the training itself comes without "what"; earlier phases say nothing about its pace
            fraction = done / total if total and "what" not in facts else 0.0
            position = {"cell": f"{cell.name} ({number} of {self.total})"}
            self.on_progress(done, total, {**facts, **position, **self._time_left(cell, fraction)})

        return report_progress

    def stop(self, cell: Cell) -> None:
        """Stops the clock of a finished cell and reports progress."""
        now = time.monotonic()
        self.seconds.setdefault(cell.label, []).append(now - self.start_time)
        self.start_time = now
        self.waiting.remove(cell)
        facts = {"what": "cells", **self._time_left(None, 0.0)}
        self.on_progress(self.total - len(self.waiting), self.total, facts)

    def _time_left(self, current: Cell | None, fraction: float) -> dict[str, float]:
        """``left``: estimated seconds until all cells are done; nothing where no estimate is possible."""
        spent = time.monotonic() - self.start_time
        known = {label: mean(seconds) for label, seconds in self.seconds.items()}
        if current and fraction > 0:
            known.setdefault(current.label, spent / fraction)
        if not known:
            return {}
        average = mean(known.values())
        left = {cell.name: known.get(cell.label, average) for cell in self.waiting}
        if current:
            left[current.name] = max(0.0, left[current.name] - spent)
        return {"left": sum(left.values())}
