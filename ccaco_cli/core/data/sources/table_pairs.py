"""The rows of a table as pairs of a file and a text, in order and one at a time, for scores of given pairs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ccaco_cli.core.data.sources.fields import FieldReader
from ccaco_cli.core.data.sources.media_files import locate
from ccaco_cli.core.data.sources.table import COLUMNS, open_table
from ccaco_cli.core.data.sources.table_formats import PROBLEM
from ccaco_cli.core.errors import DataError

NEEDED = {name: COLUMNS[name] for name in ("image", "caption")}


@dataclass(frozen=True, slots=True)
class TablePair:
    """One row of a table.

    Attributes:
        path: as the table has it; "" = missing.
        media: the file.
        caption: "" = missing.
        problem: why the row is no pair; "" = it is one.
    """

    path: str
    media: Path
    caption: str
    problem: str = ""


def table_pairs(file: Path, media_root: Path | None = None) -> Iterator[TablePair]:
    """The rows of a table with the columns ``filepath`` and ``title`` (in JSON also ``image`` and ``caption``).

    Args:
        file: CSV, TSV, JSON, JSON lines or Parquet.
        media_root: folder of the files, if it is not that of the table.
    Raises:
        DataError: no such file, no such columns, or a table that cannot be read; the last while the rows are read.
    """
    if not file.is_file():
        raise DataError("no table here", where=file, expected="a table with columns filepath and title")
    opened, columns = open_table(file, NEEDED, {})
    if "caption" not in columns:
        raise DataError(
            f"no column {NEEDED['caption']!r}", where=file, expected=f"columns filepath and title, not {opened.names}"
        )
    folder = file.parent.resolve()
    return (_pair(row, folder, media_root) for row in opened.rows(columns))


def _pair(row: Mapping[str, Any], folder: Path, media_root: Path | None) -> TablePair:
    fields = FieldReader(row.get(PROBLEM) or "")
    captions = fields.captions(row["caption"])
    path = fields.text(row["image"], "filepath")
    if not path:
        fields.refuse("no file")
    if len(captions) > 1:
        fields.refuse("several captions in one row")
    return TablePair(path, locate(path, folder, media_root), captions[0] if captions else "", fields.problem)
