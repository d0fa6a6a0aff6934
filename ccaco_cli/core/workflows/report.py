"""``ccaco report``: what finished runs measured, as tables; and gates for CI."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ccaco_cli.core.data.domains import SOURCE_TEST
from ccaco_cli.core.errors import ConfigError, GateError
from ccaco_cli.core.evaluation.significance import BETTER, WORSE
from ccaco_cli.core.reporting import comparison
from ccaco_cli.core.reporting.report_tables import ReportRequest, run_rows
from ccaco_cli.core.reporting.rows import as_dicts
from ccaco_cli.core.scoring import results

_GATE = re.compile(r"\s*([\w@:./-]+)\s*(<=|>=|<|>|==)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*")
_CLAIM = re.compile(r"\s*(\S+)\s+(not\s+)?(better|worse)\s+than\s+(\S+)\s+on\s+(\S+)\s*")
_COMPARE = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq}


def scored_on(metrics: Mapping[str, object]) -> str:
    """The split that a run's figures are of: ``test``, or what stands in for it where nothing there could be scored."""
    met = {name.partition(".")[0] for name in metrics}
    return next(name for name in ("test", SOURCE_TEST, "val") if name in met)


def runs_of(path: Path) -> list[Path]:
    """The finished runs at a path. Raises DataError when there are none."""
    return [run.path for run in results.find_runs([path])]


def broken(asked: ReportRequest, gates: Iterable[str]) -> list[str]:
    """The conditions that hold, as lines to print: ``text_to_image_R@1<0.40`` (for any run; NaN fails every gate), or
    ``ccaco not better than clip on text_to_image_R@1`` (arms by name over their common seeds, or two runs by name).

    Raises GateError: cannot be read, or names what is not there; DataError: results that cannot be compared
    """
    lines: list[str] = []
    for gate in gates:
        if claim := _CLAIM.fullmatch(gate):
            lines += _claimed(asked, gate, *claim.groups())
        else:
            lines += failed(as_dicts(run_rows(asked.paths, split=asked.split, every_stage=asked.stages)), gate)
    return lines


def failed(table: Sequence[Mapping[str, object]], gate: str) -> list[str]:
    """The rows for which a condition such as ``text_to_image_R@1<0.40`` holds, as lines to print; NaN fails every gate.

    Raises GateError: cannot be read, or names a column that is not there
    """
    found = _GATE.fullmatch(gate)
    if not found:
        expected = "METRIC<NUMBER, for example 'text_to_image_R@1<0.40', or 'ARM not better than ARM on METRIC'"
        raise GateError("cannot read this condition", where=gate, expected=expected)
    name, sign, number = found.groups()
    lines = []
    for row in table:
        value = row.get(name)
        if name not in row or not (value is None or isinstance(value, int | float)):
            numbers = ", ".join(k for k, v in row.items() if isinstance(v, int | float))
            raise GateError(f"no column {name}", where=gate, expected=numbers)
        if value is None or value != value or _COMPARE[sign](value, float(number)):
            lines.append(f"{row['run']}: {name} = {value} ({gate})")
    return lines


def _claimed(
    asked: ReportRequest, gate: str, name: str, no: str | None, word: str, reference: str, metric: str
) -> list[str]:
    try:
        verdicts = comparison.verdicts(results.find_runs(asked.paths), name, reference, metric, asked.split)
    except ConfigError as error:
        raise GateError(error.what, where=gate, expected=error.expected, next=error.next) from None
    wanted = BETTER if word == "better" else WORSE
    return [
        f"{name} against {reference} on {result.dataset}: {result.verdict}; {result.summary} ({gate})"
        for result in verdicts
        if result.verdict == comparison.NOT_A_NUMBER or (result.verdict == wanted) != bool(no)
    ]
