"""The tables that a report can show, from stored results."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ccaco_cli.core.errors import ConfigError, DataError
from ccaco_cli.core.evaluation.metric_table import Shown, is_shown
from ccaco_cli.core.reporting import comparison, domain_tables
from ccaco_cli.core.scoring import results
from ccaco_cli.core.scoring.results import Result, Row, Run, aligned, by_arm, by_pool, mean_metrics, strata

LOSSES = ("contrastive", "cross", "total")


@dataclass(frozen=True)
class ReportRequest:
    """What a report is about.

    paths      runs, ablations, folders that hold runs, or result files
    split      which results
    stages     every stage of a run, not only its own score
    by         a stratum by which queries are divided, such as ``things``
    metric     the one that is tested in the ablation's table
    reference  the arm that others are held against; None = ccaco where it is there, else the first
    """

    paths: Sequence[Path]
    split: str = "test"
    stages: bool = False
    by: str | None = None
    metric: str = "R-sum"
    reference: str | None = None


def table(asked: ReportRequest, name: str | None = None) -> list[Row]:
    """The rows of a table of ``TABLES``; None = ``ablation`` where every path is one, what the results themselves name, else ``runs``.

    Raises ConfigError: no such table; DataError: nothing there, or results that cannot be set side by side
    """
    chosen = name or (
        "ablation"
        if results.only_ablations(asked.paths) and not asked.stages
        else results.own_table(asked.paths) or "runs"
    )
    if chosen not in TABLES:
        raise ConfigError("no such table", where=chosen, expected=" | ".join(TABLES))
    return TABLES[chosen](asked)


BLIND = ("", "text_only", "shuffled")
"""A choice with its own picture, without one, and with another's."""


WHOLE = ("cosine", "two-stage", "cross")
"""Stages that are measured on the whole gallery."""


def rows(paths: Iterable[Path], *, split: str = "test", every_stage: bool = False) -> list[Row]:
    """One row a run (and a stage, when asked): what it is, its metrics (fractions), and what it cost.

    paths  run folders, ablation folders, folders that hold runs, or result files
    """
    return aligned([row for run in results.find(paths) for row in _rows_of(run, split, every_stage)])


def _runs(asked: ReportRequest) -> list[Row]:
    if not asked.by:
        return rows(asked.paths, split=asked.split, every_stage=asked.stages)
    by = asked.by
    found = [
        results.result(run, asked.split, stage)
        for run in results.find(asked.paths)
        for stage in _stages(run, asked.split, asked.stages)
    ]
    return aligned(
        [
            ({**_identity(one.run, one.stage), by: value, "queries": _queries(part)}, dict(part.metrics))
            for one in found
            for value, part in strata(one, by).items()
        ]
    )


def _retrieval(asked: ReportRequest) -> list[Row]:
    return _per_arm(asked, lambda name: is_shown(name, Shown.RETRIEVAL), spread="R-sum")


def _matching(asked: ReportRequest) -> list[Row]:
    return _per_arm(asked, lambda name: is_shown(name, Shown.MATCHING), spread=None)


def _per_arm(asked: ReportRequest, wanted: Callable[[str], bool], spread: str | None) -> list[Row]:
    """One row a data set, pool and arm: means over seeds."""
    found = []
    for (dataset, pool), group in by_pool(results.find(asked.paths), asked.split).items():
        for label, seeds in by_arm(group).items():
            metrics = {name: value for name, value in mean_metrics(seeds.values()).items() if wanted(name)}
            each = [one.metrics[spread] for one in seeds.values()] if spread else []
            sd = (
                {f"{spread}_seed_sd": float(np.std(np.array(each, float), ddof=1)) if len(each) > 1 else None}
                if spread
                else {}
            )
            found.append(({"dataset": dataset, "pool": pool, "arm": label, "seeds": len(seeds)}, metrics, sd))
    if not any(metrics for _, metrics, _ in found):
        raise DataError(
            "these runs have no such figures",
            where=", ".join(map(str, asked.paths)),
            expected="runs that measured them",
        )
    return aligned(found)


def _choices(asked: ReportRequest) -> list[Row]:
    """One row a run and kind of choice: accuracy beside the two blind ones; chance is a half."""
    found: list[Row] = []
    for run in results.find(asked.paths):
        for stage in _stages(run, asked.split, asked.stages):
            one = results.result(run, asked.split, stage)
            kinds = [
                name.removesuffix("_row") for name in one.items if name.startswith("choice_") and name.endswith("_row")
            ]
            for kind in [*kinds, *(["choice"] if kinds else [])]:
                head = {
                    "run": run.name,
                    "dataset": run.dataset,
                    "arm": run.label,
                    "seed": run.facts["seed"],
                    "stage": stage,
                }
                count = sum(len(one.items[k]) for k in (kinds if kind == "choice" else [kind]))
                figures = {
                    f"{how or 'choice'}_accuracy": one.metrics.get(f"{kind}{how and '_'}{how}_accuracy")
                    for how in BLIND
                }
                found.append(
                    {
                        **head,
                        "kind": kind.removeprefix("choice_") if kind in kinds else "mean",
                        "items": count,
                        **figures,
                    }
                )
    if not found:
        raise DataError(
            "these results have no choices",
            where=", ".join(map(str, asked.paths)),
            expected="--on a data set such as sugarcrepe",
        )
    return found


def _ablation(asked: ReportRequest) -> list[Row]:
    return comparison.arms(
        results.find(asked.paths),
        split=asked.split,
        metric=asked.metric,
        reference=asked.reference,
        by=asked.by,
        failed=results.failures(asked.paths),
    )


def looks(asked: ReportRequest) -> list[tuple[str, dict[str, Any]]]:
    """Run -> its embeddings of both domains before and after training, as ``domain_adaptation.look`` stored them.

    Raises DataError: a run without a target domain
    """
    return [(run.name, domain_tables.stored(run)) for run in results.find(asked.paths)]


def _domains(asked: ReportRequest) -> list[Row]:
    return domain_tables.table(results.find(asked.paths), asked.metric, asked.reference)


def _classes(asked: ReportRequest) -> list[Row]:
    return domain_tables.classes(results.find(asked.paths), asked.split)


def _compared(asked: ReportRequest) -> list[Row]:
    found = [run for path in asked.paths for run in results.find([path])]
    if len(found) != 2:
        raise DataError(
            f"{len(found)} runs to compare",
            where=", ".join(map(str, asked.paths)),
            expected="two runs, or two results of one",
        )
    return comparison.pair(found, asked.split)


def _faithfulness(asked: ReportRequest) -> list[Row]:
    from ccaco_cli.core.reporting import inspection

    return aligned([(row,) for run in results.find(asked.paths) for row in inspection.table(run, asked.split)])


TABLES: dict[str, Callable[[ReportRequest], list[Row]]] = {
    "runs": _runs,
    "retrieval": _retrieval,
    "matching": _matching,
    "choices": _choices,
    "ablation": _ablation,
    "domains": _domains,
    "classes": _classes,
    "compare": _compared,
    "faithfulness": _faithfulness,
}


def _rows_of(run: Run, split: str, every_stage: bool) -> list[tuple[Row, Row, Row]]:
    facts = run.facts
    losses = _last_losses(run.path / "metrics.jsonl")
    cost: Row = {"parameters": facts.get("parameters")}
    if fitted := facts.get("fitted"):
        cost |= {"steps": fitted["steps"], "seconds": fitted["seconds"]}
        cost |= {"samples/s": fitted["samples_per_second"], "memory_MiB": fitted["memory"]}
    cost["warnings"] = list(dict.fromkeys(w["kind"] for w in facts.get("warnings", ())))
    stages = _stages(run, split, every_stage)
    return [(_identity(run, stage), dict(facts["metrics"][f"{split}.{stage}"]), losses | cost) for stage in stages]


def _stages(run: Run, split: str, every: bool) -> list[str]:
    stages = [name.partition(".")[2] for name in run.facts["metrics"] if name.startswith(f"{split}.")]
    if not stages:
        known = sorted({name.partition(".")[0] for name in run.facts["metrics"]})
        raise DataError(f"this run has no results on {split}", where=run.path, expected=" or ".join(known))
    own = run.facts["headline"]
    return (
        [s for s in stages if s in (own, *WHOLE)] if every else [own]
    )  # the small pool is for arms that have no other


def _identity(run: Run, stage: str) -> Row:
    facts = run.facts
    weight = facts.get("weight") if stage == "two-stage" else None
    return {
        "run": run.name,
        "dataset": run.dataset,
        "arm": run.label,
        "seed": facts["seed"],
        "stage": stage,
        "weight": weight,
    }


def _queries(one: Result) -> int:
    return sum(len(ranks.rank) for pools in one.evaluation.directions().values() for ranks in pools)


def _last_losses(log: Path) -> Row:
    last: Row = {f"loss_{name}": None for name in LOSSES}
    for line in log.read_text("utf-8").splitlines() if log.is_file() else ():
        entry = json.loads(line)
        last |= {f"loss_{k}": entry[k] for k in LOSSES if k in entry}
    return last
