"""The tables that a report can show, from stored results."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ccaco_cli.core.errors import ConfigError, DataError, nearest
from ccaco_cli.core.evaluation import significance
from ccaco_cli.core.evaluation.metric_table import LANGUAGE_AGREEMENT, Shown, check_metric, find_metric, is_shown
from ccaco_cli.core.evaluation.significance import PerQuery
from ccaco_cli.core.losses.parts import LOSS_PARTS, TOTAL, listed_parts
from ccaco_cli.core.reporting import comparison, domain_tables
from ccaco_cli.core.reporting.answer_table import AnswerRow, answer_rows
from ccaco_cli.core.reporting.breakdown_rows import ChoiceRow, ClassRow, LanguageRow
from ccaco_cli.core.reporting.calibration_table import CalibrationRow, calibration_rows
from ccaco_cli.core.reporting.caption_table import CaptionRow, caption_rows
from ccaco_cli.core.reporting.rows import (
    ArmMeanRow,
    ArmRow,
    ComparisonRow,
    DomainRow,
    FaithfulnessRow,
    ReportRow,
    RunCost,
    RunRow,
    Stratum,
)
from ccaco_cli.core.reporting.training_log import read_log
from ccaco_cli.core.scoring import results
from ccaco_cli.core.scoring.results import Result, Run, by_arm, by_pool, mean_metrics
from ccaco_cli.core.scoring.run_splits import measured_runs
from ccaco_cli.core.scoring.strata import strata, strata_names

WHOLE_GALLERY_STAGES = ("cosine", "two-stage", "cross")
"""The stages that are measured on the whole gallery. The small pool exists for arms that have no other result."""
DEFAULT_METRIC = "R-sum"
PER_CHOICE = "choice_"
"""Prefix of the outcomes of choices between captions."""
CHANCE = {f"choice_winoground_{kind}": chance for kind, chance in (("text", 1 / 4), ("image", 1 / 4), ("group", 1 / 6))}
"""Accuracy of a blind draw, for choices that are not between two."""
SWAPPED = "binding_"
"""Prefix of the outcomes of choices between a caption and its swapped twin, by what is swapped."""


@dataclass(frozen=True)
class ReportRequest:
    """What a report is about.

    Attributes:
        paths: runs, ablations, folders that hold runs, or result files.
        split: the split whose results are shown.
        stages: True shows every stage of a run, not only the score by which it ranks.
        by: a stratum by which queries are divided, such as ``things``.
        metric: the metric that is tested in the table of an ablation.
        reference: the arm that the others are compared with; None = ``ccaco`` where it is there, else the first arm.
    """

    paths: Sequence[Path]
    split: str = "test"
    stages: bool = False
    by: str | None = None
    metric: str = DEFAULT_METRIC
    reference: str | None = None

    def __post_init__(self) -> None:
        """Raises ConfigError: no such metric. Every table refuses it, also those that do not use it."""
        check_metric(self.metric)

    def runs(self) -> list[Run]:
        """The finished runs at the paths. Raises DataError: there are none."""
        return results.find_runs(self.paths)

    def measured_runs(self) -> list[Run]:
        """The runs with results on the split. Raises DataError: there are none."""
        return measured_runs(self.runs(), self.split)

    @property
    def where(self) -> str:
        """The paths, for messages."""
        return ", ".join(map(str, self.paths))


def table(request: ReportRequest, name: str | None = None) -> Sequence[ReportRow]:
    """The rows of a table of ``TABLES``.

    Args:
        name: None chooses ``ablation`` where every path is one, else the table that the results name, else ``runs``.
    Raises:
        ConfigError: no such table.
        DataError: no results, or results that cannot be compared.
    """
    if name is None:
        only_ablations = results.only_ablations(request.paths) and not request.stages
        name = "ablation" if only_ablations else results.default_table(request.paths) or "runs"
    if name not in TABLES:
        raise ConfigError("no such table", where=name, expected=" | ".join(TABLES))
    _check_names(request)
    return TABLES[name](request)


def _check_names(request: ReportRequest) -> None:
    """Refuses a metric, reference or stratum that no result has, also for tables that do not use it."""
    runs = request.runs()
    metrics = {name for run in runs for values in run.facts["metrics"].values() for name in values}
    declared = find_metric(request.metric)
    # a metric that is not stored, such as text_to_image_R@3, is computed from the same ranks as R@1
    stored = request.metric if declared and declared.stored else f"{request.metric.rpartition('_')[0]}_R@1"
    if stored not in {*metrics, DEFAULT_METRIC}:
        known, hint = sorted(metrics), nearest(stored, metrics)
        raise ConfigError(
            "these results have no such metric", where=request.metric, expected=" | ".join(known), next=hint
        )
    labels = {*(run.label for run in runs), *results.failed_cells(request.paths)}
    if request.reference is not None and request.reference not in labels:
        raise DataError(
            "no finished run of the reference arm",
            where=request.reference,
            expected=" | ".join(sorted(labels)),
            next=nearest(request.reference, labels),
        )
    if request.by is not None:
        measured = [results.load_result(run, request.split) for run in request.measured_runs()]
        strata_known = {name for result in measured for name in strata_names(result)}
        if request.by not in strata_known:
            raise DataError(
                "these results have no such stratum",
                where=request.by,
                expected=f"strata: {' | '.join(sorted(strata_known)) or 'none in these results'}",
                next=nearest(request.by, strata_known),
            )


def run_rows(paths: Iterable[Path], *, split: str = "test", every_stage: bool = False) -> list[RunRow]:
    """One row for each run (and stage, with ``every_stage``): what it is, its metrics (fractions), and its cost.

    Args:
        paths: run folders, ablation folders, folders that hold runs, or result files.
        split: runs without results on it have one row without metrics.
    Raises:
        DataError: no run has results on the split.
    """
    runs = results.find_runs(paths)
    measured_runs(runs, split)
    rows = [row for run in runs for row in _rows_of_run(run, split, every_stage)]
    shown = (*listed_parts(name for row in rows for name in row.losses), TOTAL)
    return [replace(row, losses={f"loss_{name}": row.losses.get(name) for name in shown}) for row in rows]


def domain_embeddings(request: ReportRequest) -> list[tuple[str, dict[str, Any]]]:
    """(run name, its stored embeddings of both domains before and after training) for each run.

    Raises:
        DataError: a run without a target domain.
    """
    return [(run.name, domain_tables.read_domain_embeddings(run)) for run in request.runs()]


def _runs(request: ReportRequest) -> list[RunRow]:
    if not request.by:
        return run_rows(request.paths, split=request.split, every_stage=request.stages)
    rows = []
    for run in request.measured_runs():
        for stage in _stages(run, request.split, request.stages):
            for value, part in strata(results.load_result(run, request.split, stage), request.by).items():
                stratum = Stratum(request.by, value)
                queries = comparison.count_queries(part)
                rows.append(_run_row(run, stage, dict(part.metrics), stratum=stratum, queries=queries))
    return rows


def _retrieval(request: ReportRequest) -> list[ArmMeanRow]:
    return _arm_means(request, lambda name: is_shown(name, Shown.RETRIEVAL), "R-sum")


def _matching(request: ReportRequest) -> list[ArmMeanRow]:
    return _arm_means(request, lambda name: is_shown(name, Shown.MATCHING), None)


def _arm_means(request: ReportRequest, shown: Callable[[str], bool], spread_metric: str | None) -> list[ArmMeanRow]:
    """One row for each data set, pool and arm: means over seeds of the metrics that are ``shown``."""
    rows = []
    for (dataset, pool), group in by_pool(request.measured_runs(), request.split).items():
        for arm, seeds in by_arm(group).items():
            metrics = {name: value for name, value in mean_metrics(seeds.values()).items() if shown(name)}
            spread = _seed_sd(list(seeds.values()), spread_metric) if spread_metric else None
            rows.append(ArmMeanRow(dataset, pool, arm, len(seeds), metrics, spread_metric, spread))
    if not any(row.metrics for row in rows):
        raise DataError("these runs have no such figures", where=request.where, expected="runs that measured them")
    return rows


def _seed_sd(seeds: Sequence[Result], metric: str) -> float | None:
    values = np.array([result.metrics[metric] for result in seeds], float)
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def _choices(request: ReportRequest) -> list[ChoiceRow]:
    """One row for each run and kind of choice, one for the mean over the kinds of a part, and over all kinds; swapped
    twins by what is swapped and by relation.
    """
    rows = []
    for run in request.measured_runs():
        for stage in _stages(run, request.split, request.stages):
            result = results.load_result(run, request.split, stage)
            swapped = _kinds(result, SWAPPED)
            rows += [_choice_row(run, stage, result, name, [name]) for name in [*swapped, *_kinds(result, "binding")]]
            if swapped and "relation" in result.strata:
                for relation, part in strata(result, "relation").items():
                    names = [name for name in swapped if part.items.get(name)]
                    rows += [_choice_row(run, stage, part, name, [name], f"/{relation}") for name in names]
            kinds = _kinds(result, PER_CHOICE)
            rows += [_choice_row(run, stage, result, kind, [kind]) for kind in kinds]
            means: dict[str, list[str]] = {}  # PREFIX_PART of kinds PART/NAME, and of all kinds
            for kind in kinds:
                if "/" in kind:
                    means.setdefault(kind.partition("/")[0], []).append(kind)
            means |= {"choice": kinds} if "choice_accuracy" in result.metrics else {}
            rows += [_choice_row(run, stage, result, name, members) for name, members in means.items()]
    if not rows:
        raise DataError(
            "these results have no choices", where=request.where, expected="--on a data set such as sugarcrepe"
        )
    return rows


def _kinds(result: Result, prefix: str) -> list[str]:
    """Names of the choices that begin with a prefix and are stored one by one."""
    names = [name.removesuffix("_row") for name in result.items if name.endswith("_row")]
    return [name for name in names if name.startswith(prefix) and (prefix.endswith("_") or name == prefix)]


def _choice_row(
    run: Run, stage: str, result: Result, name: str, kinds: Sequence[str], part_name: str = ""
) -> ChoiceRow:
    metric, interval = f"{name}_accuracy", None
    if len({row for kind in kinds for row in result.items[f"{kind}_row"]}) > 1:
        interval = significance.estimate([_mean_over_kinds(result, kinds)])
    return ChoiceRow(
        run=run.name,
        dataset=run.dataset,
        arm=run.label,
        seed=run.facts["seed"],
        stage=stage,
        kind=("mean" if name == "choice" else name.removeprefix(PER_CHOICE)) + part_name,
        items=sum(len(result.items[kind]) for kind in kinds),
        accuracy=interval.value if interval else result.metrics.get(metric),
        low=interval.low if interval else None,
        high=interval.high if interval else None,
        chance=CHANCE.get(name, 1 / 2),
        text_only_accuracy=result.metrics.get(f"{name}_text_only_accuracy"),
        shuffled_accuracy=result.metrics.get(f"{name}_shuffled_accuracy"),
        bigram_accuracy=result.metrics.get(f"{name}_bigram_accuracy"),
    )


def _mean_over_kinds(result: Result, kinds: Sequence[str]) -> PerQuery:
    """The outcomes of choices, weighted so that their mean is the mean over kinds."""
    sizes = [len(result.items[kind]) for kind in kinds]
    weights = np.repeat([sum(sizes) / (len(kinds) * size) for size in sizes], sizes)
    outcomes, rows = (np.concatenate([result.items[f"{kind}{suffix}"] for kind in kinds]) for suffix in ("", "_row"))
    return PerQuery.of(outcomes * weights, rows)


def _languages(request: ReportRequest) -> list[LanguageRow]:
    """One row for each run and language, and one for the mean over languages."""
    rows = []
    for run in request.measured_runs():
        for stage in _stages(run, request.split, request.stages):
            result = results.load_result(run, request.split, stage)
            identity = (run.name, run.dataset, run.label, run.facts["seed"], stage)
            parts = result.evaluation.metrics_of_pools() if result.evaluation.pool_names else {}
            for (language, metrics), sizes in zip(parts.items(), result.evaluation.pools, strict=bool(parts)):
                rows.append(LanguageRow(*identity, language, *sizes, metrics))
            if parts:
                shown = {LANGUAGE_AGREEMENT, *(name for metrics in parts.values() for name in metrics)}
                mean = {name: value for name, value in result.metrics.items() if name in shown}
                rows.append(LanguageRow(*identity, "mean", None, None, mean))
    if not rows:
        raise DataError(
            "these results have no languages", where=request.where, expected="--on a data set such as crossmodal-3600"
        )
    return rows


def arm_rows(request: ReportRequest) -> list[ArmRow]:
    """One row for each arm, with the evidence for a difference from the reference arm."""
    return comparison.arm_rows(
        request.measured_runs(),
        split=request.split,
        metric=request.metric,
        reference=request.reference,
        by=request.by,
        failed=results.failed_cells(request.paths),
    )


def _domains(request: ReportRequest) -> list[DomainRow]:
    return domain_tables.domain_rows(request.runs(), request.metric, request.reference)


def _calibration(request: ReportRequest) -> list[CalibrationRow]:
    return calibration_rows(request.measured_runs(), request.split, request.stages)


def _classes(request: ReportRequest) -> list[ClassRow]:
    return domain_tables.class_rows(request.measured_runs(), request.split)


def _compare(request: ReportRequest) -> list[ComparisonRow]:
    # each path by itself: comparing a run with itself is two runs, not one
    runs = [run for path in request.paths for run in results.find_runs([path])]
    if len(runs) != 2:
        raise DataError(f"{len(runs)} runs to compare", where=request.where, expected="two runs, or two results of one")
    return comparison.comparison_rows(runs, request.split)


def _faithfulness(request: ReportRequest) -> list[FaithfulnessRow]:
    from ccaco_cli.core.reporting import faithfulness  # loads torch, which tables of stored results do not need

    return [row for run in request.measured_runs() for row in faithfulness.faithfulness_table(run, request.split)]


def _captions(request: ReportRequest) -> list[CaptionRow]:
    return caption_rows(request.runs(), request.split)


def _answers(request: ReportRequest) -> list[AnswerRow]:
    return answer_rows(request.runs(), request.split)


TABLES: dict[str, Callable[[ReportRequest], Sequence[ReportRow]]] = {
    "runs": _runs,
    "retrieval": _retrieval,
    "matching": _matching,
    "choices": _choices,
    "languages": _languages,
    "ablation": arm_rows,
    "domains": _domains,
    "classes": _classes,
    "calibration": _calibration,
    "compare": _compare,
    "faithfulness": _faithfulness,
    "captions": _captions,
    "answers": _answers,
}


def _rows_of_run(run: Run, split: str, every_stage: bool) -> list[RunRow]:
    facts = run.facts
    losses = _last_losses(run.path)
    cost = RunCost(facts.get("parameters"))
    if fitted := facts.get("fitted"):
        rate, memory = fitted["samples_per_second"], fitted["memory"]
        cost = RunCost(cost.parameters, fitted["steps"], fitted["seconds"], rate, memory, fitted=True)
    warnings = comparison.warning_kinds([run])
    return [
        _run_row(
            run, stage, dict(facts["metrics"].get(f"{split}.{stage}", {})), losses=losses, cost=cost, warnings=warnings
        )
        for stage in _stages(run, split, every_stage)
    ]


def _run_row(run: Run, stage: str, metrics: dict[str, float | None], **columns: Any) -> RunRow:
    weight = run.facts.get("weight") if stage == "two-stage" else None
    return RunRow(run.name, run.dataset, run.label, run.facts["seed"], stage, weight, metrics, **columns)


def _stages(run: Run, split: str, every_stage: bool) -> list[str]:
    stages = [name.partition(".")[2] for name in run.facts["metrics"] if name.startswith(f"{split}.")]
    headline = run.facts["headline"]
    if not stages:
        return [headline]
    return [stage for stage in stages if stage in (headline, *WHOLE_GALLERY_STAGES)] if every_stage else [headline]


def _last_losses(run: Path) -> dict[str, float | None]:
    """Name of each logged loss -> its last value."""
    losses: dict[str, float | None] = {}
    for entry in read_log(run):
        losses |= {name: entry[name] for name in (*LOSS_PARTS, TOTAL) if name in entry}
    return losses
