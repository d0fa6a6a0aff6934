"""Finished runs and their stored results: found on disk, loaded, and ordered by data set, pool and arm. Every table is
made of these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ccaco_cli.core import manifest
from ccaco_cli.core.config_io import flatten
from ccaco_cli.core.errors import DataError, ManifestError
from ccaco_cli.core.evaluation import significance
from ccaco_cli.core.evaluation.calibration import Reliability
from ccaco_cli.core.evaluation.metric_table import find_metric, metric_of_items
from ccaco_cli.core.evaluation.protocols import Evaluation
from ccaco_cli.core.evaluation.significance import PerQuery

RUN_KEYS = ("arm", "seed", "device", "workers")
"""Config keys in which the runs of one arm may differ."""
SMALL = "small"
"""The stage of the small gallery (the first rows of the split). Every arm has it, also one with a slow score."""


@dataclass(frozen=True)
class Run:
    """A finished run, or one stored result without its run.

    Attributes:
        path: the folder of the run, or the result file.
        label: its row in tables of arms: the arm, with its values of the grid where there is one.
        facts: of its manifest; for a result without its run, what the file says.
        config: resolved; {} for a result without its run.
    """

    path: Path
    label: str
    facts: Mapping[str, Any]
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return str(self.facts["name"])

    @property
    def dataset(self) -> str:
        return Path(self.facts.get("dataset") or self.config["dataset"]).name


@dataclass(frozen=True, eq=False)
class Result:
    """The result of a run on one split, with the ranks of each query.

    Attributes:
        run: the run that was scored.
        split: test, val ...
        stage: cosine, two-stage, cross, small or classes.
        dataset: name of the data set.
        data: sha256 of the manifest of the data set.
        evaluation: ranks and metrics of the pools.
        metrics: name -> value; fractions are 0..1; None for NaN.
        strata: name -> one value per row of modality a, in the order of the pools (of a small pool: of all rows).
        items: outcomes (0 or 1) of single choices: ``matching`` has one per caption, in several languages with its row
            in ``matching_row``; ``matching_N_way``, ``twin``, ``binding`` and ``class`` have the row of the chosen
            image in ``matching_N_way_row``, ``twin_row`` and so on.
        reliability: of the probabilities that were calibrated on validation; None where they were not measured.
    """

    run: Run
    split: str
    stage: str
    dataset: str
    data: str
    evaluation: Evaluation
    metrics: Mapping[str, float | None]
    strata: Mapping[str, Sequence[Any]]
    items: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    reliability: Reliability | None = None

    @property
    def pool(self) -> str:
        """The protocol that says which rows are in one gallery."""
        return self.evaluation.protocol

    def per_query(self, metric: str) -> PerQuery:
        """The values whose mean is the metric, clustered by image.

        Raises:
            ConfigError: no metric of this name is a mean over queries or choices.
        """
        clusters = {"matching": np.concatenate([ranks.query_group for ranks in self.evaluation.b_to_a])}
        clusters |= {
            name.removesuffix("_row"): np.asarray(rows) for name, rows in self.items.items() if name.endswith("_row")
        }
        name = metric.removesuffix("_accuracy")
        outcomes = np.asarray(self.items.get(name, ())) if metric == metric_of_items(name) else np.empty(0)
        if len(outcomes) and len(outcomes) == len(clusters.get(name, ())):
            declared = find_metric(metric)
            return PerQuery.of(outcomes, clusters[name], declared.higher_is_better if declared else True)
        return significance.per_query(metric, self.evaluation.directions())


def find_runs(paths: Iterable[Path]) -> list[Run]:
    """The finished runs at the paths, each once, in order.

    Args:
        paths: run folders, ablation folders (their cells), folders that hold runs, or result files.
    Raises:
        DataError: no finished run at a path.
        ManifestError: a cell was trained again after its ablation was completed.
    """
    return list({run.path.resolve(): run for path in paths for run in _runs_at(path)}.values())


def failed_cells(paths: Iterable[Path]) -> dict[str, int]:
    """Label -> number of failed cells, over the ablations among the paths; labels without failures are left out."""
    counts: dict[str, int] = {}
    for path in paths:
        cells = manifest.open(path, kind="ablation").facts["cells"] if _kind(path) == "ablation" else ()
        for cell in cells:
            if "error" in cell:
                counts[cell["label"]] = counts.get(cell["label"], 0) + 1
    return counts


def only_ablations(paths: Sequence[Path]) -> bool:
    """True when every path is a completed ablation."""
    return bool(paths) and all(_kind(path) == "ablation" for path in paths)


def default_table(paths: Iterable[Path]) -> str | None:
    """The table that the data set of the results asks for, such as ``choices``; None where there is none, or
    several.
    """
    names = {str(run.facts.get("evaluation") or "") for run in find_runs(paths)}
    return names.pop() or None if len(names) == 1 else None


def load_result(run: Run, split: str = "test", stage: str | None = None) -> Result:
    """Loads a stored result of a run: that of its headline stage unless another stage is named.

    Raises:
        DataError: no such result, or an unreadable file.
    """
    stage = stage or run.facts["headline"]
    file = run.path if run.path.is_file() else run.path / "results" / f"{split}.{stage}.json"
    body = read(file) if file.is_file() else None
    if body is None or body.get("split") != split:
        known = " or ".join(sorted({name.partition(".")[0] for name in run.facts["metrics"]}))
        raise DataError(f"this run has no results on {split}", where=run.path, expected=known)
    try:
        return Result(
            run,
            split,
            stage,
            body["dataset"],
            body["data"],
            Evaluation.from_dict(body),
            {**body["metrics"], **run.facts["metrics"].get(f"{split}.{stage}", {})},
            body.get("strata", {}),
            body.get("per_item", {}),
            Reliability.from_dict(body["reliability"]) if "reliability" in body else None,
        )
    except KeyError as error:
        raise DataError(f"unreadable result (no {error})", where=file, expected="what ccaco train wrote") from None


def comparable(runs: Sequence[Run], split: str) -> list[Result]:
    """One result of each run, all on one gallery: the small one if any run is too slow for the full gallery."""
    headline = [load_result(run, split) for run in runs]
    mixed = any(result.stage == SMALL for result in headline) and any(result.stage != SMALL for result in headline)
    return [load_result(run, split, SMALL) for run in runs] if mixed else headline


def by_pool(runs: Sequence[Run], split: str) -> dict[tuple[str, str], list[Result]]:
    """(data set, pool) -> results.

    Holds the headline result of every run. Where some runs of a data set were scored on the small gallery only, also
    the result of all its runs on that gallery.

    Raises:
        DataError: as ``by_dataset``.
    """
    pools: dict[tuple[str, str], list[Result]] = {}
    for dataset, headline in by_dataset(load_result(run, split) for run in runs).items():
        any_small = any(result.stage == SMALL for result in headline)
        on_small = [
            load_result(result.run, split, SMALL)
            for result in headline
            if any_small and result.stage != SMALL and f"{split}.{SMALL}" in result.run.facts["metrics"]
        ]
        for result in [*headline, *on_small]:
            pools.setdefault((dataset, result.pool), []).append(result)
    for group in pools.values():
        same_pool(group)
    return pools


def by_dataset(results: Iterable[Result]) -> dict[str, list[Result]]:
    """Name of the data set -> results. Raises DataError when results of one name come from different data."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result.dataset, []).append(result)
    for group in groups.values():
        same_data(group)
    return groups


def by_arm(results: Iterable[Result]) -> dict[str, dict[int, Result]]:
    """Label -> seed -> result, for results of one data set.

    Raises:
        DataError: two results of one arm and seed, or runs of one arm that were trained with different settings.
    """
    arms: dict[str, dict[int, Result]] = {}
    for result in results:
        label, seed = result.run.label, int(result.run.facts["seed"])
        seeds = arms.setdefault(label, {})
        if seed in seeds:
            raise DataError(
                f"two runs of arm {label} with seed {seed}",
                where=f"{seeds[seed].run.path} and {result.run.path}",
                expected="one run an arm and seed",
                next="name the runs to compare, or use --compare",
            )
        first = next(iter(seeds.values()), result)
        if keys := _differing_keys(first.run.config, result.run.config):
            raise DataError(
                f"runs of arm {label} were trained unlike",
                where=f"{first.run.path} and {result.run.path} differ in {', '.join(keys)}",
                next="name the runs to compare, or use --compare",
            )
        seeds[seed] = result
    return arms


def mean_metrics(results: Iterable[Result]) -> dict[str, float | None]:
    """Mean of each metric over results; None where a result has no such metric, or NaN."""
    metrics_of_each = [result.metrics for result in results]
    means: dict[str, float | None] = {}
    for name in dict.fromkeys(name for metrics in metrics_of_each for name in metrics):
        values = [metrics.get(name) for metrics in metrics_of_each]
        numbers = [value for value in values if value is not None]
        means[name] = float(np.mean(numbers)) if len(numbers) == len(values) else None
    return means


def _runs_at(path: Path) -> list[Run]:
    if path.is_file():
        return [_run_of_result_file(path)]
    kind = _kind(path)
    if kind == "run":
        return [_open_run(path)]
    if kind == "ablation":
        ablation = manifest.open(path, kind="ablation")
        runs = [
            _open_run(path / cell["name"], cell["label"], cell["run"])
            for cell in ablation.facts["cells"]
            if "error" not in cell
        ]
        runs += [_run_of_result_file(path / entry["name"]) for entry in ablation.files]  # of ensembles
    else:
        runs = [_open_run(p.parent) for p in sorted(path.glob(f"*/{manifest.NAME}")) if _kind(p.parent) == "run"]
    if not runs:
        expected = "a run folder, or a folder of runs"
        raise DataError("no finished run here", where=path, expected=expected, next="ccaco train --dataset scenes")
    return runs


def _kind(path: Path) -> str:
    return str((read(path / manifest.NAME) or {}).get("kind", "")) if manifest.exists(path) else ""


def read(file: Path) -> dict[str, Any] | None:
    """The content of a result file; None where it is damaged."""
    try:
        body = manifest.read_json(file)
    except ValueError:
        return None
    return body if isinstance(body, dict) else None


def _open_run(path: Path, label: str = "", sha256: str = "") -> Run:
    run = manifest.open(path, kind="run")
    if sha256 and run.sha256 != sha256:
        message = "this cell was trained anew since its ablation was completed"
        raise ManifestError(message, where=path, expected=sha256[:12], next="the ccaco ablate command again")
    return Run(path, label or run.facts["arm"], run.facts, run.config)


def _run_of_result_file(file: Path) -> Run:
    body = read(file) or {}
    if not {"split", "stage", "arm", "seed", "metrics", "per_query"} <= body.keys():
        raise DataError("this file is no result", where=file, expected="results/SPLIT.STAGE.json of a run")
    name = body.get("run") or (f"{file.parent.parent.name}/{file.stem}" if file.parent.name == "results" else file.stem)
    classes = file.with_name(f"{body['split']}.classes.json")  # of the same model, stored beside its retrieval
    stages = {body["stage"]: body, "classes": (read(classes) if classes.is_file() else None) or body}
    metrics = {f"{body['split']}.{stage}": part["metrics"] for stage, part in stages.items() if part["stage"] == stage}
    facts = {"name": name, "headline": body["stage"], "metrics": metrics}
    keys = ("arm", "seed", "weight", "dataset", "evaluation", "fitted", "parameters")
    return Run(file, body["arm"], facts | {key: body[key] for key in keys if key in body})


def same_data(results: Sequence[Result]) -> None:
    """Raises DataError when results come from different data sets or splits."""
    _require_same(results, {"data set": lambda r: f"{r.dataset} {r.data[:12]}", "split": lambda r: r.split})


def same_pool(results: Sequence[Result]) -> None:
    """Raises DataError when results have another data set, split, protocol, pool size or modality."""
    same_data(results)
    facets: dict[str, Callable[[Result], Any]] = {
        "protocol": lambda r: r.pool,
        "pool sizes": lambda r: r.evaluation.pools,
        "modalities": lambda r: r.evaluation.names,
    }
    _require_same(results, facets)


def _require_same(results: Sequence[Result], facets: Mapping[str, Callable[[Result], Any]]) -> None:
    for facet, value_of in facets.items():
        for result in results[1:]:
            if value_of(result) != value_of(results[0]):
                raise DataError(
                    f"results of different test pools cannot be compared ({facet})",
                    where=f"{results[0].run.path}: {value_of(results[0])}; {result.run.path}: {value_of(result)}",
                    expected="one data set, split and protocol",
                    next="train both on the same prepared data set",
                )


def _differing_keys(config_a: Mapping[str, Any], config_b: Mapping[str, Any]) -> list[str]:
    a, b = flatten(config_a), flatten(config_b)
    return [key for key in a.keys() | b.keys() if a and b and key not in RUN_KEYS and a.get(key) != b.get(key)]
