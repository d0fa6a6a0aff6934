"""``ccaco report``: gates for continuous integration. The tables are made in ``reporting``."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Mapping, Sequence

from ccaco_cli.core.errors import ConfigError, GateError
from ccaco_cli.core.evaluation.significance import BETTER, WORSE
from ccaco_cli.core.reporting import comparison
from ccaco_cli.core.reporting.report_tables import ReportRequest, run_rows, table
from ccaco_cli.core.reporting.rows import MixRow, as_dicts
from ccaco_cli.core.scoring import results
from ccaco_cli.core.scoring.run_splits import REPORTED

_METRIC_GATE = re.compile(r"\s*([\w@:./-]+)\s*(<=|>=|<|>|==)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*")
_COMPARISON_GATE = re.compile(r"\s*(\S+)\s+(not\s+)?(better|worse)\s+than\s+(\S+)\s+on\s+(\S+)\s*")
_COMPARE = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq}


def scored_split(metrics: Mapping[str, object]) -> str:
    """The split that the metrics of a run come from: ``test``, or ``test-source`` or ``val`` where test could not be
    scored.
    """
    splits = {name.partition(".")[0] for name in metrics}
    return next(name for name in REPORTED if name in splits)


def failed_gates(request: ReportRequest, gates: Iterable[str]) -> list[str]:
    """Checks gates; returns a line for each run or arm that fails one.

    A gate is the condition of a failure: ``text_to_image_R@1<0.40`` (for any run, and with ``--by`` also for any part
    of its queries; NaN always fails), or
    ``ccaco not better than clip on text_to_image_R@1`` (arms over their common seeds, or two runs by name).

    Raises:
        GateError: a gate cannot be read, or names an unknown metric.
        DataError: results that cannot be compared.
    """
    lines: list[str] = []
    for gate in gates:
        if comparison_gate := _COMPARISON_GATE.fullmatch(gate):
            lines += _failed_comparisons(request, gate, comparison_gate)
        else:
            rows = as_dicts(run_rows(request.paths, split=request.split, every_stage=request.stages))
            lines += failed_rows(rows, gate)
            lines += _failed_parts(request, gate) if request.by else []
    return lines


def failed_mixes(chosen: Sequence[MixRow], gates: Iterable[str]) -> list[str]:
    """A line for each chosen mix that fails a gate such as ``retention<0.97``.

    Raises:
        GateError: as ``failed_rows``.
    """
    return [line for gate in gates for line in failed_rows(as_dicts(chosen), gate)]


def failed_rows(rows: Sequence[Mapping[str, object]], gate: str) -> list[str]:
    """A line for each row on which a condition such as ``text_to_image_R@1<0.40`` holds; NaN always fails.

    Raises:
        GateError: the condition cannot be read, or there is no such numeric column.
    """
    condition = _METRIC_GATE.fullmatch(gate)
    if not condition:
        expected = "METRIC<NUMBER, for example 'text_to_image_R@1<0.40', or 'ARM not better than ARM on METRIC'"
        raise GateError("cannot read this condition", where=gate, expected=expected)
    name, operation, number = condition.groups()
    lines = []
    for row in rows:
        value = row.get(name)
        if name not in row or not (value is None or isinstance(value, int | float)):
            numbers = ", ".join(k for k, v in row.items() if isinstance(v, int | float))
            raise GateError(f"no column {name}", where=gate, expected=numbers)
        if value is None or value != value or _COMPARE[operation](value, float(number)):
            lines.append(f"{row['run']}: {name} = {value} ({gate})")
    return lines


def _failed_parts(request: ReportRequest, gate: str) -> list[str]:
    """As ``failed_rows``, for the parts of the queries that have the metric."""
    condition = _METRIC_GATE.fullmatch(gate)
    rows = as_dicts(table(request, "runs"))
    parts = [{**row, "run": f"{row['run']} ({request.by} {row[request.by]})"} for row in rows if request.by]
    return failed_rows([part for part in parts if condition and condition[1] in part], gate)


def _failed_comparisons(request: ReportRequest, gate: str, condition: re.Match[str]) -> list[str]:
    name, negated, word, reference, metric = condition.groups()
    try:
        verdicts = comparison.verdicts(results.find_runs(request.paths), name, reference, metric, request.split)
    except ConfigError as error:
        raise GateError(error.what, where=gate, expected=error.expected, next=error.next) from None
    verdict = BETTER if word == "better" else WORSE
    return [
        f"{name} against {reference} on {result.dataset}: {result.verdict}; {result.summary} ({gate})"
        for result in verdicts
        if result.verdict == comparison.NOT_A_NUMBER or (result.verdict == verdict) != bool(negated)
    ]
