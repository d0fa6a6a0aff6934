"""Rows as a Rich table, CSV, JSON, Markdown or LaTeX."""

from __future__ import annotations

import csv
import io
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ccaco_cli.core import escape
from ccaco_cli.core.evaluation.metric_table import is_fraction

_RAW_CONTROLS = {code: f"\\u{code:04x}" for code in range(0x7F, 0xA0)}
"""Control characters that JSON would let through to a terminal."""
FORMATS = ("table", "csv", "json", "markdown", "latex")
Row = Mapping[str, Any]


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
) -> None:
    """Prints rows on stdout; ``format`` None is ``default_format()``.

    columns  which, in which order; fractions of metrics become percent in tables, CSV and JSON keep them as they are
    header   of CSV: whether to print it
    """
    format = format or default_format()
    if format == "table":
        _rich(rows, columns, title)
    elif format == "csv":
        sys.stdout.write(_csv(rows, columns, header))
    else:
        sys.stdout.write({"json": _json, "markdown": _markdown, "latex": _latex}[format](rows, columns))
    sys.stdout.flush()


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
    """``text_to_image_R@1`` -> ``t2i R@1``."""
    head, to, rest = name.partition("_to_")
    if not to:
        return name.removesuffix("_accuracy").replace("loss_", "loss ").replace("memory_", "")
    target, _, metric = rest.partition("_")
    return f"{head[0]}2{target[0]} {metric.replace('_', ' ')}"


def _rich(rows: Sequence[Row], columns: Sequence[str], title: str | None) -> None:
    from rich.console import Console
    from rich.markup import escape as plain
    from rich.table import Table

    table = Table(
        title=None if title is None else plain(escape.printable(title)), title_justify="left", header_style="bold"
    )
    for name in columns:
        numbers = all(isinstance(row.get(name), int | float | None) for row in rows)
        table.add_column(short(name), justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(plain(text(name, row.get(name))) for name in columns))
    drawn = io.StringIO()  # Rich itself would end the process with 1 on a closed pipe
    terminal = sys.stdout.isatty()
    Console(file=drawn, force_terminal=terminal, width=None if terminal else 160).print(table)
    sys.stdout.write(drawn.getvalue())


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
