"""How arms differ, and whether a difference is more than chance: computed from stored per-query ranks alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ccaco_cli.core.errors import DataError
from ccaco_cli.core.evaluation import significance
from ccaco_cli.core.evaluation.metric_table import METRICS, Shown, is_shown, metric_of_items
from ccaco_cli.core.experiments.fairness import check_fair, same_for_every_seed
from ccaco_cli.core.reporting.rows import ArmEvidence, ArmRow, ComparisonRow, Stratum
from ccaco_cli.core.scoring.results import (
    Result,
    Run,
    by_arm,
    by_pool,
    comparable,
    mean_metrics,
    same_pool,
)
from ccaco_cli.core.scoring.strata import strata

DEFAULT_REFERENCE = "ccaco"
"""The arm that the others are compared with, where it is among them."""
NOT_A_NUMBER = "NaN"
"""The verdict where a metric is NaN."""


@dataclass(frozen=True)
class DatasetVerdict:
    """The verdict on one arm against another on one data set.

    Attributes:
        verdict: ``better``, ``worse``, the words of ``significance.NOT_SEPARABLE``, or ``NaN`` where a metric is NaN.
        summary: the difference, its interval and p, in words.
    """

    dataset: str
    verdict: str
    summary: str


def arm_rows(
    runs: Sequence[Run],
    *,
    split: str = "test",
    metric: str = "R-sum",
    reference: str | None = None,
    by: str | None = None,
    failed: Mapping[str, int] | None = None,
) -> list[ArmRow]:
    """One row for each arm (and data set, pool, and value of a stratum), with the evidence for a difference.

    Args:
        metric: the metric that is tested: ``R-sum``, ``text_to_image_R@1`` ...
        reference: the arm that the others are compared with; None = ``ccaco`` where it is there, else the first arm.
        by: a stratum, such as ``things``: queries are divided by it, galleries stay whole; p is corrected over the
            arms of each value.
        failed: arm -> number of runs that failed; shown in the rows.
    Returns:
        Means over seeds. The difference is arm minus reference over the seeds that both have.
    Raises:
        DataError: different test pools, two runs of one arm and seed, no such arm, metric or stratum.
        ConfigError: as ``check_fair``.
    """
    failed = failed or {}
    groups = by_pool(runs, split).values()
    rows = [row for group in groups for row in _rows_of_pool(group, metric, reference, by, failed)]
    finished = {row.arm for row in rows}
    return rows + [ArmRow(arm, failed=n) for arm, n in failed.items() if arm not in finished]


def comparison_rows(runs: Sequence[Run], split: str = "test") -> list[ComparisonRow]:
    """Two runs side by side, one row for each metric, paired by query; p corrected by Holm over the metrics.

    Raises:
        DataError: the test pools differ.
    """
    first, second = comparable(runs, split)
    same_pool([first, second])
    names = [
        f"{direction}_{metric}"
        for direction in first.evaluation.directions()
        for metric, entry in METRICS.items()
        if Shown.COMPARE in entry.shown and entry.testable
    ]
    names += [name for name, entry in METRICS.items() if Shown.COMPARE in entry.shown and entry.sum_of]
    names += [
        metric_of_items(name)
        for name, outcomes in first.items.items()
        if not name.endswith("_row")
        and outcomes
        and second.items.get(name)
        and is_shown(metric_of_items(name), Shown.COMPARE)
    ]
    values = {name: (first.per_query(name), second.per_query(name)) for name in names}
    comparisons = significance.corrected({name: significance.compare([a], [b]) for name, (a, b) in values.items()})
    labels = _result_name(first), _result_name(second)
    return [ComparisonRow(name, *labels, a.mean, b.mean, comparisons[name]) for name, (a, b) in values.items()]


def verdicts(runs: Sequence[Run], name: str, reference: str, metric: str, split: str = "test") -> list[DatasetVerdict]:
    """The verdict on ``name`` against ``reference``, one for each data set that both were measured on.

    Args:
        name, reference: arms, compared over the seeds that both have; or the names of two runs of any seed and budget.
    Raises:
        DataError: no such arm or run, no common data set, no common seed, different test pools.
        ConfigError: no such metric, or as ``check_fair``.
    """
    chosen = {label: _runs_named(runs, label) for label in (reference, name)}
    single_runs = not chosen.keys() & {run.label for run in runs}
    if not single_runs:
        check_fair({run.label: run.config for group in chosen.values() for run in group})
    shared = {run.dataset for run in chosen[reference]} & {run.dataset for run in chosen[name]}
    if not shared:
        raise DataError("these two were never measured on the same data set", where=f"{name} and {reference}")
    return [_verdict(chosen, dataset, metric, split, single_runs) for dataset in sorted(shared)]


def _verdict(
    chosen: Mapping[str, Sequence[Run]], dataset: str, metric: str, split: str, single_runs: bool
) -> DatasetVerdict:
    reference_runs, arm_runs = ([run for run in group if run.dataset == dataset] for group in chosen.values())
    measured = comparable([*reference_runs, *arm_runs], split)
    same_pool(measured)
    values = [result.metrics.get(metric, 0.0) for result in measured]
    if any(value is None or value != value for value in values):
        return DatasetVerdict(dataset, NOT_A_NUMBER, f"{metric} is not a number")
    count = len(reference_runs)
    old, new = (next(iter(by_arm(part).values())) for part in (measured[:count], measured[count:]))
    pairs = list(zip(old, new, strict=False)) if single_runs else [(s, s) for s in sorted(old.keys() & new.keys())]
    if not pairs:
        reference, name = chosen
        where = f"{name} and {reference} on {dataset}"
        raise DataError("no seed in common", where=where, expected="runs paired by seed")
    difference = significance.compare(
        [old[a].per_query(metric) for a, _ in pairs], [new[b].per_query(metric) for _, b in pairs]
    )
    interval = f"{difference.value:+.4g} [{difference.low:.4g}, {difference.high:.4g}]"
    summary = f"{metric} {interval}, p = {difference.p:.2g}, {difference.covers}"
    return DatasetVerdict(dataset, difference.verdict, summary)


def _rows_of_pool(
    group: Sequence[Result], metric: str, reference: str | None, by: str | None, failed: Mapping[str, int]
) -> list[ArmRow]:
    arms = by_arm(group)
    check_fair({label: next(iter(seeds.values())).run.config for label, seeds in arms.items()})
    if reference and reference not in arms and reference not in failed:
        raise DataError("no finished run of the reference arm", where=reference, expected=" | ".join(arms))
    # the row's column ``reference`` says which arm was chosen
    reference = next(name for name in (reference, DEFAULT_REFERENCE, *arms) if name in arms)
    if not by:
        return _compared(arms, metric, reference, failed)
    parts = {label: {seed: strata(result, by) for seed, result in seeds.items()} for label, seeds in arms.items()}
    rows = []
    for value in next(iter(parts[reference].values())):
        part = {label: {seed: by_value[value] for seed, by_value in seeds.items()} for label, seeds in parts.items()}
        rows += _compared(part, metric, reference, failed, Stratum(by, value))
    return rows


def _compared(
    arms: Mapping[str, Mapping[int, Result]],
    metric: str,
    reference: str,
    failed: Mapping[str, int],
    stratum: Stratum | None = None,
) -> list[ArmRow]:
    values = {
        label: {seed: result.per_query(metric) for seed, result in seeds.items()} for label, seeds in arms.items()
    }
    all_seeds = {seed: None for seeds in values.values() for seed in seeds}
    for label, seeds in arms.items():
        first_seed, first_result = next(iter(seeds.items()))
        if same_for_every_seed(first_result.run.config):  # one run stands for all seeds
            values[label] = dict.fromkeys(all_seeds, values[label][first_seed])
    enough = len(next(iter(values[reference].values())).cluster) > 1  # one image has no spread between images
    paired = {label: sorted(seeds.keys() & values[reference].keys()) for label, seeds in values.items()}
    del paired[reference]
    comparisons = significance.corrected(
        {
            label: significance.compare([values[reference][s] for s in seeds], [values[label][s] for s in seeds])
            for label, seeds in paired.items()
            if seeds and enough
        }
    )
    rows = []
    for label, seeds in arms.items():
        results = list(seeds.values())
        comparison = comparisons.get(label)
        if comparison:
            verdict = comparison.verdict
        elif label == reference:
            verdict = "reference"
        else:
            verdict = "no seed in common" if enough else "too few queries"
        per_seed = [values[label][seed] for seed in seeds]
        estimate = significance.estimate(per_seed) if enough else None
        value = estimate.value if estimate else float(np.mean([values_of_seed.mean for values_of_seed in per_seed]))
        seconds = [r.run.facts["fitted"]["seconds"] for r in results if "fitted" in r.run.facts]
        evidence = ArmEvidence(
            metric=metric,
            value=value,
            estimate=estimate,
            reference=reference,
            paired_seeds=len(paired.get(label, ())),
            comparison=comparison,
            verdict=verdict,
            seconds=float(np.mean(seconds)) if seconds else None,
            warnings=warning_kinds([result.run for result in results]),
        )
        row = ArmRow(
            arm=label,
            dataset=results[0].dataset,
            pool=results[0].pool,
            seeds=len(seeds),
            queries=count_queries(results[0]),
            stratum=stratum,
            metrics=mean_metrics(results),
            evidence=evidence,
            failed=failed.get(label, 0),
        )
        rows.append(row)
    return rows


def count_queries(result: Result) -> int:
    """Number of queries of a result, both directions and all pools."""
    return sum(len(ranks.rank) for pools in result.evaluation.directions().values() for ranks in pools)


def warning_kinds(runs: Sequence[Run]) -> list[str]:
    """The kinds of warnings of some runs, each once."""
    return list(dict.fromkeys(warning["kind"] for run in runs for warning in run.facts.get("warnings", ())))


def _result_name(result: Result) -> str:
    return result.run.name if result.run.path.is_file() else f"{result.run.name} ({result.stage})"


def _runs_named(runs: Sequence[Run], name: str) -> list[Run]:
    chosen = [run for run in runs if run.label == name] or [run for run in runs if run.name == name]
    if not chosen:
        known = dict.fromkeys([*(run.label for run in runs), *(run.name for run in runs)])
        raise DataError("no such arm or run here", where=name, expected=" | ".join(known))
    return chosen
