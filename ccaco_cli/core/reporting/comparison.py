"""How arms differ, and whether that can be told from chance: from stored per-query ranks alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from ccaco_cli.core.errors import DataError
from ccaco_cli.core.evaluation import significance
from ccaco_cli.core.evaluation.metric_table import METRICS, Shown, is_shown
from ccaco_cli.core.evaluation.significance import PerQuery
from ccaco_cli.core.experiments.fairness import check_fair
from ccaco_cli.core.scoring.results import (
    Result,
    Row,
    Run,
    aligned,
    by_arm,
    by_pool,
    comparable,
    mean_metrics,
    same_pool,
    strata,
)

Sections = tuple[Row, Row, Row]
"""A row in parts: what it is, its metrics, the evidence."""
FULL = "ccaco"
"""The arm that others are held against, when it is there."""


def arms(
    runs: Sequence[Run],
    *,
    split: str = "test",
    metric: str = "R-sum",
    reference: str | None = None,
    by: str | None = None,
    failed: Mapping[str, int] | None = None,
) -> list[Row]:
    """One row an arm (and data set, pool, and value of a stratum): its figures, and what speaks for a difference from the reference arm.

    metric     the one that is tested: ``R-sum``, ``text_to_image_R@1`` ...
    reference  the arm that others are held against; None = ccaco where it is there, else the first
    by         a stratum, such as ``things``; galleries stay whole, queries are divided. p is corrected over the arms of each value
    failed     label -> cells without a result, told in the rows
    Returns    means over seeds, fractions; ``low .. high`` covers what ``covers`` says, ``query_low .. query_high`` queries alone,
               ``seed_sd`` seeds alone; ``difference`` is arm minus reference over the seeds that both have
    Raises     DataError: different test pools, two runs of one arm and seed, no such arm, metric or stratum; ConfigError: as ``check_fair``
    """
    rows: list[Sections] = []
    for group in by_pool(runs, split).values():
        rows += _arms_of(group, metric, reference, by, failed or {})
    met = {row[0]["arm"] for row in rows}
    for label, n in (failed or {}).items():
        if label not in met:
            rows.append(
                ({"dataset": None, "pool": None, "arm": label, "seeds": 0}, {}, {"verdict": "failed", "failed": n})
            )
    return aligned(rows)


def pair(runs: Sequence[Run], split: str = "test") -> list[Row]:
    """Two runs side by side, one row a metric, paired by query; p corrected by Holm over the metrics, ``difference`` = second minus first.

    Raises DataError: other test pools
    """
    reference, other = comparable(runs, split)
    same_pool([reference, other])
    names = [
        f"{direction}_{m}"
        for direction in reference.evaluation.directions()
        for m, metric in METRICS.items()
        if Shown.COMPARE in metric.shown and metric.testable
    ]
    names += [name for name, metric in METRICS.items() if Shown.COMPARE in metric.shown and metric.sum_of]
    names += [
        f"{name}_accuracy"
        for name, outcomes in reference.items.items()
        if outcomes and other.items.get(name) and is_shown(f"{name}_accuracy", Shown.COMPARE)
    ]
    values = {name: (reference.per_query(name), other.per_query(name)) for name in names}
    found = _corrected({name: significance.compare([a], [b]) for name, (a, b) in values.items()})
    return [
        {
            "metric": name,
            "reference": _told(reference),
            "other": _told(other),
            "reference_value": a.mean,
            "other_value": b.mean,
        }
        | _evidence(found[name])
        for name, (a, b) in values.items()
    ]


def claim(
    runs: Sequence[Run], name: str, reference: str, metric: str, split: str = "test"
) -> list[tuple[str, str, str]]:
    """The verdict on ``name`` against ``reference``, once for each data set: (data set, verdict, figures in words).

    name, reference  arms, over the seeds that both have; or two runs by their names, whatever their seeds and budgets
    Returns          verdict ``better``, ``worse``, the words of ``significance.NOT_SEPARABLE``, or ``NaN`` where a figure is none
    Raises           DataError: no such arm or run, never on one data set, no common seed, different test pools;
                     ConfigError: no such metric, or as ``check_fair``
    """
    found = []
    chosen = {one: _named(runs, one) for one in (reference, name)}
    lone = not chosen.keys() & {run.label for run in runs}
    if not lone:
        check_fair({run.label: run.config for some in chosen.values() for run in some})
    shared = {run.dataset for run in chosen[reference]} & {run.dataset for run in chosen[name]}
    for dataset in sorted(shared):
        both = [[run for run in chosen[one] if run.dataset == dataset] for one in chosen]
        measured = comparable(both[0] + both[1], split)
        same_pool(measured)
        if any(value is None or value != value for r in measured for value in [r.metrics.get(metric, 0.0)]):
            found.append((dataset, "NaN", f"{metric} is not a number"))
            continue
        old, new = (next(iter(by_arm(part).values())) for part in (measured[: len(both[0])], measured[len(both[0]) :]))
        pairs = (
            list(zip(old, new, strict=False)) if lone else [(seed, seed) for seed in sorted(old.keys() & new.keys())]
        )
        if not pairs:
            raise DataError(
                "no seed in common", where=f"{name} and {reference} on {dataset}", expected="runs paired by seed"
            )
        seen = significance.compare(
            [old[a].per_query(metric) for a, _ in pairs], [new[b].per_query(metric) for _, b in pairs]
        )
        words = f"{metric} {seen.value:+.4g} [{seen.low:.4g}, {seen.high:.4g}], p = {seen.p:.2g}, {seen.covers}"
        found.append((dataset, seen.verdict, words))
    if not found:
        raise DataError("these two were never measured on the same data set", where=f"{name} and {reference}")
    return found


def _arms_of(
    group: list[Result], metric: str, reference: str | None, by: str | None, failed: Mapping[str, int]
) -> list[Sections]:
    labelled = by_arm(group)
    check_fair({label: next(iter(seeds.values())).run.config for label, seeds in labelled.items()})
    if reference and reference not in labelled and reference not in failed:
        raise DataError("no finished run of the reference arm", where=reference, expected=" | ".join(labelled))
    base = next(
        name for name in (reference, FULL, *labelled) if name in labelled
    )  # the column ``reference`` says which it became
    if not by:
        return _compared(labelled, metric, base, {}, failed)
    parts = {label: {seed: strata(one, by) for seed, one in seeds.items()} for label, seeds in labelled.items()}
    rows = []
    for value in next(iter(parts[base].values())):
        part = {label: {seed: one[value] for seed, one in seeds.items()} for label, seeds in parts.items()}
        rows += _compared(part, metric, base, {by: value}, failed)
    return rows


def _compared(
    labelled: Mapping[str, Mapping[int, Result]], metric: str, base: str, stratum: Row, failed: Mapping[str, int]
) -> list[Sections]:
    figures = {label: {seed: one.per_query(metric) for seed, one in seeds.items()} for label, seeds in labelled.items()}
    enough = len(next(iter(figures[base].values())).cluster) > 1  # one picture says nothing about others
    paired = {label: sorted(seeds.keys() & figures[base].keys()) for label, seeds in figures.items() if label != base}
    found = _corrected(
        {
            label: significance.compare([figures[base][s] for s in seeds], [figures[label][s] for s in seeds])
            for label, seeds in paired.items()
            if seeds and enough
        }
    )
    rows = []
    for label, seeds in labelled.items():
        results = list(seeds.values())
        queries = sum(len(ranks.rank) for pools in results[0].evaluation.directions().values() for ranks in pools)
        head: Row = {
            "dataset": results[0].dataset,
            "pool": results[0].pool,
            "arm": label,
            **stratum,
            "seeds": len(seeds),
            "queries": queries,
        }
        rest: Row = {"metric": metric} | _figure(list(figures[label].values()), enough)
        rest |= {"reference": base, "paired_seeds": len(paired.get(label, ()))}
        rest |= {
            f"difference_{k}" if k in ("low", "high", "covers") else k: v
            for k, v in _evidence(found.get(label)).items()
        }
        if label not in found:
            rest["verdict"] = "reference" if label == base else "no seed in common" if enough else "too few queries"
        spent = [one.run.facts["fitted"]["seconds"] for one in results if "fitted" in one.run.facts]
        warned = dict.fromkeys(w["kind"] for one in results for w in one.run.facts.get("warnings", ()))
        rest |= {
            "seconds": float(np.mean(spent)) if spent else None,
            "warnings": list(warned),
            "failed": failed.get(label, 0),
        }
        rows.append((head, mean_metrics(results), rest))
    return rows


def _figure(runs: Sequence[PerQuery], enough: bool) -> Row:
    if not enough:
        return {"value": float(np.mean([run.mean for run in runs]))} | dict.fromkeys(
            ("low", "high", "query_low", "query_high", "seed_sd", "covers")
        )
    found = significance.estimate(runs)
    shown = ("value", "low", "high", "query_low", "query_high", "seed_sd", "covers")
    return {name: getattr(found, name) for name in shown}


def _evidence(found: significance.Comparison | None) -> Row:
    shown = ("low", "high", "covers", "p", "p_holm", "effect", "verdict")
    return {"difference": found and found.value} | {name: found and getattr(found, name) for name in shown}


def _corrected(found: Mapping[str, significance.Comparison]) -> dict[str, significance.Comparison]:
    p = significance.holm([one.p for one in found.values()]) if found else ()
    return {name: replace(one, p_holm=float(value)) for (name, one), value in zip(found.items(), p, strict=True)}


def _told(one: Result) -> str:
    return one.run.name if one.run.path.is_file() else f"{one.run.name} ({one.stage})"


def _named(runs: Sequence[Run], name: str) -> list[Run]:
    found = [run for run in runs if run.label == name] or [run for run in runs if run.name == name]
    if not found:
        known = dict.fromkeys([*(run.label for run in runs), *(run.name for run in runs)])
        raise DataError("no such arm or run here", where=name, expected=" | ".join(known))
    return found
