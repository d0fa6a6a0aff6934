"""The cells of an ablation (arms x grid x seeds): resolved, named and checked before anything is trained."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ccaco_cli.core import config_io
from ccaco_cli.core.config import RunConfig
from ccaco_cli.core.data.shards import PairData
from ccaco_cli.core.errors import ConfigError
from ccaco_cli.core.evaluation.metric_table import check_metric
from ccaco_cli.core.evaluation.protocols import single_pair_evaluation
from ccaco_cli.core.evaluation.significance import per_query
from ccaco_cli.core.experiments import ensemble as ensembles
from ccaco_cli.core.experiments.arms import SETS
from ccaco_cli.core.experiments.fairness import check_fair, same_for_every_seed
from ccaco_cli.core.experiments.request import TrainRequest
from ccaco_cli.core.scoring.results import RUN_KEYS
from ccaco_cli.core.scoring.split_scorer import CLASS_ACCURACY


@dataclass(frozen=True)
class AblationRequest:
    """What an ablation trains and how its table is made, before it is resolved.

    Attributes:
        train: data set and settings that all arms share.
        arms: names of arms.
        seeds: number of seeds; every arm is trained with the seeds 0, 1, ...
        grid: dotted config key -> values; every combination is tried with every arm.
        metric: the metric that the table tests, such as ``R-sum``.
        reference: label of the arm that the others are compared with; None = the table chooses.
        ensemble: number of seeds of each contrastive-only arm that are also scored together; 0 = none.
    """

    train: TrainRequest
    arms: Sequence[str]
    seeds: int
    grid: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    metric: str = "R-sum"
    reference: str | None = None
    ensemble: int = 0

    def __post_init__(self) -> None:
        """Raises ConfigError: no such metric."""
        check_metric(self.metric)


@dataclass(frozen=True)
class Cell:
    """One run of an ablation.

    Attributes:
        label: the arm with its values of the grid, such as ``ccaco,beta=0.1``; names the row of the table.
        seed: seed of the run.
        request: what to train.
        config: the resolved request.
    """

    label: str
    seed: int
    request: TrainRequest
    config: RunConfig

    @property
    def name(self) -> str:
        return f"{self.label}-s{self.seed}"


@dataclass(frozen=True)
class AblationPlan:
    """What an ablation is going to train.

    Attributes:
        cells: seeds outermost, so that an early end leaves every arm with the same number of seeds.
        equal: arms that are left out: name -> the earlier arm that has the same settings with these towers.
        reference: label of the arm that the others are compared with; None = the table chooses.
    """

    cells: list[Cell]
    equal: dict[str, str]
    reference: str | None


def plan_ablation(request: AblationRequest, data: PairData) -> AblationPlan:
    """Resolves and checks everything that ``ablate`` trains.

    Raises:
        ConfigError: an unknown arm, key, metric or reference; arms that differ in step budget, evaluation pool or
            selection rule; an ensemble of more seeds than there are, or no arm for it.
    """
    cells, equal = distinct_cells(all_cells(request, data))
    reference = equal.get(request.reference or "", request.reference)
    check_fair({cell.label: asdict(cell.config) for cell in cells})
    _check_table(replace(request, reference=reference), cells, data)
    ensemble, seeds = request.ensemble, request.seeds
    if ensemble and not 2 <= ensemble <= seeds:
        raise ConfigError(
            f"no ensemble of {ensemble}", where=f"{seeds} seeds", expected=f"2 to {seeds}", next="more --seeds"
        )
    if ensemble and not any(ensembles.can_ensemble(cell.config) for cell in cells):
        raise ConfigError(
            "no arm to make an ensemble of", where="--arms", expected="one without a cross branch, such as clip"
        )
    return AblationPlan(cells, equal, reference)


def read_grid(path: Path) -> dict[str, list[Any]]:
    """Reads the grid of a TOML file: dotted config key -> values.

    Raises:
        ConfigError: no file, not TOML, or the file holds anything other than one table ``[grid]``.
    """
    settings = config_io.load(path)
    grid = {key.removeprefix("grid."): values for key, values in settings.items() if key.startswith("grid.")}
    if not grid or len(grid) < len(settings):
        raise ConfigError(
            "a grid file holds one table and nothing else",
            where=path,
            expected="[grid] and lines like loss.beta = [0, 0.5]",
        )
    return grid


def all_cells(request: AblationRequest, data: PairData) -> list[Cell]:
    """All cells of an ablation, seeds outermost.

    A key of the grid that an arm overrides does not multiply the cells of that arm, and an arm whose results do not
    depend on the seed has the first seed only.

    Raises:
        ConfigError: an unknown arm or key, a value of the wrong type, a key that cannot vary, or two cells of one name.
    """
    _check_grid(request.grid)
    cells: dict[str, Cell] = {}
    for seed, arm in itertools.product(range(request.seeds), dict.fromkeys(request.arms)):
        for cell in _cells_of(request, arm, seed, data):
            if seed and same_for_every_seed(asdict(cell.config)):
                continue
            if cells.setdefault(cell.name, cell).config != cell.config:
                raise ConfigError(
                    "two cells would have one name",
                    where=cell.name,
                    expected="values that differ in letters and digits",
                )
    return list(cells.values())


def _check_grid(grid: Mapping[str, Sequence[Any]]) -> None:
    for key, values in grid.items():
        if not isinstance(values, list | tuple) or not values:
            raise ConfigError(
                f"{values!r} is no list of values", where=f"[grid] {key}", expected=f"{key} = [VALUE, ...]"
            )
        if key in (*RUN_KEYS, "dataset"):
            raise ConfigError(
                "this key cannot vary within an ablation",
                where=f"[grid] {key}",
                expected="a key of model, loss or optim",
            )


def _cells_of(request: AblationRequest, arm: str, seed: int, data: PairData) -> list[Cell]:
    """The cells of one arm and seed, one for each combination of the grid; several may be equal."""
    combinations = [
        dict(zip(request.grid, values, strict=True)) for values in itertools.product(*request.grid.values())
    ]
    explicit = request.train.explicit or {}
    requests = [
        replace(request.train, arm=arm, explicit={**explicit, **values, "seed": seed}) for values in combinations
    ]
    resolved = [train_request.resolve(data) for train_request in requests]
    flat = [config_io.flatten(asdict(config)) for config in resolved]
    # a key that the arm overrides has one value in all resolved configs, and is left out of the label
    effective = [
        key
        for key, values in request.grid.items()
        if len(values) == 1 or len({json.dumps(settings[key]) for settings in flat}) > 1
    ]
    return [
        Cell(_label(arm, {key: values[key] for key in effective}, request.grid), seed, train_request, config)
        for values, train_request, config in zip(combinations, requests, resolved, strict=True)
    ]


def distinct_cells(cells: Sequence[Cell]) -> tuple[list[Cell], dict[str, str]]:
    """Leaves out cells that differ from an earlier cell in their label only.

    Returns:
        The distinct cells, and for each label that was left out the earlier label with the same settings.
    """
    first: dict[str, Cell] = {}
    equal: dict[str, str] = {}
    for cell in cells:
        same = first.setdefault(config_digest({**asdict(cell.config), "arm": ""}), cell)
        if same is not cell:
            equal[cell.label] = same.label
    return [cell for cell in cells if cell.label not in equal], equal


def _label(arm: str, values: Mapping[str, Any], grid: Mapping[str, Any]) -> str:
    """``ccaco,beta=0.1``: the last part of a key where that is unique, and only characters that a folder name can
    have.
    """
    parts = [arm]
    for key, value in values.items():
        last = key.rpartition(".")[2]
        unique = sum(name.rpartition(".")[2] == last for name in grid) == 1
        parts.append(f"{last if unique else key}={value}")
    return ",".join(re.sub(r"[^\w.,+=-]+", "_", part)[-60:] for part in parts)


def _check_table(request: AblationRequest, cells: Sequence[Cell], data: PairData) -> None:
    labels = list(dict.fromkeys(cell.label for cell in cells))
    labels += dict.fromkeys(
        ensembles.ensemble_label(cell.label, request.ensemble)
        for cell in cells
        if request.ensemble and ensembles.can_ensemble(cell.config)
    )
    if not labels:
        raise ConfigError("no arms to train", where="--arms", expected=f"{' | '.join(SETS)} | NAME,NAME")
    if request.reference is not None and request.reference not in labels:
        raise ConfigError("the reference is none of the arms", where=request.reference, expected=" | ".join(labels))
    if request.metric == CLASS_ACCURACY:  # each run checks by itself whether its data has classes
        return
    per_query(request.metric, single_pair_evaluation(data.modalities).directions())


def config_digest(config: Mapping[str, Any]) -> str:
    """sha256 of a config; equal for equal settings."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
