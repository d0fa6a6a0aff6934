"""Reads CSV and TSV tables row by row, and refuses a table whose quotes do not add up.

A stray quote opens a cell that swallows the lines up to the next quote. Readers that forgive this lose rows silently.
Here each row is compared with the lines that it was read from. A table whose quotes do not add up, but whose lines are
all rows when quotes are ordinary characters, is read line by line.
"""

from __future__ import annotations

import codecs
import csv
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from ccaco_cli.core.data.sources.lists import decode_text
from ccaco_cli.core.errors import DataError

_SEPARATORS = "\t,;"
_MEND = 'inside a quoted cell write each quote twice ("") and close it; delete any other quote'
_FILE_NAME = re.compile(r"[^\"]*\.\w{1,5}")
_NO_SUFFIX = re.compile(r"[^\"\s]+")
_QUOTED_QUOTE = re.compile(r'".*"".*"')
"""A cell as only a writer of quoted cells makes it."""


@dataclass(frozen=True)
class DelimitedTable:
    """An opened table.

    Attributes:
        names: the header, in order; names may be repeated.
        rows: the cells of each row, as many as names; consumed once. Raises DataError, which names the line.
        literal_quotes: the quotes do not add up, so they were read as ordinary characters.
    """

    names: list[str]
    rows: Iterator[list[str]]
    literal_quotes: bool = False

    def facts(self) -> dict[str, str]:
        """For the manifest; {} = quotes enclose cells, as usual."""
        return {"quotes": "ordinary characters"} if self.literal_quotes else {}


def open_delimited(
    file: Path, separator: str | None = None, *, path_column: str = "", quoted: bool = True
) -> DelimitedTable:
    """Opens a table with a header.

    Args:
        file: UTF-8, UTF-16 with a byte order mark, or Windows-1252 in single cells.
        separator: one character; None = the first of tab, comma and semicolon that the header contains.
        path_column: column of file names, by which a line is recognised as a row.
        quoted: cells may be quoted as in RFC 4180, unless ``_has_literal_quotes`` finds otherwise; False = quotes are
            ordinary characters.
    Raises:
        DataError: an empty table, a separator of several characters, or quotes that can be read in two ways.
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
    literal_quotes = quoted and _has_literal_quotes(file, wide, separator, path_column)
    parsed = _parse(file, wide, separator, quoted and not literal_quotes)
    names = [name.strip() for name in next(parsed).cells]
    return DelimitedTable(names, _checked_rows(file, parsed, names, separator, path_column), literal_quotes)


def _has_literal_quotes(file: Path, wide: bool, separator: str, path_column: str) -> bool:
    """Whether the quotes of a table are ordinary characters.

    They are if the table cannot be read with quoted cells, and each of its lines is a row without them.

    Raises:
        DataError: both readings are possible and have different rows.
    """
    lines = _count_lines_that_are_rows(file, wide, separator, path_column)
    if not lines:
        return False
    try:
        parsed = _parse(file, wide, separator, quoted=True)
        names = [name.strip() for name in next(parsed).cells]
        rows = sum(1 for _ in _checked_rows(file, parsed, names, separator, path_column))
    except DataError:
        return True
    if rows == lines:
        return False
    start = next(row.start for row in _parse(file, wide, separator, quoted=True) if len(row.lines) > 1)
    raise _unreadable(f"the quote in line {start} may enclose several lines, or each of them may be a row", file, start)


def _count_lines_that_are_rows(file: Path, wide: bool, separator: str, path_column: str) -> int:
    """The number of lines below the header, if each is a row when quotes are ordinary characters.

    Returns:
        0 if a line has another number of cells or no file name in ``path_column``, if the table has no quotes, or if a
        writer of quoted cells made it: names of columns or files are quoted, or quotes in a quoted cell are doubled.
    """
    if not _contains_quote(file):
        return 0
    try:
        parsed = _parse(file, wide, separator, quoted=False)
        names = [name.strip() for name in next(parsed).cells]
        if any('"' in name for name in names):
            return 0
        at = names.index(path_column) if path_column in names else None
        is_file_name, count = None, 0
        for row in parsed:
            count += 1
            if len(row.cells) != len(names) or any(map(_QUOTED_QUOTE.fullmatch, row.cells)):
                return 0
            if at is None:
                continue
            path = row.cells[at].strip()
            is_file_name = is_file_name or (_FILE_NAME if _FILE_NAME.fullmatch(path) else _NO_SUFFIX).fullmatch
            if not is_file_name(path):
                return 0
    except DataError:
        return 0
    return count


def _contains_quote(file: Path) -> bool:
    with file.open("rb") as binary:
        return any(b'"' in block for block in iter(lambda: binary.read(1 << 20), b""))


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
