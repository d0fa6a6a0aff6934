"""Prints the answers of a search. It imports little, because a text query starts in a quarter of a second."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ccaco_cli.core.errors import ConfigError, DataError, nearest
from ccaco_cli.core.escape import printable
from ccaco_cli.view import tables
from ccaco_cli.view.streams import write_message, write_result, write_result_bytes

SHOWN = ("id", "text")
"""Columns of the items that every format shows; a terminal leaves ``text`` out where no item has one."""
HIDDEN = ("thumbnail",)

Answers = Iterable[tuple[str, Sequence[Any]]]


def parse_columns(texts: Iterable[str], known: Sequence[str]) -> list[str]:
    """The columns that ``--columns`` names, each once, without those that are shown anyway.

    Args:
        texts: lists of names, separated by commas.
        known: columns of the items.
    Raises:
        ConfigError: there is no such column.
    """
    shown = [name for name in known if name not in HIDDEN]
    names = []
    for text in texts:
        names += [text] if text in shown else [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in shown:
            raise ConfigError(
                f"no column {name!r} in this index",
                where="--columns",
                expected=f"one of {', '.join(shown)}",
                next=nearest(name, shown),
            )
    return [name for name in dict.fromkeys(names) if name not in SHOWN]


def show_answers(
    answers: Answers,
    format: str | None,
    columns: Sequence[str] = (),
    *,
    duplicates: bool = False,
    modalities: bool = False,
) -> None:
    """Prints ranked hits while they come: one table for each query, or the rows of one CSV.

    Stops when the process that reads stdout has ended, so that no further query is answered.

    Args:
        answers: (query, its hits) in order.
        columns: further columns of the items.
        duplicates: also print how many near-duplicates a hit stands for.
        modalities: also print the modality of each hit.
    """
    format = format or tables.default_format()
    numbers = ("rank", "score", "cosine", "match", *(("duplicates",) if duplicates else ()))
    numbers += ("modality",) if modalities else ()
    names = ("query", *numbers, *SHOWN, *columns)
    if format == "table":
        for query, hits in answers:
            rows = [_table_cells(_hit_cells(query, hit, columns), columns) for hit in hits]
            shown = [name for name in names[1:] if name != "text" or not rows or any(row["text"] for row in rows)]
            if not tables.show(rows, shown, "table", query):
                return
        return
    if format == "csv":
        for number, (query, hits) in enumerate(answers):
            if not tables.show([_hit_cells(query, hit, columns) for hit in hits], names, "csv", header=number == 0):
                return
        return
    rows_of_all = (_hit_cells(query, hit, columns) for query, hits in answers for hit in hits)
    if format == "json":
        for part in tables.json_parts(rows_of_all, names):
            if not write_result(part):
                return
        return
    tables.show(list(rows_of_all), names, format)


def show_paths(answers: Answers, zero_byte: bool) -> None:
    """Prints the paths of hits, and nothing else: exactly in a pipe; on a terminal control characters are escaped.

    Args:
        zero_byte: a path ends with a zero byte, not with a line end.
    Raises:
        DataError: an item is no file, or the name of a file holds a line end and ``zero_byte`` is False.
    """
    end = b"\0" if zero_byte else b"\n"
    for _, hits in answers:
        lines = [_path(hit.item, zero_byte) for hit in hits]
        encode = (lambda path: printable(path).encode()) if sys.stdout.isatty() and not zero_byte else os.fsencode
        if not write_result_bytes(b"".join(encode(line) + end for line in lines)):
            return


def _path(item: Mapping[str, Any], zero_byte: bool) -> str:
    path = item.get("path")
    if not path:
        raise DataError(
            "the items of this index are no files" if path is None and "path" not in item else "this item is no file",
            where=f"--format paths, item {item['id']!r}",
            expected="an index of files (ccaco embed --images FOLDER --index ME.idx)",
            next="--format csv, whose column id names the items",
        )
    if not zero_byte and ("\n" in path or "\r" in path):
        raise DataError(
            "the name of a file holds a line end",
            where=repr(path),
            expected="paths that end with a zero byte",
            next="ccaco retrieve ... -0 | xargs -0",
        )
    return str(path)


def note_empty_selection(answers: Answers, where: str) -> Iterator[tuple[str, Sequence[Any]]]:
    """Passes answers on; if no query has a hit, a note on stderr says that nothing satisfies the condition."""
    empty = True
    for query, hits in answers:
        empty = empty and not hits
        yield query, hits
    if empty:
        write_message(f"ccaco: no item of this index satisfies --where {where!r}")


def _hit_cells(query: str, hit: Any, columns: Sequence[str]) -> dict[str, Any]:
    cells = {"query": query, "rank": hit.rank, "score": round(hit.score, 4), "cosine": round(hit.cosine, 4)}
    match = None if hit.match is None else round(hit.match, 4)
    cells |= {"match": match, "duplicates": hit.duplicates, "modality": hit.modality}
    cells |= {"id": hit.item["id"], "text": hit.item.get("text")}
    return cells | {name: _plain(hit.item.get(name)) for name in columns}


def _plain(value: Any) -> Any:
    """A value of a column as a number, a text or a truth value: dates as ISO texts."""
    return value.isoformat(" ") if hasattr(value, "isoformat") else value


def _table_cells(cells: dict[str, Any], columns: Sequence[str]) -> dict[str, Any]:
    """Cells for people: the first caption alone, and the numbers of columns as they are, without grouped digits."""
    text = cells["text"]
    first = (text[0] if text else None) if isinstance(text, list) else text
    exact = {name: f"{cells[name]:.9g}" if isinstance(cells[name], float) else cells[name] for name in columns}
    return cells | {"text": first} | {name: str(v) if isinstance(v, int) else v for name, v in exact.items()}
