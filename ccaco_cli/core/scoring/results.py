"""Finished runs and their stored results, found on disk and put in order: what every table is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from ccaco_cli.core import manifest
from ccaco_cli.core.config_io import flatten
from ccaco_cli.core.errors import DataError, ManifestError
from ccaco_cli.core.evaluation import significance
from ccaco_cli.core.evaluation.metrics import RankResult, summary
from ccaco_cli.core.evaluation.protocols import Evaluation
from ccaco_cli.core.evaluation.significance import PerQuery

Row = dict[str, Any]
RUN_KEYS = ("arm", "seed", "device", "workers")
"""Config keys in which the runs of one arm may differ."""
SMALL = "small"
"""The stage that every arm has, however slow its score: a gallery of the first rows only."""


@dataclass(frozen=True)
class Run:
    """A finished run, or one stored result of it.

    path    the run's folder, or the result's file
    label   its row in tables of arms: the arm, with the values of the grid where there was one
    facts   of its manifest; of a lone result as much as the file says
    config  resolved; {} of a lone result
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
    """What one run measured on one split, with per-query ranks.

    data     sha256 of the data set's manifest
    metrics  of its stage, fractions; None where it was NaN
    strata   name -> one value a row of modality a, in the order of the pools
    items    outcomes of single choices, 0 or 1: ``matching`` a caption; ``matching_N_way``, ``twin``, ``binding`` and ``class``, with the
             picture of each in ``binding_row`` and so on
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

    @property
    def pool(self) -> str:
        """The rule by which rows are each other's gallery."""
        return self.evaluation.protocol

    def per_query(self, metric: str) -> PerQuery:
        """The values whose mean is the metric, by picture. Raises ConfigError: no mean over queries or choices goes by that name."""
        texts = np.concatenate([part.query_group for part in self.evaluation.b_to_a])
        of = {"matching": texts} | {
            key.removesuffix("_row"): np.asarray(rows) for key, rows in self.items.items() if key.endswith("_row")
        }
        name = metric.removesuffix("_accuracy")
        right = np.asarray(self.items.get(name, ())) if name != metric else np.empty(0)
        if len(right) and len(right) == len(of.get(name, ())):
            return PerQuery.of(right, of[name])
        return significance.per_query(metric, self.evaluation.directions())


def find(paths: Iterable[Path]) -> list[Run]:
    """The finished runs at the paths, each once, in order.

    paths   run folders, ablation folders (their cells), folders that hold runs, or result files
    Raises  DataError: nothing finished there; ManifestError: a cell was trained anew since its ablation was completed
    """
    return list({run.path.resolve(): run for path in paths for run in _at(path)}.values())


def failures(paths: Iterable[Path]) -> dict[str, int]:
    """Label -> how many cells of the ablations among the paths have failed."""
    found: dict[str, int] = {}
    for path in paths:
        for cell in manifest.open(path, kind="ablation").facts["cells"] if _kind(path) == "ablation" else ():
            found[cell["label"]] = found.get(cell["label"], 0) + ("error" in cell)
    return {label: n for label, n in found.items() if n}


def only_ablations(paths: Sequence[Path]) -> bool:
    """True when each path is a completed ablation."""
    return bool(paths) and all(_kind(path) == "ablation" for path in paths)


def own_table(paths: Iterable[Path]) -> str | None:
    """The table that suits results on a data set made for one question, such as ``choices``; None where they differ, or name none."""
    named = {str(run.facts.get("evaluation") or "") for run in find(paths)}
    return named.pop() or None if len(named) == 1 else None


def result(run: Run, split: str = "test", stage: str | None = None) -> Result:
    """The stored result of a run: of its own score (``headline``) unless a stage is named.

    Raises DataError: no such result, or one that cannot be read
    """
    stage = stage or run.facts["headline"]
    file = run.path if run.path.is_file() else run.path / "results" / f"{split}.{stage}.json"
    body = read(file) if file.is_file() else None
    if body is None or body.get("split") != split:
        known = " or ".join(sorted({name.partition(".")[0] for name in run.facts["metrics"]}))
        raise DataError(f"this run has no results on {split}", where=run.path, expected=known)
    try:
        measured = {**body["metrics"], **run.facts["metrics"].get(f"{split}.{stage}", {})}
        evaluation = Evaluation.from_dict(body)
        return Result(
            run,
            split,
            stage,
            body["dataset"],
            body["data"],
            evaluation,
            measured,
            body.get("strata", {}),
            body.get("per_item", {}),
        )
    except KeyError as error:
        raise DataError(f"unreadable result (no {error})", where=file, expected="what ccaco train wrote") from None


def comparable(runs: Sequence[Run], split: str) -> list[Result]:
    """A result of each run, all on one pool: of its own score, or, where an arm is too slow for the whole gallery, on the small one."""
    own = [result(run, split) for run in runs]
    mixed = any(one.stage == SMALL for one in own) and any(one.stage != SMALL for one in own)
    return [result(run, split, SMALL) for run in runs] if mixed else own


def by_pool(runs: Sequence[Run], split: str) -> dict[tuple[str, str], list[Result]]:
    """(data set, pool) -> results: of every run's own score; and where those of one data set were not all measured on the whole gallery,
    also of every run on the small one that all share. Raises as ``by_dataset``."""
    found: dict[tuple[str, str], list[Result]] = {}
    for dataset, own in by_dataset(result(run, split) for run in runs).items():
        small = any(one.stage == SMALL for one in own)
        also = [
            result(one.run, split, SMALL)
            for one in own
            if small and one.stage != SMALL and f"{split}.{SMALL}" in one.run.facts["metrics"]
        ]
        for one in [*own, *also]:
            found.setdefault((dataset, one.pool), []).append(one)
    for group in found.values():
        same_pool(group)
    return found


def by_dataset(results: Iterable[Result]) -> dict[str, list[Result]]:
    """Results by the name of their data set. Raises DataError when one name stands for different data."""
    groups: dict[str, list[Result]] = {}
    for one in results:
        groups.setdefault(one.dataset, []).append(one)
    for group in groups.values():
        same_data(group)
    return groups


def by_arm(results: Iterable[Result]) -> dict[str, dict[int, Result]]:
    """Label -> seed -> result, of one data set. Raises DataError: two results for one, or runs of one arm that were trained unlike."""
    found: dict[str, dict[int, Result]] = {}
    for one in results:
        seeds = found.setdefault(one.run.label, {})
        seed = int(one.run.facts["seed"])
        if seed in seeds:
            raise DataError(
                f"two runs of arm {one.run.label} with seed {seed}",
                where=f"{seeds[seed].run.path} and {one.run.path}",
                expected="one run an arm and seed",
                next="name the runs to compare, or use --compare",
            )
        first = next(iter(seeds.values()), one)
        if differing := _differing(first.run.config, one.run.config):
            raise DataError(
                f"runs of arm {one.run.label} were trained unlike",
                where=f"{first.run.path} and {one.run.path} differ in {', '.join(differing)}",
                next="name the runs to compare, or use --compare",
            )
        seeds[seed] = one
    return found


def strata(one: Result, name: str) -> dict[Any, Result]:
    """A result divided by a stratum: value -> the queries of that value against the whole gallery; pools are joined.

    Text queries take the value of their picture: of the first one, where several mean the same. Choices of a picture take its value too.
    Raises DataError: no such stratum, or not one value a row
    """
    forward, back = _joined(one.evaluation.a_to_b), _joined(one.evaluation.b_to_a)
    values = list(one.strata.get(name, ()))
    if len(values) != len(forward.rank):
        known = " | ".join(one.strata) or "none in these results"
        raise DataError(
            f"{len(values)} values of {name} for {len(forward.rank)} rows",
            where=one.run.path,
            expected=f"strata: {known}",
        )
    of_group = dict(zip(forward.query_group.tolist()[::-1], values[::-1], strict=True))
    of_text = [of_group.get(group) for group in back.query_group.tolist()]
    found = {}
    for value in sorted(set(values), key=lambda v: (type(v).__name__, v)):
        ab, ba = _only(forward, [v == value for v in values]), _only(back, [v == value for v in of_text])
        items = _choices_of(one, values, value)
        metrics = summary(ab, ba, one.evaluation.names)
        metrics |= {
            f"{name}_accuracy": float(np.mean(right))
            for name, right in items.items()
            if not name.endswith("_row") and len(right)
        }
        part = replace(one.evaluation, a_to_b=(ab,), b_to_a=(ba,), metrics=metrics)
        found[value] = replace(one, evaluation=part, metrics=metrics, items=items)
    return found


def _choices_of(one: Result, values: Sequence[Any], value: Any) -> dict[str, Any]:
    """The outcomes, and their rows, of the choices that pictures of a value made."""
    found: dict[str, Any] = {}
    for name, rows in one.items.items():
        if name.endswith("_row") and max(rows, default=0) < len(values):
            keep = np.array([values[row] == value for row in rows], bool)
            own = name.removesuffix("_row")
            found |= {own: np.asarray(one.items[own])[keep].tolist(), name: np.asarray(rows)[keep].tolist()}
    return found


def mean_metrics(results: Iterable[Result]) -> Row:
    """Mean over runs of each metric that any of them has; None where one of those is NaN or has no such metric."""
    each = [one.metrics for one in results]
    names = dict.fromkeys(name for metrics in each for name in metrics)
    values = {name: [metrics.get(name) for metrics in each] for name in names}
    return {
        name: None if None in vs else float(np.mean([v for v in vs if v is not None])) for name, vs in values.items()
    }


def aligned(rows: Sequence[Sequence[Row]]) -> list[Row]:
    """Rows given in sections, joined so that all have the same columns in the same order; None where a row has no such value."""
    sections = zip(*rows, strict=True)
    names = [list(dict.fromkeys(name for part in section for name in part)) for section in sections]
    return [{name: part.get(name) for part, ns in zip(row, names, strict=True) for name in ns} for row in rows]


def _at(path: Path) -> list[Run]:
    if path.is_file():
        return [_lone(path)]
    kind = _kind(path)
    if kind == "run":
        return [_run(path)]
    if kind == "ablation":
        whole = manifest.open(path, kind="ablation")
        found = [
            _run(path / cell["name"], cell["label"], cell["run"])
            for cell in whole.facts["cells"]
            if "error" not in cell
        ]
        found += [_lone(path / entry["name"]) for entry in whole.files]  # of ensembles
    else:
        found = [_run(p.parent) for p in sorted(path.glob(f"*/{manifest.NAME}")) if _kind(p.parent) == "run"]
    if not found:
        raise DataError(
            "no finished run here",
            where=path,
            expected="a run folder, or a folder of runs",
            next="ccaco train --dataset scenes",
        )
    return found


def _kind(path: Path) -> str:
    return str((read(path / manifest.NAME) or {}).get("kind", "")) if manifest.exists(path) else ""


def read(file: Path) -> dict[str, Any] | None:
    """What a result file says; None where it is damaged."""
    try:
        body = manifest.read_json(file)
    except ValueError:
        return None
    return body if isinstance(body, dict) else None


def _run(path: Path, label: str = "", sha256: str = "") -> Run:
    found = manifest.open(path, kind="run")
    if sha256 and found.sha256 != sha256:
        what = "this cell was trained anew since its ablation was completed"
        raise ManifestError(what, where=path, expected=sha256[:12], next="the ccaco ablate command again")
    return Run(path, label or found.facts["arm"], found.facts, found.config)


def _lone(file: Path) -> Run:
    body = read(file) or {}
    if not {"split", "stage", "arm", "seed", "metrics", "per_query"} <= body.keys():
        raise DataError("this file is no result", where=file, expected="results/SPLIT.STAGE.json of a run")
    name = body.get("run") or (f"{file.parent.parent.name}/{file.stem}" if file.parent.name == "results" else file.stem)
    facts = {"name": name, "headline": body["stage"], "metrics": {f"{body['split']}.{body['stage']}": body["metrics"]}}
    told = ("arm", "seed", "weight", "dataset", "evaluation", "fitted", "parameters")
    return Run(file, body["arm"], facts | {k: body[k] for k in told if k in body})


def same_data(results: Sequence[Result]) -> None:
    """Raises DataError: the results were not measured on the same split of the same data."""
    _same(results, {"data set": lambda r: f"{r.dataset} {r.data[:12]}", "split": lambda r: r.split})


def same_pool(results: Sequence[Result]) -> None:
    """Raises DataError: the results were not measured on the same rows of the same data."""
    same_data(results)
    facets: dict[str, Callable[[Result], Any]] = {
        "protocol": lambda r: r.pool,
        "pool sizes": lambda r: r.evaluation.pools,
    }
    _same(results, facets | {"modalities": lambda r: r.evaluation.names})


def _same(results: Sequence[Result], facets: Mapping[str, Callable[[Result], Any]]) -> None:
    for facet, of in facets.items():
        for one in results[1:]:
            if of(one) != of(results[0]):
                raise DataError(
                    f"results of different test pools cannot be compared ({facet})",
                    where=f"{results[0].run.path}: {of(results[0])}; {one.run.path}: {of(one)}",
                    expected="one data set, split and protocol",
                    next="train both on the same prepared data set",
                )


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    a, b = flatten(one), flatten(other)
    return [key for key in a.keys() | b.keys() if a and b and key not in RUN_KEYS and a.get(key) != b.get(key)]


def _joined(pools: Sequence[RankResult]) -> RankResult:
    rows = {
        f.name: np.concatenate([getattr(p, f.name) for p in pools]) for f in fields(RankResult) if f.name != "gallery"
    }
    return RankResult(**rows, gallery=pools[0].gallery)


def _only(found: RankResult, keep: Sequence[bool]) -> RankResult:
    chosen = np.asarray(keep, dtype=bool)
    return RankResult(
        **{f.name: getattr(found, f.name)[chosen] for f in fields(RankResult) if f.name != "gallery"},
        gallery=found.gallery,
    )
