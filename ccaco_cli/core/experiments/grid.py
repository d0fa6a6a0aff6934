"""The cells of an ablation, arms x grid x seeds: resolved, told apart and checked before anything is trained."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ccaco_cli.core import config as configs
from ccaco_cli.core.config import RunConfig
from ccaco_cli.core.data.shards import PairData
from ccaco_cli.core.errors import ConfigError
from ccaco_cli.core.evaluation.protocols import by_similarity, evaluate
from ccaco_cli.core.evaluation.significance import per_query
from ccaco_cli.core.experiments import ensemble as ensembles
from ccaco_cli.core.experiments.arms import SETS
from ccaco_cli.core.experiments.fairness import check_fair
from ccaco_cli.core.experiments.request import TrainRequest
from ccaco_cli.core.scoring import results
from ccaco_cli.core.scoring.score import CLASS_ACCURACY


@dataclass(frozen=True)
class Cell:
    """One run of an ablation.

    label   its arm, with the values of the grid: ``ccaco,beta=0.1``; the row of the table that it belongs to
    config  resolved
    """

    label: str
    seed: int
    asked: TrainRequest
    config: RunConfig

    @property
    def name(self) -> str:
        return f"{self.label}-s{self.seed}"


@dataclass(frozen=True)
class AblationPlan:
    """What an ablation is to train.

    cells      seeds outermost, so that an early end leaves every arm with as many seeds
    equal      arms that are left out: name -> the arm before it that has the same settings with these towers
    reference  the label that the others are held against; None = the table chooses
    """

    cells: list[Cell]
    equal: dict[str, str]
    reference: str | None


def plan(
    asked: TrainRequest,
    arms: Sequence[str],
    seeds: int,
    data: PairData,
    grid: Mapping[str, Sequence[Any]],
    metric: str,
    reference: str | None,
    ensemble: int,
) -> AblationPlan:
    """All that ``ablate`` trains, checked. Raises ConfigError as it says."""
    cells, equal = distinct(every(asked, arms, seeds, data, grid))
    reference = equal.get(reference or "", reference)
    check_fair({cell.label: asdict(cell.config) for cell in cells})
    _check_table(cells, data, metric, reference, ensemble)
    if ensemble and not 2 <= ensemble <= seeds:
        raise ConfigError(
            f"no ensemble of {ensemble}", where=f"{seeds} seeds", expected=f"2 to {seeds}", next="more --seeds"
        )
    if ensemble and not any(ensembles.adds(cell.config) for cell in cells):
        raise ConfigError(
            "no arm to make an ensemble of", where="--arms", expected="one without a cross branch, such as clip"
        )
    return AblationPlan(cells, equal, reference)


def read_grid(path: Path) -> dict[str, list[Any]]:
    """The grid of a TOML file: dotted config key -> values. Raises ConfigError: no file, not TOML, or anything but a table ``[grid]``."""
    settings = configs.load(path)
    found = {key.removeprefix("grid."): values for key, values in settings.items() if key.startswith("grid.")}
    if not found or len(found) < len(settings):
        raise ConfigError(
            "a grid file holds one table and nothing else",
            where=path,
            expected="[grid] and lines like loss.beta = [0, 0.5]",
        )
    return found


def every(
    asked: TrainRequest, arms: Sequence[str], seeds: int, data: PairData, grid: Mapping[str, Sequence[Any]]
) -> list[Cell]:
    """All cells, seeds outermost, so that an early end leaves every arm with as many seeds.

    A key of the grid that an arm sets by itself does not multiply that arm's cells.
    Raises ConfigError: an unknown arm or key, a value that does not fit, a key that is no setting of an arm, two cells of one name
    """
    for key, values in grid.items():
        if not isinstance(values, list | tuple) or not values:
            raise ConfigError(
                f"{values!r} is no list of values", where=f"[grid] {key}", expected=f"{key} = [VALUE, ...]"
            )
        if key in (*results.OWN, "dataset"):
            raise ConfigError(
                "this key cannot vary within an ablation",
                where=f"[grid] {key}",
                expected="a key of model, loss or optim",
            )
    found: dict[str, Cell] = {}
    for seed, arm in itertools.product(range(seeds), dict.fromkeys(arms)):
        tried = []
        for values in itertools.product(*grid.values()):
            combination = dict(zip(grid, values, strict=True))
            cell = replace(asked, arm=arm, explicit={**(asked.explicit or {}), **combination, "seed": seed})
            tried.append((combination, cell, cell.resolve(data)))
        resolved = [configs.flatten(asdict(config)) for _, _, config in tried]
        heard = [
            key
            for key, values in grid.items()
            if len(values) == 1 or len({json.dumps(one[key]) for one in resolved}) > 1
        ]
        for combination, cell, config in tried:
            made = Cell(_label(arm, {key: combination[key] for key in heard}, grid), seed, cell, config)
            if found.setdefault(made.name, made).config != config:
                raise ConfigError(
                    "two cells would have one name",
                    where=made.name,
                    expected="values that differ in letters and digits",
                )
    return list(found.values())


def distinct(cells: Sequence[Cell]) -> tuple[list[Cell], dict[str, str]]:
    """Cells that differ in more than their names, and label -> the label before it that has the same settings."""
    first: dict[str, Cell] = {}
    equal: dict[str, str] = {}
    for cell in cells:
        same = first.setdefault(digest({**asdict(cell.config), "arm": ""}), cell)
        if same is not cell:
            equal[cell.label] = same.label
    return [cell for cell in cells if cell.label not in equal], equal


def _label(arm: str, values: Mapping[str, Any], grid: Mapping[str, Any]) -> str:
    """``ccaco,beta=0.1``: the last part of a key where that is enough, and no letter that a folder cannot have."""
    parts = [arm]
    for key, value in values.items():
        last = key.rpartition(".")[2]
        unique = sum(other.rpartition(".")[2] == last for other in grid) == 1
        parts.append(f"{last if unique else key}={value}")
    return ",".join(re.sub(r"[^\w.,+=-]+", "_", part)[-60:] for part in parts)


def _check_table(cells: Sequence[Cell], data: PairData, metric: str, reference: str | None, ensemble: int) -> None:
    labels = list(dict.fromkeys(cell.label for cell in cells))
    labels += dict.fromkeys(
        ensembles.named(cell.label, ensemble) for cell in cells if ensemble and ensembles.adds(cell.config)
    )
    if not labels:
        raise ConfigError("no arms to train", where="--arms", expected=f"{' | '.join(SETS)} | NAME,NAME")
    if reference is not None and reference not in labels:
        raise ConfigError("the reference is none of the arms", where=reference, expected=" | ".join(labels))
    if metric == CLASS_ACCURACY:  # whether anything has a class, each run sees for itself
        return
    one = np.ones((1, 1))
    per_query(metric, evaluate("full", [0], [0], by_similarity(one, one, [0], [0]), data.modalities).directions())


def digest(config: Mapping[str, Any]) -> str:
    """Equal for equal settings: sha256."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
