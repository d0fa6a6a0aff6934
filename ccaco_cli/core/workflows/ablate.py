"""``ccaco ablate``: arms x grid x seeds, each cell an ordinary run; finished cells are skipped, failed ones retried and reported."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

from ccaco_cli.core import config as configs
from ccaco_cli.core import distributed, fault, lock, manifest, runtime
from ccaco_cli.core.data import shards
from ccaco_cli.core.data.shards import PairData
from ccaco_cli.core.errors import CcacoError, Interrupted, ManifestError
from ccaco_cli.core.experiments import ensemble as ensembles
from ccaco_cli.core.experiments.datasets import prepared
from ccaco_cli.core.experiments.grid import Cell, digest, plan
from ccaco_cli.core.experiments.request import TrainRequest
from ccaco_cli.core.reporting import comparison, report_tables
from ccaco_cli.core.scoring import results
from ccaco_cli.core.scoring.results import Row
from ccaco_cli.core.types import OnProgress, no_progress
from ccaco_cli.core.workflows.train import train

FAILED = "failed.json"
"""In a cell's folder: what went wrong there. A cell that has it starts anew; one that was merely interrupted goes on."""
DATA = "data.sha256"
"""In an ablation's folder: the data set that interrupted cells were begun on."""


Place = Mapping[str, str]
"""Environment variables that hold a process to its part of the machine."""


@dataclass(frozen=True)
class Ablation:
    """What came of it.

    table, rows  one row an arm with its evidence, one row a finished cell
    failures     cells that failed, with their errors
    equal        arms that were left out: name -> the arm before it that has the same settings with these towers
    """

    table: list[Row]
    rows: list[Row]
    failures: dict[str, str] = field(default_factory=dict)
    equal: dict[str, str] = field(default_factory=dict)


def ablate(
    asked: TrainRequest,
    arms: Sequence[str],
    seeds: int,
    folder: Path,
    *,
    grid: Mapping[str, Sequence[Any]] | None = None,
    metric: str = "R-sum",
    reference: str | None = None,
    ensemble: int = 0,
    jobs: int = 1,
    data_root: Path = Path("data"),
    on_progress: OnProgress = no_progress,
) -> Ablation:
    """Trains every arm with every seed on the same data and budget; of arms with equal settings, the first.

    asked      dataset and settings that all arms share
    folder     cells lie at ``folder/LABEL-sSEED``; the ablation's manifest lists those of the last command
    grid       dotted config key -> values; every combination is tried on top of every arm
    metric, reference   of the table, as in ``comparison.arms``
    ensemble   how many seeds of each contrastive-only arm are also scored together, their cosines added (0 = none)
    jobs       cells at once on a CPU, each with its share of the cores; GPUs have one each, and so have the processes of a launcher
    Raises     ConfigError, before anything is trained: an unknown arm, key, metric or reference; arms that differ in step budget,
               evaluation pool or selection rule; an ensemble of more seeds than there are, or of no arm
    """
    with distributed.process_group(asked.device, asked.timeout):
        tell = on_progress if distributed.main() else no_progress
        return _ablate(asked, arms, seeds, folder, grid, metric, reference, ensemble, jobs, data_root, tell)


def _ablate(
    asked: TrainRequest,
    arms: Sequence[str],
    seeds: int,
    folder: Path,
    grid: Mapping[str, Sequence[Any]] | None,
    metric: str,
    reference: str | None,
    ensemble: int,
    jobs: int,
    data_root: Path,
    on_progress: OnProgress,
) -> Ablation:
    data = distributed.main_process_first(lambda: shards.open(prepared(asked.dataset, data_root, on_progress)))
    planned = distributed.main_process_first(
        lambda: plan(asked, arms, seeds, data, grid or {}, metric, reference, ensemble)
    )
    cells = planned.cells
    with lock.held(folder, "ablation") if distributed.main() else nullcontext():
        left = [cell for cell in cells if not _finished(folder / cell.name, cell, data)]
        if distributed.main():
            manifest.sweep(folder)
        distributed.wait()  # all have seen the same cells before the first one clears any
        if left:
            distributed.main_process_only(lambda: _begin(folder, left, data))
        mine = left[distributed.rank() :: distributed.world()]
        clock = _Clock([cell for cell in cells if cell not in left] + mine, mine, folder, on_progress)
        places = _places(cells[0].config.device, jobs)[: len(mine)] if distributed.world() == 1 else []
        train_all = _in_parallel if len(places) > 1 else _in_turn
        with distributed.single_process():
            failures = dict(train_all(mine, folder, data_root, clock, places))
        fault.point("ablate.trained")
        distributed.wait()
        if not distributed.main():
            raise distributed.Leaves(0)
        failures |= {
            cell.name: _failure(folder / cell.name)
            for cell in left
            if cell not in mine and not manifest.exists(folder / cell.name)
        }
        split = "test" if "test" in data.splits else "val"
        whole = [cell for cell in cells if cell.name not in failures]
        by_seed: dict[str, dict[int, Path]] = {}
        for cell in whole:
            if ensembles.adds(cell.config):
                by_seed.setdefault(cell.label, {})[cell.seed] = folder / cell.name
        with distributed.single_process():
            added = ensembles.score_all(
                by_seed, ensemble, data, split, folder, device=asked.device, on_progress=on_progress
            )
        _complete(folder, cells, failures, data, added)
        done = [folder / cell.name for cell in whole]
        runs = results.find([folder]) if done else []
        table = comparison.arms(
            runs, split=split, metric=metric, reference=planned.reference, failed=results.failures([folder])
        )
        told = {cell.name: failures[cell.name] for cell in cells if cell.name in failures}
        return Ablation(table, report_tables.rows([*done, *added], split=split), told, planned.equal)


def _failure(path: Path) -> str:
    """Why a cell of another process is not there."""
    try:
        return str(manifest.read_json(path / FAILED)["error"])
    except (OSError, ValueError, KeyError, TypeError):
        return "its process ended without a word; next: the same command"


def _finished(path: Path, cell: Cell, data: PairData) -> bool:
    """True when this very config is finished there, on this very data."""
    try:
        found = manifest.open(path, kind="run")
    except ManifestError:
        return False
    return (
        digest(found.config) == digest(asdict(cell.config))
        and found.inputs["dataset"]["sha256"] == data.manifest.sha256
    )


def _begin(folder: Path, left: Sequence[Cell], data: PairData) -> None:
    """Clears what cannot be continued: cells of another config or data set, and cells that failed."""
    (folder / manifest.NAME).unlink(missing_ok=True)  # until the last cell is done this is no complete ablation
    note = folder / DATA
    same = note.is_file() and note.read_text("utf-8") == data.manifest.sha256
    for cell in left:
        path = folder / cell.name
        config = path / "config.toml"
        interrupted = (
            config.is_file()
            and config.read_text("utf-8") == configs.to_toml(cell.config)
            and not (path / FAILED).exists()
        )
        if not (same and interrupted) or manifest.exists(path):
            shutil.rmtree(path, ignore_errors=True)
    manifest.write_bytes(note, data.manifest.sha256.encode())


def _train(cell: Cell, path: Path, data_root: Path, on_progress: OnProgress = no_progress) -> str:
    """Trains one cell; returns what went wrong, and "" when nothing did."""
    try:
        train(cell.asked, path, resume=True, data_root=data_root, on_progress=on_progress)
    except Exception as error:  # whatever one cell dies of, a bug of its arm included, must not cost the others
        told = str(error) if isinstance(error, CcacoError) else " ".join(f"{type(error).__name__}: {error}".split())
        manifest.write_json(path / FAILED, {"error": told, "traceback": traceback.format_exc()})
        return told
    return ""


def _in_turn(
    cells: Sequence[Cell], folder: Path, data_root: Path, clock: _Clock, _: Sequence[Place]
) -> Iterator[tuple[str, str]]:
    for cell in cells:
        error = _train(cell, folder / cell.name, data_root, clock.started(cell))
        clock.ended(cell)
        if error:
            yield cell.name, error


def _in_parallel(
    cells: Sequence[Cell], folder: Path, data_root: Path, clock: _Clock, places: Sequence[Place]
) -> Iterator[tuple[str, str]]:
    """One process a place."""
    context = multiprocessing.get_context("spawn")  # a forked process cannot use CUDA
    free = context.SimpleQueue()
    for place in places:
        free.put(place)
    pool = ProcessPoolExecutor(len(places), context, initializer=_take, initargs=(free,))
    try:
        futures = {pool.submit(_work, cell, folder / cell.name, data_root): cell for cell in cells}
        for future in as_completed(futures):
            cell = futures[future]
            try:
                error = future.result()
            except BrokenProcessPool:
                error = "a worker process died; next: the same command, with more memory or fewer at once (--jobs, CUDA_VISIBLE_DEVICES)"
            clock.ended(cell)
            if error:
                yield cell.name, error
    except BaseException:  # interrupted: cells that are being trained go on from their checkpoints the next time
        for worker in multiprocessing.active_children():
            worker.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _work(cell: Cell, path: Path, data_root: Path) -> str:
    """``_train`` in a worker, which ends when it is asked to: its pool would only give it the next cell."""
    try:
        return _train(cell, path, data_root)
    except Interrupted as end:  # and saved
        os._exit(end.code)


def _take(free: Any) -> None:
    runtime.follow_parent()
    os.environ.update(free.get())


def _places(device: str, jobs: int) -> list[Place]:
    """Where cells can be trained at once: on every GPU that is visible, or on parts of the CPU."""
    import torch

    if device == "auto" and torch.cuda.is_available():
        chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = chosen.split(",") if chosen else [str(i) for i in range(torch.cuda.device_count())]
        return [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in gpus]
    return [{runtime.THREADS: str(max(1, runtime.cores() // jobs))}] * jobs


def _complete(
    folder: Path, cells: Sequence[Cell], failures: Mapping[str, str], data: PairData, added: Sequence[Path]
) -> None:
    listed = []
    for cell in cells:
        about = {
            "name": cell.name,
            "label": cell.label,
            "arm": cell.config.arm,
            "seed": cell.seed,
            "config": digest(asdict(cell.config)),
        }
        error = failures.get(cell.name)
        outcome = {"error": error} if error else {"run": manifest.open(folder / cell.name, kind="run").sha256}
        listed.append(about | outcome)
    files = [manifest.file_entry(folder, file) for file in added]
    manifest.write(
        folder,
        "ablation",
        facts={"dataset": data.name, "cells": listed},
        inputs={"dataset": data.manifest},
        files=files,
    )


class _Clock:
    """Tells progress, with the time left over all cells: what cells of the same arm took, else the mean, else the present cell's pace."""

    def __init__(self, cells: Sequence[Cell], left: Sequence[Cell], folder: Path, tell: OnProgress) -> None:
        self.total, self.waiting, self.tell = len(cells), list(left), tell
        self.took: dict[str, list[float]] = {}
        self.begun = time.monotonic()
        for cell in cells:
            if cell not in self.waiting:
                spent = manifest.open(folder / cell.name, kind="run").facts["fitted"]["seconds"]
                self.took.setdefault(cell.label, []).append(spent)

    def started(self, cell: Cell) -> OnProgress:
        """The ``OnProgress`` of one cell."""
        self.begun = time.monotonic()
        number = self.total - len(self.waiting) + 1

        def tell(done: int, total: int | None, facts: Mapping[str, Any]) -> None:
            share = done / total if total and "what" not in facts else 0.0  # only training itself has no name
            self.tell(
                done, total, {**facts, "cell": f"{cell.name} ({number} of {self.total})", **self._left(cell, share)}
            )

        return tell

    def ended(self, cell: Cell) -> None:
        """Tells that a cell is done."""
        now = time.monotonic()
        self.took.setdefault(cell.label, []).append(now - self.begun)
        self.begun = now
        self.waiting.remove(cell)
        self.tell(self.total - len(self.waiting), self.total, {"what": "cells", **self._left(None, 0.0)})

    def _left(self, present: Cell | None, share: float) -> dict[str, float]:
        spent = time.monotonic() - self.begun
        known = {label: mean(seconds) for label, seconds in self.took.items()}
        if present and share > 0:
            known.setdefault(present.label, spent / share)
        if not known:
            return {}
        usual = mean(known.values())
        left = {cell.name: known.get(cell.label, usual) for cell in self.waiting}
        if present:
            left[present.name] = max(0.0, left[present.name] - spent)
        return {"left": sum(left.values())}
