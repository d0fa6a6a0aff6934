"""Tables of runs across domains and by class, from stored results alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ccaco_cli.core.data.domain_names import DOMAIN_EMBEDDINGS, ORACLE, SOURCE_TEST
from ccaco_cli.core.errors import ConfigError, DataError
from ccaco_cli.core.evaluation import significance
from ccaco_cli.core.reporting.breakdown_rows import ClassRow
from ccaco_cli.core.reporting.comparison import warning_kinds
from ccaco_cli.core.reporting.rows import DomainRow
from ccaco_cli.core.scoring import results
from ccaco_cli.core.scoring.results import Result, Run

DEFAULT_REFERENCE = "source-only"
Means = Mapping[str, float | None]
"""Arm -> mean of the metric over its seeds."""


def read_domain_embeddings(run: Run) -> dict[str, Any]:
    """The stored embeddings of both domains: {"before", "after" training} -> modality -> points, domain and distances.

    Raises:
        DataError: a run without a target domain.
    """
    file = run.path / "results" / DOMAIN_EMBEDDINGS
    if not file.is_file():
        raise _no_target(run)
    embeddings: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return embeddings


def domain_rows(runs: Sequence[Run], metric: str, reference: str | None) -> list[DomainRow]:
    """One row for each arm (and data set): target with interval, gain, retention of the source, and the oracle.

    Args:
        metric: ``R-sum``, ``text_to_image_R@1``, ``class_accuracy`` ...
        reference: the arm of which gain and retention are taken; None = ``source-only`` where it is there, else the
            first arm.
    Raises:
        DataError: a run without a target domain, or no such reference arm.
        ConfigError: no such metric.
    """
    groups: dict[tuple[str, str, str], list[Run]] = {}
    for run in runs:
        if "domains" not in run.facts:
            raise _no_target(run)
        domains = run.facts["domains"]
        groups.setdefault((run.dataset, ",".join(domains["sources"]), domains["target"]), []).append(run)
    return [
        row
        for (dataset, sources, target), group in groups.items()
        for row in _rows_of_target((dataset, sources, target), group, metric, reference)
    ]


def _rows_of_target(
    identity: tuple[str, str, str], group: Sequence[Run], metric: str, reference: str | None
) -> Iterator[DomainRow]:
    by_split = {split: results.by_arm(_stored(group, split)) for split in ("test", SOURCE_TEST, ORACLE)}
    target_arms = by_split["test"]
    chosen = next((name for name in (reference, DEFAULT_REFERENCE, *target_arms) if name in target_arms), None)
    if chosen is None or (reference and reference not in target_arms):
        raise DataError("no finished run of the reference arm", where=reference, expected=" | ".join(target_arms))
    target, source, oracle = (
        {label: _mean(seeds, metric) for label, seeds in arms.items()} for arms in by_split.values()
    )
    for label, seeds in target_arms.items():
        low, high = _interval(list(seeds.values()), metric)
        runs = [result.run for result in seeds.values()]
        yield DomainRow(
            *identity,
            arm=label,
            seeds=len(seeds),
            metric=metric,
            target=target[label],
            low=low,
            high=high,
            gain=_gain(target, label, chosen),
            reference=chosen,
            source=source.get(label),
            retention=_retention(source, label, chosen),
            oracle=oracle.get(label),
            proxy_a_distance=_separability(runs, "after", "proxy_a_distance"),
            domain_accuracy=_separability(runs, "after", "domain_accuracy"),
            proxy_a_distance_before=_separability(runs, "before", "proxy_a_distance"),
            warnings=warning_kinds(runs),
        )


def class_rows(runs: Sequence[Run], split: str) -> list[ClassRow]:
    """One row for each run and class.

    Raises:
        DataError: a run that classified nothing on the split.
    """
    rows = []
    for run in runs:
        metrics = run.facts["metrics"].get(f"{split}.classes")
        if metrics is None:
            raise DataError(
                f"this run classified nothing on {split}", where=run.path, expected="a data set with labels"
            )
        rows += [
            ClassRow(run.name, run.dataset, run.label, run.facts["seed"], name.partition("/")[2], accuracy)
            for name, accuracy in metrics.items()
            if name.startswith("accuracy/")
        ]
    return rows


def _no_target(run: Run) -> DataError:
    return DataError(
        "this run has no target domain", where=run.path, expected="runs of ccaco train --target-domain NAME"
    )


def _stored(runs: Sequence[Run], split: str) -> Iterator[Result]:
    return (
        results.load_result(run, split) for run in runs if f"{split}.{run.facts['headline']}" in run.facts["metrics"]
    )


def _mean(seeds: Mapping[int, Result], metric: str) -> float | None:
    values = []
    for result in seeds.values():
        if metric not in result.metrics:
            raise ConfigError("no such metric", where=metric, expected=" | ".join(result.metrics))
        values.append(result.metrics[metric])
    return None if any(v is None for v in values) else float(np.mean([v for v in values if v is not None]))


def _gain(target: Means, arm: str, reference: str) -> float | None:
    value, baseline = target[arm], target[reference]
    return None if value is None or baseline is None else value - baseline


def _retention(source: Means, arm: str, reference: str) -> float | None:
    value, baseline = source.get(arm), source.get(reference)
    return value / baseline if value is not None and baseline else None


def _separability(runs: Sequence[Run], when: str, name: str) -> float | None:
    """Mean over runs of how well the domains can be separated (of the first modality), before or after training."""
    measured = [run.facts["domains"][when] for run in runs]
    values = [next(iter(by_modality.values()))[name] for by_modality in measured if by_modality]
    return float(np.mean(values)) if values else None


def _interval(seeds: Sequence[Result], metric: str) -> tuple[float | None, float | None]:
    """The 95 % interval over seeds and queries; (None, None) where the metric is no mean over queries."""
    try:
        estimate = significance.estimate([result.per_query(metric) for result in seeds])
    except (ConfigError, DataError):
        return None, None
    return estimate.low, estimate.high
