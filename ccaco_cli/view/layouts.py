"""How each kind of report row is laid out for people: its columns, and which of them a narrow terminal shows.

CSV and JSON do not use this module; they hold every column of ``rows.as_dicts``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from ccaco_cli.core.evaluation.metric_table import Shown, find_metric, is_shown
from ccaco_cli.core.reporting.answer_table import AnswerRow
from ccaco_cli.core.reporting.breakdown_rows import ChoiceRow, ClassRow, LanguageRow
from ccaco_cli.core.reporting.calibration_table import CalibrationRow
from ccaco_cli.core.reporting.caption_table import CaptionRow
from ccaco_cli.core.reporting.rows import (
    ArmMeanRow,
    ArmRow,
    Cells,
    ComparisonRow,
    DomainRow,
    FaithfulnessRow,
    MixRow,
    ReportRow,
    RunRow,
    SplitRow,
)
from ccaco_cli.view import tables

SHARED = {
    "dataset": "{}",
    "pool": "pool {}",
    "sources": "sources {}",
    "target_domain": "target {}",
    "stage": "{} score",
    "reference": "compared with {}",
    "covers": "95 % intervals cover {}",
}
"""Column -> how the title of a table names it, where all rows agree; such a column is left out on a terminal."""
ALWAYS = ("arm", "seeds", "verdict", "split", "rejects")
"""Columns that stay although every row is empty."""
NARROW_METRICS = 3
"""Priority of metrics that are declared for narrow tables."""
RECALLS = {"*_R@1": 1, "*_R@10": 2, "*_R@5": 3}
RUN_DETAILS = ("seed", "weight", "parameters", "steps", "loss_total", "samples/s", "dataset")
"""Columns of a run that only CSV and JSON have."""


@dataclass(frozen=True)
class RowLayout:
    """The layout of one kind of row.

    Attributes:
        cells: row -> column name -> value, every column that people see.
        priority: pattern of column names -> when a terminal leaves these columns out: the highest number first, 0
            never. Columns that match no pattern are shown with ``--wide`` only.
        keys: columns that name the row; they are repeated when a wide table is split.
    """

    cells: Callable[[Any], Cells]
    priority: dict[str, int]
    keys: tuple[str, ...]

    def priority_of(self, column: str, row: ReportRow) -> int | None:
        """When a terminal leaves the column out; None = shown with ``--wide`` only."""
        stratum = getattr(row, "stratum", None)
        if stratum and column == stratum.name:
            return 0
        priority = next((p for pattern, p in self.priority.items() if fnmatchcase(column, pattern)), None)
        return NARROW_METRICS if priority is None and is_shown(column, Shown.NARROW) else priority


def layout_of(row: ReportRow) -> RowLayout:
    """The layout of a row's class."""
    return LAYOUTS[type(row)]


def columns_of(cells: Sequence[Cells]) -> list[str]:
    """The columns of a table in order, without those that are empty in every row."""
    names = dict.fromkeys(name for row in cells for name in row)
    return [name for name in names if name in ALWAYS or any(row.get(name) not in (None, "") for row in cells)]


def shared_values(cells: Sequence[Cells]) -> dict[str, Any]:
    """The columns of ``SHARED`` in which all rows agree, with their value."""
    values = {name: {row.get(name) for row in cells} - {None, ""} for name in SHARED}
    return {name: distinct.pop() for name, distinct in values.items() if len(distinct) == 1}


def shared_titles(cells: Sequence[Cells]) -> list[str]:
    """What all rows share, in words for a title."""
    return [SHARED[name].format(value) for name, value in shared_values(cells).items()]


def _run(row: RunRow | ArmMeanRow) -> Cells:
    cells = row.as_dict()
    hidden = RUN_DETAILS if isinstance(row, RunRow) else ()
    return {
        name: (value or None) if name == "warnings" else value
        for name, value in cells.items()
        if name not in hidden and (find_metric(name) is None or is_shown(name, Shown.RUNS))
    }


def _arm(row: ArmRow) -> Cells:
    """An arm with its evidence: value with interval, change with interval, p, and the verdict in words."""
    cells: Cells = {"dataset": row.dataset, "pool": row.pool, "arm": row.arm}
    if row.stratum:
        cells[row.stratum.name] = row.stratum.value
    cells["seeds"] = row.seeds
    evidence = row.evidence
    if evidence is None:
        return cells | {"verdict": row.verdict, "failed": row.failed or None}
    metric, difference, estimate = evidence.metric, evidence.comparison, evidence.estimate
    cells |= {name: value for name, value in row.metrics.items() if is_shown(name, Shown.ARMS) and name != metric}
    cells |= {metric: evidence.value, f"{metric} 95 %": _interval(metric, estimate)}
    cells |= {"covers": estimate and estimate.covers}
    change = difference and f"{_number(metric, difference.value, '+')} {_interval(metric, difference)}"
    cells |= {f"change against {evidence.reference}": change}
    cells |= {"p (Holm)": difference and difference.p_holm, "effect": difference and difference.effect}
    cells |= {"verdict": row.verdict, "seconds": evidence.seconds, "warnings": list(evidence.warnings) or None}
    return cells | {"failed": row.failed or None}


def _domain(row: DomainRow) -> Cells:
    metric = row.metric
    cells: Cells = {"dataset": row.dataset, "sources": row.sources, "target_domain": row.target_domain}
    cells |= {"arm": row.arm, "seeds": row.seeds}
    cells |= {f"target ({tables.short(metric)})": _number(metric, row.target), "95 %": _interval(metric, row)}
    cells |= {"gain": _number(metric, row.gain, "+"), "reference": row.reference}
    cells |= {"source": _number(metric, row.source)}
    cells |= {"retention": None if row.retention is None else f"{100 * row.retention:.0f} %"}
    cells |= {"oracle (chosen on the target)": _number(metric, row.oracle)}
    cells |= {"proxy_a_distance": row.proxy_a_distance, "domain_accuracy": row.domain_accuracy}
    cells |= {"proxy_a_distance_before": row.proxy_a_distance_before}
    return cells | {"warnings": list(row.warnings) or None}


def _comparison(row: ComparisonRow) -> Cells:
    metric, difference = row.metric, row.comparison
    cells: Cells = {"metric": tables.short(metric)}
    cells |= {f"A: {row.first_result}": _number(metric, row.first_value)}
    cells |= {f"B: {row.second_result}": _number(metric, row.second_value)}
    cells |= {"B - A": _number(metric, difference.value, "+"), "95 %": _interval(metric, difference)}
    cells |= {"covers": difference.covers, "p": difference.p, "p (Holm)": difference.p_holm}
    return cells | {"effect": difference.effect, "B is": difference.verdict}


def _choice(row: ChoiceRow) -> Cells:
    cells: Cells = {"run": row.run, "arm": row.arm, "stage": row.stage, "kind": row.kind, "items": row.items}
    cells |= {"choice_accuracy": row.accuracy, "95 %": _interval("choice_accuracy", row)}
    cells |= {"chance": _number("choice_accuracy", row.chance)}
    cells |= {"text_only_accuracy": row.text_only_accuracy, "shuffled_accuracy": row.shuffled_accuracy}
    return cells | {"bigram_accuracy": row.bigram_accuracy}


def _answer(row: AnswerRow) -> Cells:
    cells: Cells = {"run": row.run, "arm": row.arm, "kind": row.kind, "questions": row.questions}
    cells |= {"answer_accuracy": row.accuracy, "95 %": _interval("answer_accuracy", row)}
    return cells | {"blind_accuracy": row.blind_accuracy, "chance": _number("answer_accuracy", row.chance)}


def _caption(row: CaptionRow) -> Cells:
    cells = {name: value for name, value in row.as_dict().items() if name not in ("seed", "dataset", "beam")}
    if row.beam is not None:
        cells["captions"] = "greedy" if row.beam == 1 else f"beam {row.beam}"
    things = "" if row.things_named is None else f"{row.things_named:.2f}"
    return cells | {"things_named": things, "relation_named": _number("accuracy", row.relation_named)}


def _language(row: LanguageRow) -> Cells:
    return {name: value for name, value in row.as_dict().items() if name not in ("seed", "dataset")}


def _class(row: ClassRow) -> Cells:
    return {name: value for name, value in row.as_dict().items() if name not in ("seed", "dataset")}


def _calibration(row: CalibrationRow) -> Cells:
    return {name: value for name, value in row.as_dict().items() if name not in ("seed", "dataset")}


def _faithfulness(row: FaithfulnessRow) -> Cells:
    cells: Cells = {"run": row.run, "method": row.method, "measure": row.measure, "word": row.word}
    cells |= {"value": row.value, "95 %": _interval(row.measure, row, digits=2)}
    cells |= {"random": row.random, "centre": row.centre, "cases": row.cases}
    return cells | {"verdict": row.verdict}


def _mix(row: MixRow) -> Cells:
    """A mix: what it was chosen by, what it does on the data set of the run, and what is left of its start."""
    cells: Cells = {"run": row.run, "dataset": row.dataset, "mix": str(row.mix)}
    cells |= {name.replace("_", " "): value for name, value in row.r_sums.items()}
    cells |= {name: value for name, value in row.metrics.items() if is_shown(name, Shown.ARMS) and name != "R-sum"}
    metric = row.retained_metric
    cells |= {f"{row.retained_on} {tables.short(metric)}": _number(metric, row.retained)}
    if row.retained_two_stage is not None:
        cells |= {f"{row.retained_on} two-stage": _number(metric, row.retained_two_stage)}
    cells |= {"retention": None if row.retention is None else f"{100 * row.retention:.1f} %"}
    return cells | {"chosen": "chosen" if row.chosen else None}


def _split(row: SplitRow) -> Cells:
    cells: Cells = {"split": row.split, **row.counts}
    for measure, limits in row.ranges.items():
        if limits is None or limits[1] is None:
            continue
        low, mean, high = limits
        low_text, high_text = tables.text(measure, low), tables.text(measure, high)
        spread = "" if low_text == high_text else f" ({low_text} to {high_text})"
        cells[measure.replace("_", " ")] = f"{mean:.4g}{spread}"
    return cells | {"reasons": list(row.reasons), "protocol": row.protocol}


_SCORES = {"R-sum": 0, **RECALLS, "class_accuracy": 2, "seconds": 4, "warnings": 5, "failed": 5}
LAYOUTS: dict[type[ReportRow], RowLayout] = {
    RunRow: RowLayout(_run, {"run": 0, "stage": 1, **_SCORES, "arm": 6, "queries": 8}, ("run",)),
    ArmRow: RowLayout(
        _arm,
        {"dataset": 0, "pool": 0, "arm": 0, "verdict": 0, **_SCORES, "seeds": 6, "change against *": 7},
        ("arm",),
    ),
    ArmMeanRow: RowLayout(
        _run, {"dataset": 0, "pool": 0, "arm": 0, **_SCORES, "*_accuracy": 1, "seeds": 6, "*_seed_sd": 4}, ("arm",)
    ),
    DomainRow: RowLayout(
        _domain,
        {"dataset": 0, "sources": 0, "target_domain": 0, "arm": 0, "target (*": 0, "95 %": 1, "gain": 1, "warnings": 1}
        | {"source": 2, "retention": 2, "seeds": 5, "reference": 6},
        ("arm",),
    ),
    ComparisonRow: RowLayout(
        _comparison,
        {"metric": 0, "A: *": 0, "B: *": 0, "B - A": 0, "B is": 0, "95 %": 1, "p (Holm)": 2},
        ("metric",),
    ),
    ChoiceRow: RowLayout(
        _choice,
        {"run": 0, "kind": 0, "stage": 1, "*_accuracy": 1, "95 %": 1, "chance": 2, "items": 3, "arm": 6},
        ("run", "kind"),
    ),
    LanguageRow: RowLayout(
        _language,
        {"run": 0, "language": 0, **RECALLS, "*_agreement": 2, "stage": 3, "R-sum": 1, "captions": 4, "arm": 6},
        ("run", "language"),
    ),
    AnswerRow: RowLayout(
        _answer,
        {"run": 0, "kind": 0, "*_accuracy": 1, "95 %": 1, "chance": 1, "questions": 3, "arm": 6},
        ("run", "kind"),
    ),
    CaptionRow: RowLayout(
        _caption,
        {"run": 0, "captions": 0, "samples": 0, "n": 4, "BLEU-4": 3, "ROUGE-L": 2, "CIDEr-D": 1, "true_*": 1, "arm": 6}
        | {"*_named": 1},
        ("run", "captions", "samples"),
    ),
    ClassRow: RowLayout(_class, {"run": 0, "class": 0, "class_accuracy": 0, "arm": 6}, ("run", "class")),
    CalibrationRow: RowLayout(
        _calibration,
        {"run": 0, "probability": 0, "n": 2, "predicted": 0, "observed": 0, "ECE": 1, "Brier": 1}
        | {"accuracy": 3, "threshold": 4, "stage": 5, "arm": 6},
        ("run", "probability"),
    ),
    FaithfulnessRow: RowLayout(
        _faithfulness,
        {"run": 0, "method": 0, "measure": 0, "word": 0, "value": 0, "verdict": 0, "95 %": 1}
        | {"random": 2, "centre": 3, "cases": 4},
        ("run", "method", "measure"),
    ),
    MixRow: RowLayout(
        _mix,
        {"run": 5, "mix": 0, "val *": 1, "test *": 1, "chosen": 0, "retention": 0, "* R-sum": 1, "* two-stage": 4}
        | {"*_R@1": 3, "* class": 1, "* choice": 1},
        ("run", "mix"),
    ),
    SplitRow: RowLayout(_split, {}, ("split",)),
}
"""Class of row -> its layout."""


def _number(metric: str, value: float | None, sign: str = "") -> str:
    return "" if value is None else f"{100 * value if tables.percent(metric) else value:{sign}.1f}"


def _interval(metric: str, estimate: Any, digits: int = 1) -> str:
    """The 95 % interval of anything that has ``low`` and ``high``."""
    if estimate is None or estimate.low is None or estimate.high is None:
        return ""
    scale = 100 if tables.percent(metric) else 1
    return f"[{scale * estimate.low:.{digits}f}, {scale * estimate.high:.{digits}f}]"
