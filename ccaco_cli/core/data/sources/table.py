"""A table of image paths and captions: CSV, TSV, JSON, JSON lines or Parquet; default column names as in open_clip."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ccaco_cli.core.data.sources.fields import FieldReader, is_missing
from ccaco_cli.core.data.sources.lists import HASH_SPLITS, SPLIT_NAMES, hash_split, revision_of
from ccaco_cli.core.data.sources.media_files import locate
from ccaco_cli.core.data.sources.source import Source, SourceData, SourceOptions
from ccaco_cli.core.data.sources.table_formats import BATCH, FORMATS, LISTS, PROBLEM
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.shell import quoted_path
from ccaco_cli.core.types import PairRecord

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = {
    "image": "filepath",
    "caption": "title",
    "split": "split",
    "domain": "domain",
    "label": "label",
    "group": "group",
}
_NEEDED = ("image", "caption")
_ONE_OF_A_FILE = ("split", "domain", "label", "group")
"""Columns that must agree in all rows of one file."""
_EXPECTS = (
    "a .csv, .tsv, .json, .jsonl or .parquet file with columns filepath and title; optional split, domain, "
    "label, group; paths from its folder, or from --image-root"
)


def _read(root: Path | None, options: SourceOptions) -> SourceData:
    if root is None or not root.is_file():
        raise DataError("no table here", where=root, expected=_EXPECTS, next="ccaco prepare table --source FILE.csv")
    unknown = options.columns.keys() - COLUMNS.keys()
    if unknown:
        raise DataError(
            f"unknown column name: {sorted(unknown)[0]}", where=root, expected=f"one of {', '.join(COLUMNS)}"
        )
    suffix = root.suffix.lower()
    if suffix not in FORMATS:
        raise DataError("a table of unknown kind", where=root, expected=f"a file ending in {', '.join(FORMATS)}")
    wanted = {**COLUMNS, **options.columns}
    opened = FORMATS[suffix](root, wanted["image"], options.separator)
    if suffix in LISTS:
        wanted |= {ours: ours for ours in _NEEDED if ours not in options.columns and wanted[ours] not in opened.names}
    columns = _columns(opened.names, wanted, options.columns, root)
    table = _with_paths(opened.table(columns), columns["image"], root, options.media_root)
    rule = (
        "its split column"
        if "split" in columns
        else "80/10/10 by hash of the group"
        if "group" in columns
        else "80/10/10 by hash of the path"
    )
    return SourceData(
        records=_records(root.parent, options.media_root, table),
        protocol=f"table (split: {rule}; rows of one path are one sample)",
        revision=revision_of(root),
        facts={"rows": table.num_rows, **opened.facts},
        text_files=() if suffix == ".parquet" else (root,),
        splits=() if "split" in columns else HASH_SPLITS,
    )


def _columns(names: list[str], wanted: Mapping[str, str], named: Mapping[str, str], file: Path) -> dict[str, str]:
    """Our names -> columns of the file. Raises DataError: a column that is needed is missing or repeated."""
    wrong = [
        ours
        for ours, column in wanted.items()
        if names.count(column) != 1 and (ours in _NEEDED or column in names or ours in named)
    ]
    if wrong:
        raise DataError(
            f"not one column {wanted[wrong[0]]!r} for {wrong[0]}",
            where=file,
            expected=f"one of {', '.join(names)}",
            next=f"--column {wrong[0]}=ONE_OF_THESE",
        )
    return {ours: column for ours, column in wanted.items() if column in names}


def _with_paths(table: pa.Table, column: str, file: Path, media_root: Path | None) -> pa.Table:
    """The table with paths as texts, from the folder that they lie in. Raises DataError: they are no texts."""
    import pyarrow as pa
    import pyarrow.compute as pc

    paths = table.column("image")
    try:
        paths = pc.fill_null(paths.cast(pa.large_string()), "")
    except pa.ArrowException:
        raise DataError(
            f"column {column!r} holds {paths.type}, not paths",
            where=file,
            expected="a column of file names",
            next=f"--column image=ANOTHER, or: ccaco prepare hub --source {quoted_path(file.parent)}",
        ) from None
    for folder in (file.parent, media_root) if pc.any(pc.starts_with(paths, "/")).as_py() else ():
        for prefix in {f"{folder}/", f"{os.path.realpath(folder)}/"} if folder is not None else ():
            inside = pc.utf8_slice_codeunits(paths, len(prefix))
            paths = pc.if_else(pc.starts_with(paths, prefix), inside, paths)
    return table.set_column(table.schema.get_field_index("image"), "image", paths)


def _records(folder: Path, media_root: Path | None, table: pa.Table) -> Iterator[PairRecord]:
    """One record per image, in the order of first mention; each row without an image is a record of its own.

    The table stays in Arrow; rows become Python objects batch by batch.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    pictures = table.column("image")
    codes = pc.index_in(pictures, value_set=pc.unique(pictures), skip_nulls=False).to_numpy()
    order = np.argsort(codes, kind="stable")
    rows: list[dict[str, Any]] = []
    for start in range(0, len(order), BATCH):
        numbers = order[start : start + BATCH]
        for number, row in zip(numbers.tolist(), table.take(pa.array(numbers)).to_pylist(), strict=True):
            if rows and (row["image"] != rows[0]["image"] or is_missing(row["image"])):
                yield _record(folder, media_root, rows)
                rows = []
            rows.append(row | {"number": number + 1})
    if rows:
        yield _record(folder, media_root, rows)


def _record(folder: Path, media_root: Path | None, rows: list[dict[str, Any]]) -> PairRecord:
    fields = FieldReader(next((row[PROBLEM] for row in rows if row.get(PROBLEM)), ""))
    # a row without a caption counts as an empty caption
    captions = [text for row in rows for text in (fields.captions(row["caption"]) or [""])]
    values: dict[str, str] = {}
    for name in _ONE_OF_A_FILE:
        texts = dict.fromkeys(text for row in rows if (text := fields.text(row.get(name), name)))
        if len(texts) > 1:
            fields.refuse(f"rows of one file differ in {name}")
        values[name] = next(iter(texts), "")
    path = "" if is_missing(rows[0]["image"]) else str(rows[0]["image"])
    id = path or f"row {rows[0]['number']}"
    group = values["group"] or id
    split = values["split"] or hash_split(group)
    return PairRecord(
        id=id,
        group=group,
        split=SPLIT_NAMES.get(split.lower(), split),
        media={"image": locate(path, folder, media_root)} if path else {},
        captions=captions,
        domain=values["domain"],
        label=values["label"],
        problem=fields.problem,
    )


SOURCE = Source("table", ("image", "text"), _EXPECTS, _read)
