"""Tables on a terminal: what does not fit is left out or moved to a second table; words are never cut."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ccaco_cli.view.line_breaks import cell_width, longest_piece, wrap

MIN_WIDTH = 80
PIPE_WIDTH = 160
"""Columns of a table that is not printed on a terminal."""
GAP = 2
"""Spaces between two columns."""


@dataclass(frozen=True)
class TerminalColumn:
    """One column.

    Attributes:
        cells: one text for each row.
        number: True is aligned on the right.
        wraps: True may break its texts between words.
        priority: the column with the highest number is left out first; 0 is never left out.
        key: names the row; repeated when the table is split.
    """

    heading: str
    cells: Sequence[str]
    number: bool = False
    wraps: bool = False
    priority: int = 0
    key: bool = False

    @property
    def width(self) -> int:
        """Characters that the longest cell needs in one line; headings may break between words."""
        return max(_longest_word([self.heading]), *map(cell_width, self.cells), 1)

    @property
    def min_width(self) -> int:
        return _longest_word([self.heading, *self.cells]) if self.wraps else self.width


def terminal_width() -> int:
    """The characters of a line of stdout."""
    from rich.console import Console

    return max(MIN_WIDTH, Console().width) if sys.stdout.isatty() else PIPE_WIDTH


def render(
    columns: Sequence[TerminalColumn],
    title: str | None,
    note: str | None,
    *,
    split: bool = False,
    width: int | None = None,
) -> str:
    """A table as text of at most ``width`` characters per line, unless a single name is longer.

    Args:
        note: explains the columns, below the table.
        split: True puts the columns that do not fit into further tables below; False leaves them out.
        width: None = ``terminal_width()``.
    """
    from rich.console import Console

    width = width or terminal_width()
    blocks = _blocks(columns, width) if split else [_fitting(columns, width)]
    drawn = io.StringIO()
    widest = max(width, *map(_total, blocks))
    console = Console(file=drawn, force_terminal=sys.stdout.isatty(), width=widest, highlight=False)
    for line in _lines(title, width):
        console.print(line, style="italic", markup=False, soft_wrap=True)
    for number, block in enumerate(blocks):
        if number:
            console.print()
        console.print(_table(block, width))
    for line in _lines(note, width):
        console.print(line, style="dim", markup=False, soft_wrap=True)
    return "".join(f"{line.rstrip()}\n" for line in drawn.getvalue().split("\n")[:-1])


def _fitting(columns: Sequence[TerminalColumn], width: int) -> list[TerminalColumn]:
    """The columns that fit; columns of one priority stay or go together."""
    shown = list(columns)
    while _total(shown) > width and (last := max(column.priority for column in shown)) > 0:
        shown = [column for column in shown if column.priority < last]
    return shown


def _blocks(columns: Sequence[TerminalColumn], width: int) -> list[list[TerminalColumn]]:
    """The columns in as few tables as needed, each with the key columns at its left."""
    keys = [column for column in columns if column.key]
    blocks = [list(keys)]
    for column in columns:
        if column.key:
            continue
        if _total([*blocks[-1], column]) > width and len(blocks[-1]) > len(keys):
            blocks.append(list(keys))
        blocks[-1].append(column)
    return blocks


def _table(columns: Sequence[TerminalColumn], width: int) -> Any:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    widths = _widths(columns, width)
    for column, characters in zip(columns, widths, strict=True):
        table.add_column(
            escape(column.heading), justify="right" if column.number else "left", width=characters, vertical="bottom"
        )
    for cells in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*(escape(_in_lines(*laid)) for laid in zip(cells, columns, widths, strict=True)))
    return table


def _in_lines(cell: str, column: TerminalColumn, width: int) -> str:
    """A cell with line ends where Unicode allows them; Rich breaks at blanks only."""
    return cell if cell.isascii() or not column.wraps else "\n".join(wrap(cell, width, break_long_words=False))


def _widths(columns: Sequence[TerminalColumn], width: int) -> list[int]:
    """The width of each column: the widest text columns are narrowed until the table fits."""
    widths = [column.width for column in columns]
    while sum(widths) + GAP * (len(widths) - 1) > width:
        slack = [i for i, column in enumerate(columns) if widths[i] > column.min_width]
        if not slack:
            break
        widths[max(slack, key=lambda i: widths[i])] -= 1
    return widths


def _total(columns: Sequence[TerminalColumn]) -> int:
    return sum(column.min_width for column in columns) + GAP * (len(columns) - 1)


def _lines(text: str | None, width: int) -> list[str]:
    return wrap(text, width, break_long_words=False) if text else []


def _longest_word(texts: Iterable[str]) -> int:
    return max(map(longest_piece, texts), default=0)
