"""Prints the scores of given pairs while they are computed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from ccaco_cli.core.escape import printable
from ccaco_cli.view import tables
from ccaco_cli.view.streams import write_result

if TYPE_CHECKING:
    from ccaco_cli.core.experiments.pair_scores import PairModel
    from ccaco_cli.core.workflows.retrieve import ScoredRow

ROWS_AT_ONCE = 256
LISTED_REJECTS = 20
DIGITS = 4


def show(rows: Iterable[ScoredRow], format: str | None, *, match: bool, missing: bool) -> list[str]:
    """Prints one row for each pair. CSV, JSON and tables are written in parts, whatever the number of rows.

    Args:
        match: show the match logit, of a model with a cross branch.
        missing: show the words that are not shown by the picture.
    Returns:
        Notes: the first rejects, and how many pairs were scored and rejected, by reason.
    """
    format = format or tables.default_format()
    names = ("filepath", "title", "cosine", *(("match",) if match else ()), "score", "probability")
    names += (*(("missing",) if missing else ()), "problem")
    rejects: Counter[str] = Counter()
    lines: list[str] = []
    scored = 0

    def cells() -> Iterator[dict[str, Any]]:
        nonlocal scored
        for number, row in enumerate(rows, 1):
            problem = row.score.problem
            if problem:
                rejects[problem] += 1
                if len(lines) < LISTED_REJECTS:
                    lines.append(f"row {number}: {problem}: {printable(row.pair.path)}")
            scored += not problem
            yield _cells(row)

    if format == "json":
        for part in tables.json_parts(cells(), names):
            if not write_result(part):
                break
    elif format in ("csv", "table"):
        stream, header = cells(), True
        while batch := list(islice(stream, ROWS_AT_ONCE)):
            if not tables.show(batch, names, format, header=header):
                break
            header = False
    else:
        tables.show(list(cells()), names, format)
    total = sum(rejects.values())
    if total > len(lines):
        lines.append(f"... and {total - len(lines):,} more; the column problem says why")
    reasons = f" ({', '.join(f'{reason} {count:,}' for reason, count in rejects.items())})" if rejects else ""
    return [*lines, f"{scored + total:,} pairs: {scored:,} scored, {total:,} rejected{reasons}"]


def calibration_notes(model: PairModel, prior: float) -> list[str]:
    """What the probabilities rest on, or why there are none."""
    calibration = model.calibration
    if calibration is None:
        return ["no probability: this model was not scored on a validation split; --calibrate DATASET fits one"]
    return [
        f"probability: calibrated on {calibration.split} ({calibration.pairs:,} true pairs and as many others, half of "
        f"them alike), for {100 * prior:g} % true pairs; {calibration.threshold:.2f} separated them best there"
    ]


def _cells(row: ScoredRow) -> dict[str, Any]:
    score = row.score
    numbers = {name: getattr(score, name) for name in ("cosine", "match", "score", "probability")}
    cells = {name: None if value is None else round(value, DIGITS) for name, value in numbers.items()}
    missing = None if score.missing is None else list(score.missing)
    return {
        "filepath": row.pair.path,
        "title": row.pair.caption,
        **cells,
        "missing": missing,
        "problem": score.problem or None,
    }
