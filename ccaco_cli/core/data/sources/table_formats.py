"""The file formats of the source ``table``: each is read into an Arrow table of the columns that are used."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ccaco_cli.core.data.sources.delimited import open_delimited
from ccaco_cli.core.data.sources.extra_columns import typed_texts
from ccaco_cli.core.data.sources.fields import FieldReader
from ccaco_cli.core.data.sources.lists import decode_text, parse_strictly
from ccaco_cli.core.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

BATCH = 4096
"""Rows that are Python objects at a time."""
PROBLEM = "problem"
"""Column of the reasons why rows cannot be read."""
VALUES = "values"
"""Column of samples that are lists of numbers, where others have a path; as JSON text in lists of objects."""
EXTRA = "extra"
"""Column of the further columns of a row, as JSON text."""
STRUCTURES = ("question", "answers")
"""Our names of columns whose values may be lists, which stay JSON texts."""
LISTS = (".json", ".jsonl")
"""Formats whose lists may name the columns as BLIP and LAVIS do: ``[{"image": ..., "caption": ...}]``."""


@dataclass(frozen=True)
class RawTable:
    """A table as it was read.

    Attributes:
        names: all column names, repeated ones too.
        table: (columns: our name -> name in the file, extra: further columns) -> Arrow table of our names, with the
            column ``PROBLEM`` where values were checked. The further columns have the name ``extra_name``, or lie
            together in ``EXTRA`` as JSON text where their values have no common type.
        rows: columns -> the same without further columns, row by row; of it or ``table`` one call is possible. Raises
            DataError: a row that cannot be read.
        facts: for the manifest: how the format was read, where that is not as usual.
    """

    names: list[str]
    table: Callable[[Mapping[str, str], Sequence[str]], pa.Table]
    rows: Callable[[Mapping[str, str]], Iterator[Mapping[str, Any]]]
    facts: Mapping[str, str] = field(default_factory=dict)


def extra_name(column: str) -> str:
    """Name of a further column of the file beside our names."""
    return f"{EXTRA}:{column}"


def extra_values(row: Mapping[str, Any]) -> dict[str, Any]:
    """The further columns of a row of the table: name in the file -> value."""
    start = extra_name("")
    values = {name.removeprefix(start): value for name, value in row.items() if name.startswith(start)}
    return json.loads(row[EXTRA]) if row.get(EXTRA) else values


def open_csv(file: Path, path_column: str, separator: str | None) -> RawTable:
    """CSV and TSV. Raises DataError: the rows do not add up; it names the line."""
    opened = open_delimited(file, separator, path_column=path_column)

    def rows(columns: Mapping[str, str]) -> Iterator[Mapping[str, Any]]:
        positions = {ours: opened.names.index(column) for ours, column in columns.items()}
        return ({ours: cells[at] for ours, at in positions.items()} for cells in opened.rows)

    def table(columns: Mapping[str, str], extra: Sequence[str]) -> pa.Table:
        named = {**columns, **{extra_name(column): column for column in extra}}
        read = _arrow_table(rows(named), list(named))
        for name in map(extra_name, extra):
            read = read.set_column(read.schema.get_field_index(name), name, typed_texts(read.column(name)))
        return read

    return RawTable(opened.names, table, rows, opened.facts())


def open_jsonl(file: Path, path_column: str, separator: str | None) -> RawTable:
    """JSON lines: one object a line."""
    names: dict[str, None] = {}
    for row in _json_lines(file):
        names |= dict.fromkeys(row)
    return _raw_objects(list(names), lambda: _json_lines(file))


def open_json(file: Path, path_column: str, separator: str | None) -> RawTable:
    """A JSON list of objects, as the annotations of BLIP and LAVIS are."""
    try:
        rows = parse_strictly(decode_text(file.read_bytes()))
    except ValueError as error:
        raise DataError(f"not a JSON file ({error})", where=file, expected="a list of objects") from None
    wrong = next((n for n, row in enumerate(rows, 1) if not isinstance(row, dict)), 0) if isinstance(rows, list) else 0
    if not isinstance(rows, list) or wrong:
        raise DataError(
            "a JSON file with other content",
            where=f"{file}, entry {wrong}" if wrong else file,
            expected='[{"image": "a.jpg", "caption": "a dog"}, ...]',
            next="ccaco prepare --list",
        )
    names = dict.fromkeys(name for row in rows for name in row)
    return _raw_objects(list(names), lambda: rows)


def open_parquet(file: Path, path_column: str, separator: str | None) -> RawTable:
    """Parquet: only the columns that are used are read."""
    import pyarrow as pa
    from pyarrow import parquet

    def table(columns: Mapping[str, str], extra: Sequence[str]) -> pa.Table:
        try:
            schema = parquet.read_schema(file)
            stored = [name for name in extra if not _is_binary(schema.field(name).type)]
            read = parquet.read_table(file, columns=list(dict.fromkeys([*columns.values(), *stored])))
        except (pa.ArrowException, OSError, UnicodeError) as error:
            raise _no_parquet(error, file) from None
        named = {ours: read.column(column) for ours, column in columns.items()}
        return pa.table(named | {extra_name(column): read.column(column) for column in stored})

    def rows(columns: Mapping[str, str]) -> Iterator[Mapping[str, Any]]:
        try:
            for batch in parquet.ParquetFile(file).iter_batches(BATCH, columns=list(dict.fromkeys(columns.values()))):
                yield from ({ours: row[column] for ours, column in columns.items()} for row in batch.to_pylist())
        except (pa.ArrowException, OSError, UnicodeError) as error:
            raise _no_parquet(error, file) from None

    try:
        return RawTable(parquet.read_schema(file).names, table, rows)
    except (pa.ArrowException, OSError, UnicodeError) as error:
        raise _no_parquet(error, file) from None


FORMATS: Mapping[str, Callable[[Path, str, str | None], RawTable]] = {
    ".csv": open_csv,
    ".tsv": open_csv,
    ".txt": open_csv,
    ".json": open_json,
    ".jsonl": open_jsonl,
    ".parquet": open_parquet,
}
"""Suffix -> (file, column of paths, separator) -> table."""


def _is_binary(type: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_binary(type) or pa.types.is_large_binary(type) or pa.types.is_fixed_size_binary(type))


def _no_parquet(error: Exception, file: Path) -> DataError:
    return DataError(f"not a Parquet file ({error})", where=file, expected="a table as Arrow or pandas writes it")


def _json_lines(file: Path) -> Iterator[dict[str, Any]]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = parse_strictly(decode_text(line))
                if not isinstance(row, dict):
                    raise ValueError(f"a {type(row).__name__}")
            except ValueError as error:
                raise DataError(
                    f"not a JSON object ({error})", where=f"{file}:{number}", expected="one object a line"
                ) from None
            yield row


def _raw_objects(names: list[str], objects: Callable[[], Iterable[Mapping[str, Any]]]) -> RawTable:
    """The table of JSON objects, whose values are read here because Arrow's columns have one type."""

    def table(columns: Mapping[str, str], extra: Sequence[str]) -> pa.Table:
        stored = [*columns, PROBLEM, VALUES, *([EXTRA] if extra else [])]
        return _arrow_table(_object_rows(objects(), columns, extra), stored, lists=("caption",))

    return RawTable(names, table, lambda columns: _object_rows(objects(), columns, ()))


def _object_rows(
    objects: Iterable[Mapping[str, Any]], columns: Mapping[str, str], extra: Sequence[str]
) -> Iterator[dict[str, Any]]:
    for values in objects:
        fields = FieldReader()
        row: dict[str, Any] = {}
        for ours, column in columns.items():
            value = values.get(column)
            if ours == "image" and _holds_numbers(value):
                row[VALUES], value = json.dumps(value), ""
            if ours in STRUCTURES and not isinstance(value, str):
                value = None if value is None else json.dumps(value, default=str)
            row[ours] = fields.captions(value) if ours == "caption" else fields.text(value, ours)
        extra_values = {column: values[column] for column in extra if column in values}
        row |= {EXTRA: json.dumps(extra_values, default=str)} if extra else {}
        yield {VALUES: ""} | row | {PROBLEM: fields.problem}


def _holds_numbers(value: Any) -> bool:
    """Whether a value of JSON is a list of numbers, or of lists."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], int | float | list)


def _arrow_table(rows: Iterable[Mapping[str, Any]], names: list[str], lists: tuple[str, ...] = ()) -> pa.Table:
    import pyarrow as pa

    schema = pa.schema([(name, pa.list_(pa.string()) if name in lists else pa.string()) for name in names])
    stream = iter(rows)
    batches = []
    while batch := [{name: _storable(row[name]) for name in names} for row in islice(stream, BATCH)]:
        batches.append(pa.RecordBatch.from_pylist(batch, schema=schema))
    return pa.Table.from_batches(batches, schema=schema)


def _storable(value: str | list[str]) -> str | list[str]:
    """Texts without unpaired surrogates, which JSON can spell and UTF-8 cannot."""
    if isinstance(value, list):
        return [text.encode("utf-8", "ignore").decode() for text in value]
    return value if value.isascii() else value.encode("utf-8", "ignore").decode()
