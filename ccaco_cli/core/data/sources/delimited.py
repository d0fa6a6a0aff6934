"""Reads CSV and TSV tables row by row, and refuses a table whose quotes do not add up.

A stray quote opens a cell that swallows the lines up to the next quote. Readers that forgive this lose rows silently.
Here each row is compared with the lines that it was read from.
"""

from __future__ import annotations

import codecs
import csv
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from ccaco_cli.core.data.sources.lists import decode_text
from ccaco_cli.core.errors import DataError

_SEPARATORS = "\t,;"
_MEND = 'inside a quoted cell write each quote twice ("") and close it; delete any other quote'


@dataclass(frozen=True)
class DelimitedTable:
    """An opened table.

    Attributes:
        names: the header, in order; names may be repeated.
        rows: the cells of each row, as many as names; consumed once. Raises DataError, which names the line.
    """

    names: list[str]
    rows: Iterator[list[str]]


def open_delimited(
    file: Path, separator: str | None = None, *, path_column: str = "", quoted: bool = True
) -> DelimitedTable:
    """Opens a table with a header.

    Args:
        file: UTF-8, UTF-16 with a byte order mark, or Windows-1252 in single cells.
        separator: one character; None = the first of tab, comma and semicolon that the header contains.
        path_column: column of file names, by which a line is recognised as a row.
        quoted: cells may be quoted as in RFC 4180; False = quotes are ordinary characters.
    Raises:
        DataError: an empty table, or a separator of several characters.
    """
    with file.open("rb") as binary:
        wide = binary.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    try:
        with _open_text(file, wide) as text:
            header = text.readline()
    except UnicodeError as error:
        raise _unreadable(str(error), file, 1, quotes=False) from None
    if not header.strip():
        raise DataError("an empty table", where=file, expected="a header and rows")
    # open_clip's tables are tab-separated whatever their suffix, so the header decides
    separator = {"\\t": "\t"}.get(separator or "", separator) or next((s for s in _SEPARATORS if s in header), ",")
    if len(separator) != 1 or separator in '"\r\n':
        raise DataError("not a separator", where=repr(separator), expected="one character", next="--csv-separator ,")
    parsed = _parse(file, wide, separator, quoted)
    names = [name.strip() for name in next(parsed).cells]
    return DelimitedTable(names, _checked_rows(file, parsed, names, separator, path_column))


def _open_text(file: Path, wide: bool) -> TextIO:
    if wide:
        return file.open(encoding="utf-16", newline="")
    # bytes that are not UTF-8 are kept, because a single cell in another encoding must not make the table unreadable
    return file.open(encoding="utf-8-sig", errors="surrogateescape", newline="")


class _Lines:
    """The lines of a file; remembers those of the current row."""

    def __init__(self, lines: Iterable[str]) -> None:
        self.lines = lines
        self.number = 0
        self.current: list[str] = []

    def __iter__(self) -> Iterator[str]:
        for line in self.lines:
            self.number += 1
            self.current.append(line)
            yield line


@dataclass(frozen=True)
class _ParsedRow:
    """Cells of a row, the number of its first line, and its lines."""

    cells: list[str]
    start: int
    lines: list[str]


def _parse(file: Path, wide: bool, separator: str, quoted: bool) -> Iterator[_ParsedRow]:
    """The rows of a file, header included, blank lines left out. Raises DataError: text after a closing quote."""
    with _open_text(file, wide) as text:
        lines = _Lines(text)
        reader = csv.reader(
            iter(lines), delimiter=separator, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE, strict=True
        )
        while True:
            start = lines.number + 1
            lines.current = []
            try:
                cells = next(reader, None)
            except UnicodeError as error:
                raise _unreadable(str(error), file, start, lines.number, quotes=False) from None
            except csv.Error as error:
                why = "text after a closing quote" if "expected after" in str(error) else str(error)
                raise _unreadable(why, file, start, lines.number) from None
            if cells is None:
                return
            if "".join(lines.current).strip("\r\n"):
                yield _ParsedRow(cells, start, lines.current)


def _checked_rows(
    file: Path, rows: Iterator[_ParsedRow], names: list[str], separator: str, path_column: str
) -> Iterator[list[str]]:
    """The cells of each row. Raises DataError: another number of cells, or a row that holds lines that are rows."""
    width = len(names)
    at = names.index(path_column) if path_column in names else None
    for row in rows:
        if len(row.cells) != width:
            last = row.start + len(row.lines) - 1
            raise _unreadable(
                f"expected {width} cells, got {len(row.cells)}", file, row.start, last, quotes=last > row.start
            )
        if len(row.lines) > 1:
            is_row = _row_test(row.cells[at] if at is not None else "", width, at or 0)
            numbered = enumerate(row.lines, row.start)
            rows_in_row = [number for number, line in numbered if is_row(_naive_cells(line, separator))]
            if len(rows_in_row) > 1:
                why = f"a quote in line {row.start} swallows line {rows_in_row[1]}, which is a row"
                raise _unreadable(why, file, row.start)
        yield [_decoded(cell) for cell in row.cells]


def _naive_cells(line: str, separator: str) -> list[str]:
    """The cells of a line if quotes were ordinary characters."""
    return [cell.strip().strip('"') for cell in line.split(separator)]


def _row_test(path: str, width: int, at: int) -> Callable[[list[str]], bool]:
    """Whether the cells of a line are those of a row, which has the file name ``path`` at position ``at``.

    A cell with the suffix of ``path`` is a file name. Where file names have no suffix, the line needs as many cells as
    a row has.
    """
    suffix = os.path.splitext(path.strip().strip('"'))[1].lower()
    if suffix:
        return lambda cells: any(os.path.splitext(cell)[1].lower() == suffix for cell in cells)
    return lambda cells: len(cells) == width and bool(cells[at]) and " " not in cells[at]


def _decoded(cell: str) -> str:
    """The cell, of which bytes that are no UTF-8 are read as Windows-1252."""
    if cell.isascii() or not any("\udc80" <= character <= "\udcff" for character in cell):
        return cell
    return decode_text(cell.encode("utf-8", "surrogateescape"))


def _unreadable(why: str, file: Path, line: int, last: int = 0, *, quotes: bool = True) -> DataError:
    lines = f"{line}" if last <= line else f"{line}-{last}"
    return DataError(
        f"unreadable table ({why})",
        where=f"{file}:{lines}",
        expected="a header, the same number of cells in every row, and quotes only around whole cells",
        next=_MEND if quotes else "correct this line",
    )
