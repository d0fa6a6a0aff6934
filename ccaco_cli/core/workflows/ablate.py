"""``ccaco ablate``: arms x seeds, each cell an ordinary run; finished cells are skipped, failed ones retried and reported."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ccaco_cli.core import config as configs
from ccaco_cli.core import manifest
from ccaco_cli.core.data import shards
from ccaco_cli.core.errors import CcacoError
from ccaco_cli.core.types import OnProgress, silent
from ccaco_cli.core.workflows import report
from ccaco_cli.core.workflows.prepare import prepared
from ccaco_cli.core.workflows.train import Asked, train


@dataclass(frozen=True)
class Ablation:
    """Rows of all finished cells, and the cells that failed with their errors."""

    rows: list[report.Row]
    failures: dict[str, str] = field(default_factory=dict)


def ablate(
    asked: Asked, arms: Sequence[str], seeds: int, folder: Path, *, data_root: Path = Path("data"), on_progress: OnProgress = silent
) -> Ablation:
    """Trains every arm with every seed on the same data and budget.

    asked   dataset and settings that all arms share
    folder  cells lie at ``folder/ARM-sSEED``
    """
    data = shards.open(prepared(asked.dataset, data_root, on_progress))
    cells = list(_cells(asked, arms, seeds))
    for _, cell in cells:
        cell.resolve(data)  # a misspelt arm or key is told before hours are spent
    failures: dict[str, str] = {}
    for number, (name, cell) in enumerate(cells):
        path = folder / name
        if not _finished(path, cell, data):
            shutil.rmtree(path, ignore_errors=True)
            try:
                train(cell, path, data_root=data_root, on_progress=_within(on_progress, number, len(cells), name))
            except CcacoError as error:
                failures[name] = str(error)
        on_progress(number + 1, len(cells), {"what": "cells"})
    done = [folder / name for name, _ in cells if name not in failures]
    found = Ablation(report.rows(done) if done else [], failures)
    manifest.write_json(folder / "ablation.json", {"dataset": data.name, "cells": [name for name, _ in cells], "failures": failures})
    return found


def _cells(asked: Asked, arms: Sequence[str], seeds: int) -> Iterator[tuple[str, Asked]]:
    for seed in range(seeds):
        for arm in arms:
            explicit = {**(asked.explicit or {}), "seed": seed}
            yield f"{arm}-s{seed}", Asked(asked.dataset, arm, asked.base, explicit)


def _finished(path: Path, cell: Asked, data: Any) -> bool:
    """True when this very config is finished there; a cell of another config is trained anew."""
    config = configs.to_toml(cell.resolve(data))
    return manifest.exists(path) and (path / "config.toml").read_text("utf-8") == config


def _within(tell: OnProgress, number: int, cells: int, name: str) -> OnProgress:
    return lambda done, total, facts: tell(done, total, {**facts, "cell": f"{name} ({number + 1} of {cells})"})
