"""Tables of runs across domains."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ccaco_cli.core.data.domains import SOURCE_TEST
from ccaco_cli.core.errors import ConfigError, DataError
from ccaco_cli.core.evaluation import significance
from ccaco_cli.core.experiments.domain_adaptation import ORACLE, PICTURE
from ccaco_cli.core.scoring import results
from ccaco_cli.core.scoring.results import Result, Row, Run

BASE = "source-only"


def stored(run: Run) -> dict[str, Any]:
    """What ``note`` stored of a run: {"before", "after"}, each as ``look`` gives it. Raises DataError: a run without a target domain."""
    file = run.path / "results" / PICTURE
    if not file.is_file():
        raise _no_target(run)
    found: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return found


def _no_target(run: Run) -> DataError:
    return DataError(
        "this run has no target domain", where=run.path, expected="runs of ccaco train --target-domain NAME"
    )


def table(runs: Sequence[Run], metric: str, reference: str | None) -> list[Row]:
    """One row an arm (and data set): the target with its interval, the gain there, what is left of the source, and the oracle apart.

    metric     ``R-sum``, ``text_to_image_R@1``, ``class_accuracy`` ...
    reference  whose figures gain and retention are held against; None = source-only where it is there, else the first
    Returns    means over seeds: ``target`` (``low .. high``), ``gain`` = target minus the reference's, ``source``, ``retention`` = source
               over the reference's, ``oracle`` = target by the checkpoint that the target chose, ``proxy_a_distance`` and
               ``domain_accuracy`` after training (first modality), ``proxy_a_distance_before``
    Raises     DataError: a run without a target domain; ConfigError: no such metric
    """
    for run in runs:
        if "domains" not in run.facts:
            raise _no_target(run)
    rows: list[Row] = []
    groups: dict[tuple[str, str, str], list[Run]] = {}
    for run in runs:
        told = run.facts["domains"]
        groups.setdefault((run.dataset, ",".join(told["sources"]), told["target"]), []).append(run)
    for (dataset, sources, target), group in groups.items():
        arms = {split: results.by_arm(_stored(group, split)) for split in ("test", SOURCE_TEST, ORACLE)}
        base = next((n for n in (reference, BASE, *arms["test"]) if n in arms["test"]), None)
        if base is None or (reference and reference not in arms["test"]):
            raise DataError("no finished run of the reference arm", where=reference, expected=" | ".join(arms["test"]))
        figures = {split: {label: _means(found, metric) for label, found in of.items()} for split, of in arms.items()}
        for label, seeds in arms["test"].items():
            head: Row = {
                "dataset": dataset,
                "sources": sources,
                "target_domain": target,
                "arm": label,
                "seeds": len(seeds),
                "metric": metric,
            }
            value, source = (figures[split].get(label) for split in ("test", SOURCE_TEST))
            row = head | {"target": value} | _interval(list(seeds.values()), metric)
            was, source_was = figures["test"][base], figures[SOURCE_TEST].get(base)
            row |= {"gain": None if value is None or was is None else value - was, "reference": base, "source": source}
            row |= {"retention": source / source_was if source is not None and source_was else None}
            row |= {"oracle (chosen on the target)": figures[ORACLE].get(label)}
            looks = [one.run.facts["domains"] for one in seeds.values()]
            for name, when in (
                ("proxy_a_distance", "after"),
                ("domain_accuracy", "after"),
                ("proxy_a_distance", "before"),
            ):
                told = [next(iter(look[when].values()))[name] for look in looks if look[when]]
                row[name if when == "after" else f"{name}_{when}"] = float(np.mean(told)) if told else None
            row["warnings"] = list(
                dict.fromkeys(w["kind"] for one in seeds.values() for w in one.run.facts.get("warnings", ()))
            )
            rows.append(row)
    return rows


def classes(runs: Sequence[Run], split: str) -> list[Row]:
    """One row a run and class: accuracy over the samples of that class, 0..1. Raises DataError: a run that classified nothing."""
    rows: list[Row] = []
    for run in runs:
        found = run.facts["metrics"].get(f"{split}.classes")
        if found is None:
            raise DataError(
                f"this run classified nothing on {split}", where=run.path, expected="a data set with labels"
            )
        identity = {"run": run.name, "dataset": run.dataset, "arm": run.label, "seed": run.facts["seed"]}
        rows += [
            identity | {"class": k.partition("/")[2], "class_accuracy": v}
            for k, v in found.items()
            if k.startswith("accuracy/")
        ]
    return rows


def _stored(runs: Sequence[Run], split: str) -> Iterator[Result]:
    return (results.result(run, split) for run in runs if f"{split}.{run.facts['headline']}" in run.facts["metrics"])


def _means(seeds: Mapping[int, Result], metric: str) -> float | None:
    values = []
    for one in seeds.values():
        if metric not in one.metrics:
            raise ConfigError("no such metric", where=metric, expected=" | ".join(one.metrics))
        values.append(one.metrics[metric])
    return None if any(v is None for v in values) else float(np.mean([v for v in values if v is not None]))


def _interval(seeds: Sequence[Result], metric: str) -> Row:
    """Over seeds and things, where the metric is a mean over queries."""
    try:
        found = significance.estimate([one.per_query(metric) for one in seeds])
    except (ConfigError, DataError):
        return {"low": None, "high": None}
    return {"low": found.low, "high": found.high}
