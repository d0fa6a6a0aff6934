"""Prints report rows and prepared data sets."""

from __future__ import annotations

from collections.abc import Sequence

from ccaco_cli.core import escape
from ccaco_cli.core.reporting.rows import Cells, ComparisonRow, DomainRow, ReportRow, SplitRow, as_dicts
from ccaco_cli.view import layouts, tables, terminal_table
from ccaco_cli.view.streams import write_result

SHORT_VERDICT = "not separable"
"""On a terminal, for verdicts that begin with these words; the note below the table explains them."""


def show(rows: Sequence[ReportRow], format: str | None, title: str, *, wide: bool = False) -> None:
    """Prints report rows of one class.

    CSV and JSON have every column. Markdown and LaTeX have the columns for people. A terminal shows the columns that
    decide, as many as fit in its width.

    Args:
        wide: True shows every column for people on a terminal, too; what does not fit goes into a table below.
    """
    if not rows:
        return
    format = format or tables.default_format()
    if format in ("csv", "json"):
        cells = as_dicts(rows)
        tables.show(cells, list(cells[0]), format, title)
        return
    cells = [layouts.layout_of(row).cells(row) for row in rows]
    if format == "table":
        _show_on_terminal(rows, cells, title, wide)
    else:
        tables.show(cells, layouts.columns_of(cells), format, title)


def show_tables(tables_of_rows: Sequence[tuple[str, Sequence[ReportRow]]], format: str | None, *, wide: bool) -> None:
    """Prints several tables, such as one for each suite, one below the other. CSV and JSON are one document with the
    columns of all tables.

    Args:
        tables_of_rows: (title, rows of one class) of each table.
    """
    format = format or tables.default_format()
    if format not in ("csv", "json") or len(tables_of_rows) == 1:
        for title, rows in tables_of_rows:
            show(rows, format, title, wide=wide)
        return
    cells = [row for _, rows in tables_of_rows for row in as_dicts(rows)]
    columns = list(dict.fromkeys(name for row in cells for name in row))
    tables.show([dict.fromkeys(columns) | row for row in cells], columns, format)


def _show_on_terminal(rows: Sequence[ReportRow], cells: Sequence[Cells], title: str, wide: bool) -> None:
    layout, row = layouts.layout_of(rows[0]), rows[0]
    metrics = [row.metric for row in rows if isinstance(row, ComparisonRow | DomainRow)]
    shared = layouts.shared_values(cells)
    names = [name for name in layouts.columns_of(cells) if name not in shared]
    titles = [title, *layouts.shared_titles(cells)]
    cells = [_short_verdicts(line) for line in cells]
    columns = []
    for name in names:
        priority = layout.priority_of(name, row)
        if priority is None and not wide:
            continue
        label, colon, _ = name.partition(": ")  # a comparison's columns are A and B; the title says what they are
        titles += [name] if colon else []
        column = tables.terminal_column(
            cells,
            name,
            heading=label if colon else None,
            priority=priority or 0,
            key=name in layout.keys,
        )
        columns.append(column)
    hidden = len(names) - len(columns) if not wide else 0
    note = _note([*names, *metrics], cells, hidden > 0)
    write_result(terminal_table.render(columns, escape.printable("; ".join(titles)), note, split=wide))


def _short_verdicts(cells: Cells) -> Cells:
    return {name: SHORT_VERDICT if str(value).startswith(SHORT_VERDICT) else value for name, value in cells.items()}


def _note(names: Sequence[str], cells: Sequence[Cells], hidden: bool) -> str:
    """What the headings of a table mean; ``names`` are its columns and, where a column holds metrics, those."""
    directions = dict.fromkeys(name.partition("_R@")[0] for name in names if "_to_" in name and "_R@" in name)
    notes = [f"{tables.short(f'{d}_')[:3]}: {d.replace('_', ' ')}." for d in directions]
    if directions:
        notes.append("R@k: % of queries with a correct result among the first k.")
    if "R-sum" in names:
        notes.append("R-sum: sum of the six recalls.")
    if any(SHORT_VERDICT in row.values() for row in cells):
        notes.append(f"{SHORT_VERDICT}: no difference beyond chance is shown.")
    if hidden:
        notes.append("More columns: --wide.")
    return " ".join(notes)


def show_prepared(rows: Sequence[SplitRow], format: str | None, title: str) -> None:
    """Prints what a prepared data set holds, one row for each split; people see each measure as mean (min to max)."""
    format = format or tables.default_format()
    if format in ("csv", "json"):
        cells = as_dicts(rows)
        names = [name for name in cells[0] if name in layouts.ALWAYS or any(row.get(name) for row in cells)]
    else:
        cells = [layouts.layout_of(row).cells(row) for row in rows]
        names = layouts.columns_of(cells)
    if format == "table":  # the protocol is one for all splits
        title = f"{title}: {rows[0].protocol}"
        names.remove("protocol")
    tables.show(cells, names, format, title)
