"""A table of image paths and captions: CSV, TSV, JSON lines or Parquet; default column names as in open_clip."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ccaco_cli.core.data.sources.lists import HASH_SPLITS, SPLIT_NAMES, decode_text, hash_split, revision_of, texts_of
from ccaco_cli.core.data.sources.source import Source, SourceData, SourceOptions
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.manifest import parse_json
from ccaco_cli.core.types import PairRecord

if TYPE_CHECKING:
    import pyarrow as pa

    _Read = tuple[list[str], pa.Table]  # names of all columns, and a table of at least the wanted ones

COLUMNS = {
    "image": "filepath",
    "caption": "title",
    "split": "split",
    "domain": "domain",
    "label": "label",
    "group": "group",
}
_NEEDED = ("image", "caption")
_EXPECTS = (
    "a .csv, .tsv, .jsonl or .parquet file with columns filepath and title; optional split, domain, "
    "label, group; paths from its folder"
)
_BATCH = 4096


def _read(root: Path | None, options: SourceOptions) -> SourceData:
    import pyarrow as pa

    if root is None or not root.is_file():
        raise DataError("no table here", where=root, expected=_EXPECTS, next="ccaco prepare table --source FILE.csv")
    unknown = options.columns.keys() - COLUMNS.keys()
    if unknown:
        raise DataError(
            f"unknown column name: {sorted(unknown)[0]}", where=root, expected=f"one of {', '.join(COLUMNS)}"
        )
    readers = {".csv": _csv, ".tsv": _csv, ".txt": _csv, ".jsonl": _jsonl, ".parquet": _parquet}
    reader = readers.get(root.suffix.lower())
    if reader is None:
        raise DataError("a table of unknown kind", where=root, expected=f"a file ending in {', '.join(readers)}")
    wanted = {**COLUMNS, **options.columns}
    names, table = reader(root, wanted, options.separator)
    missing = [
        ours
        for ours, column in wanted.items()
        if names.count(column) != 1 and (ours in _NEEDED or column in names or ours in options.columns)
    ]
    if missing:
        raise DataError(
            f"not one column {wanted[missing[0]]!r} for {missing[0]}",
            where=root,
            expected=f"one of {', '.join(names)}",
            next=f"--column {missing[0]}=ONE_OF_THESE",
        )
    used = {ours: column for ours, column in wanted.items() if column in names}
    table = pa.table({ours: table.column(column) for ours, column in used.items()})
    rule = (
        "its split column"
        if "split" in used
        else "80/10/10 by hash of the group"
        if "group" in used
        else "80/10/10 by hash of the path"
    )
    return SourceData(
        records=_records(root.parent, table),
        protocol=f"table (split: {rule}; rows of one path are one sample)",
        revision=revision_of(root),
        facts={"rows": table.num_rows},
        splits=() if "split" in used else HASH_SPLITS,
    )


def _records(folder: Path, table: pa.Table) -> Iterator[PairRecord]:
    """One record per image, in the order of first mention.

    The table stays in Arrow; rows become Python objects batch by batch.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    pictures = table.column("image")
    codes = pc.index_in(pictures, value_set=pc.unique(pictures), skip_nulls=False).to_numpy()
    order = np.argsort(codes, kind="stable")
    rows: list[dict[str, Any]] = []
    for start in range(0, len(order), _BATCH):
        for row in table.take(pa.array(order[start : start + _BATCH])).to_pylist():
            if rows and row["image"] != rows[0]["image"]:
                yield _record(folder, rows)
                rows = []
            rows.append(row)
    if rows:
        yield _record(folder, rows)


def _record(folder: Path, rows: list[dict[str, Any]]) -> PairRecord:
    first = {name: texts_of(value)[0] if texts_of(value) else "" for name, value in rows[0].items()}
    id = first["image"]
    group = first.get("group") or id
    split = first.get("split") or hash_split(group)
    return PairRecord(
        id=id,
        group=group,
        split=SPLIT_NAMES.get(split.lower(), split),
        media={"image": folder / id},
        captions=[text for row in rows for text in texts_of(row["caption"])],
        domain=first.get("domain", ""),
        label=first.get("label", ""),
    )


def _csv(file: Path, wanted: Mapping[str, str], separator: str | None) -> _Read:
    import pyarrow as pa
    from pyarrow import csv

    with file.open("rb") as f:
        header = f.readline()
    wide = header.startswith((b"\xff\xfe", b"\xfe\xff"))
    names = decode_text(header.rstrip(b"\x00") if wide else header)
    if not names.strip():
        raise DataError("an empty table", where=file, expected=_EXPECTS)
    # open_clip's tables are tab-separated whatever their suffix, so the header decides
    separator = separator or next((s for s in "\t,;" if s in names), ",")
    columns = [name.strip().strip('"') for name in names.strip("\r\n").split(separator)]
    try:
        table = csv.read_csv(
            file,
            read_options=csv.ReadOptions(encoding="utf-16" if wide else "utf8"),
            parse_options=csv.ParseOptions(delimiter=separator, newlines_in_values=True),
            # bytes, because a single cell in another encoding must not make the table unreadable
            convert_options=csv.ConvertOptions(
                column_types={name: pa.binary() for name in columns}, strings_can_be_null=False
            ),
        )
        return table.column_names, table
    except (pa.ArrowInvalid, UnicodeError) as error:
        raise DataError(
            f"unreadable table ({error})", where=file, expected="a header, and the same number of cells in every row"
        ) from None


def _jsonl(file: Path, wanted: Mapping[str, str], separator: str | None) -> _Read:
    import pyarrow as pa

    # a caption cell may hold several texts; every other cell holds one
    schema = pa.schema(
        [(column, pa.list_(pa.string()) if ours == "caption" else pa.string()) for ours, column in wanted.items()]
    )
    names: dict[str, None] = {}
    batches: list[pa.RecordBatch] = []
    rows: list[dict[str, Any]] = []
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = dict(parse_json(decode_text(line)))
            except (ValueError, TypeError) as error:
                raise DataError(
                    f"not a JSON object ({error})", where=f"{file}:{number}", expected="one object a line"
                ) from None
            names |= dict.fromkeys(row)
            cells = {column: texts_of(row.get(column)) for column in wanted.values()}
            rows.append(
                {name: texts if name == wanted["caption"] else "".join(texts[:1]) for name, texts in cells.items()}
            )
            if len(rows) == _BATCH:
                batches.append(pa.RecordBatch.from_pylist(rows, schema=schema))
                rows = []
    batches.append(pa.RecordBatch.from_pylist(rows, schema=schema))
    return list(names), pa.Table.from_batches(batches, schema=schema)


def _parquet(file: Path, wanted: Mapping[str, str], separator: str | None) -> _Read:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        names = parquet.read_schema(file).names
        return names, parquet.read_table(file, columns=[name for name in wanted.values() if name in names])
    except (pa.ArrowInvalid, OSError, UnicodeError) as error:
        raise DataError(f"not a Parquet file ({error})", where=file, expected=_EXPECTS) from None


SOURCE = Source("table", ("image", "text"), _EXPECTS, _read)
