"""Rows as a table on the terminal, CSV, JSON, Markdown or LaTeX."""

from __future__ import annotations

import csv
import io
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ccaco_cli.core import escape
from ccaco_cli.core.evaluation.metric_table import is_fraction
from ccaco_cli.view import terminal_table
from ccaco_cli.view.streams import write_result
from ccaco_cli.view.terminal_table import TerminalColumn

_RAW_CONTROLS = {code: f"\\u{code:04x}" for code in range(0x7F, 0xA0)}
"""Control characters that JSON would let through to a terminal."""
FORMATS = ("table", "csv", "json", "markdown", "latex")
Row = Mapping[str, Any]
HEADINGS = {
    "seconds": "time (s)",
    "steps": "training (steps)",
    "memory_MiB": "memory (MiB)",
    "available_MiB": "available (MiB)",
    "target_domain": "target domain",
    "class_accuracy": "class accuracy",
    "proxy_a_distance": "proxy A-distance",
    "proxy_a_distance_before": "proxy A-distance before training",
    "R-sum_seed_sd": "R-sum sd over seeds",
}
"""Column -> its heading, where that is more than its name."""
PROSE = ("verdict", "B is", "warnings", "reasons", "protocol", "text", "expects", "what")
"""Columns of sentences, which may be broken between words."""


def default_format() -> str:
    """A table on a terminal, CSV in a pipe."""
    return "table" if sys.stdout.isatty() else "csv"


def show(
    rows: Sequence[Row],
    columns: Sequence[str],
    format: str | None = None,
    title: str | None = None,
    *,
    header: bool = True,
) -> bool:
    """Prints rows on stdout. A terminal table that is too wide is split into several, one below the other.

    Args:
        columns: the columns in order. Fractions become percent for people; CSV and JSON keep them as they are.
        format: one of ``FORMATS``; None is ``default_format()``.
        header: False leaves the first line of CSV out.
    Returns:
        False when the process that reads stdout has ended.
    """
    format = format or default_format()
    if format == "table":
        laid = [terminal_column(rows, name, key=number == 0) for number, name in enumerate(columns)]
        return write_result(terminal_table.render(laid, title and escape.printable(title), None, split=True))
    if format == "csv":
        return write_result(_csv(rows, columns, header))
    return write_result({"json": _json, "markdown": _markdown, "latex": _latex}[format](rows, columns))


def terminal_column(
    rows: Sequence[Row], name: str, *, heading: str | None = None, priority: int = 0, key: bool = False
) -> TerminalColumn:
    """One column of rows for a terminal; ``heading`` None is ``short(name)``."""
    values = [row.get(name) for row in rows]
    cells = [text(name, value) for value in values]
    number = all(value is None or isinstance(value, int | float) or _is_number(value) for value in values)
    heading = (heading or short(name)).replace(" - ", "-")  # one word
    return TerminalColumn(heading, cells, number, name in PROSE, priority, key)


def _is_number(value: Any) -> bool:
    """True for a number that was formatted already, or is left out."""
    try:
        return isinstance(value, str) and (not value or float(value) is not None)
    except ValueError:
        return False


def percent(name: str) -> bool:
    """True for metrics that are fractions in files and percent in tables."""
    return is_fraction(name)


def text(name: str, value: Any) -> str:
    """One value as people read it."""
    if value is None:
        return ""
    if isinstance(value, bool | str):
        return escape.printable(str(value))
    if isinstance(value, list | tuple):
        return escape.printable(" | ".join(map(str, value)))
    if percent(name):
        return f"{100 * value:.1f}"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}" if abs(value) >= 100 else f"{value:.3g}"


def short(name: str) -> str:
    """The heading of a column: ``text_to_image_R@1`` -> ``t2i R@1``, ``seconds`` -> ``time (s)``."""
    if name in HEADINGS:
        return HEADINGS[name]
    source, to, target_and_metric = name.partition("_to_")
    if not to:
        return name.removesuffix("_accuracy").replace("_", " ")
    target, _, metric = target_and_metric.partition("_")
    return f"{source[0]}2{target[0]} {metric.replace('_', ' ')}"


def _csv(rows: Sequence[Row], columns: Sequence[str], header: bool = True) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    if header:
        writer.writerow(columns)
    writer.writerows([_cell(row.get(name)) for name in columns] for row in rows)
    return out.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, list | tuple):
        value = " | ".join(map(str, value))
    return escape.cell(escape.printable(value)) if isinstance(value, str) else value


def json_parts(rows: Iterable[Row], columns: Sequence[str]) -> Iterator[str]:
    """Rows as one JSON list, piece by piece, so that an endless stream of rows needs no memory."""
    from ccaco_cli.core.manifest import json_text

    before = "[\n"
    for row in rows:
        body = json_text({name: row.get(name) for name in columns}).rstrip().translate(_RAW_CONTROLS)
        yield before + textwrap.indent(body, "  ")
        before = ",\n"
    yield "[]\n" if before == "[\n" else "\n]\n"


def _json(rows: Sequence[Row], columns: Sequence[str]) -> str:
    return "".join(json_parts(rows, columns))


def _markdown(rows: Sequence[Row], columns: Sequence[str]) -> str:
    lines = [[short(n) for n in columns], ["---"] * len(columns)]
    lines += [[text(n, row.get(n)).replace("|", "\\|") for n in columns] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _latex(rows: Sequence[Row], columns: Sequence[str]) -> str:
    special = str.maketrans(
        {c: f"\\{c}" for c in "&%$#_{}"}
        | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    )
    lines = [[short(n).translate(special) for n in columns]]
    lines += [[text(n, row.get(n)).translate(special) for n in columns] for row in rows]
    body = " \\\\\n".join(" & ".join(line) for line in lines[1:])
    head = f"\\begin{{tabular}}{{{'l' * len(columns)}}}\n\\toprule\n{' & '.join(lines[0])}"
    return f"{head} \\\\\n\\midrule\n{body} \\\\\n\\bottomrule\n\\end{{tabular}}\n"
