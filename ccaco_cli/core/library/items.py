"""The items of an index of media files: columns of their content, and columns of the files."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ccaco_cli.core import fault
from ccaco_cli.core.library.side_rows import ITEMS, Picks

if TYPE_CHECKING:
    from ccaco_cli.core.library.reader import ReadFile
from ccaco_cli.core.retrieval.item_columns import CONTENT_COLUMNS, SECONDS

Array = np.ndarray[Any, Any]
ROWS_AT_ONCE = 1024
"""Rows of a batch of items: their thumbnails are in memory at once."""
THUMBNAIL = "thumbnail"


@dataclass(frozen=True, eq=False)
class Files:
    """The files of the items, in the order of the rows.

    Attributes:
        paths: names below the source, with "/" between folders.
        size, mtime_ns: [n] int64.
        sha256: hex digests.
    """

    paths: Sequence[str]
    size: Array
    mtime_ns: Array
    sha256: Sequence[str]


def write_contents(folder: Path, files: Sequence[ReadFile]) -> None:
    """Writes the content columns of a part."""
    columns = {name: pa.array([_value(name, file) for file in files], kind) for name, kind in CONTENT_COLUMNS.items()}
    columns[THUMBNAIL] = pa.array([file.thumbnail or None for file in files], pa.binary())
    table = pa.table(columns)
    with pa.OSFile(str(folder / ITEMS), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def _value(name: str, file: ReadFile) -> Any:
    if name == "sha256":
        return file.state.sha256
    value = file.facts.get(name)
    return datetime.fromisoformat(value).replace(tzinfo=None) if name == "taken" and isinstance(value, str) else value


def write_items(folder: Path, source: Path, files: Files, picks: Picks) -> None:
    """Writes the items of one modality: n rows, columns that are null everywhere are left out.

    Args:
        folder: of the side.
        source: folder of the files.
        picks: the rows that the contents come from.
    """
    columns = _file_columns(source, files)
    columns |= {name: picks.column(name, kind) for name, kind in CONTENT_COLUMNS.items() if name != "sha256"}
    columns["year"] = pc.cast(pc.year(pc.coalesce(columns["taken"], columns["modified"])), pa.int64())
    columns = {name: column for name, column in columns.items() if column.null_count < len(column)}
    with_thumbnails = any(_has_thumbnails(side.items) for side in picks.sources)
    fields = [(name, column.type) for name, column in columns.items()]
    schema = pa.schema([*fields, (THUMBNAIL, pa.binary())] if with_thumbnails else fields)
    with pa.OSFile(str(folder / ITEMS), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for first in range(0, len(picks), ROWS_AT_ONCE):
            last = min(first + ROWS_AT_ONCE, len(picks))
            arrays = [column.slice(first, last - first) for column in columns.values()]
            if with_thumbnails:
                arrays.append(picks.column(THUMBNAIL, pa.binary(), first, last))
            writer.write_batch(pa.record_batch(arrays, schema=schema))
    fault.point("merge.items")


def _file_columns(source: Path, files: Files) -> dict[str, pa.Array]:
    folders = [posixpath.dirname(path) for path in files.paths]
    count = len(files.paths)
    no_texts = pa.ListArray.from_arrays(pa.array(np.zeros(count + 1, np.int32)), pa.array([], pa.string()))
    return {
        "id": pa.array(files.paths, pa.string()),
        # the same content has the same group, whatever else is in the index
        "group": pa.array([int(digest[:15], 16) for digest in files.sha256], pa.int64()),
        "text": no_texts,
        "path": pa.array([str(source / path) for path in files.paths], pa.string()),
        "folder": pa.array([f"/{folder}/" if folder else "/" for folder in folders], pa.string()),
        "size": pa.array(files.size),
        "modified": pa.array(files.mtime_ns // 10**9, pa.int64()).cast(SECONDS),
        "sha256": pa.array(files.sha256, pa.string()),
    }


def _has_thumbnails(items: pa.Table) -> bool:
    return THUMBNAIL in items.column_names and items[THUMBNAIL].null_count < len(items)
