"""A table of paths of images, sounds, videos or arrays, alone or with captions: CSV, TSV, JSON, JSON lines or Parquet.

An array can also stand in the table itself, as a list of numbers, or of rows.

Default column names are those of open_clip. All further columns travel to the index (``extra_columns``).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ccaco_cli.core.data.caption_languages import (
    LANGUAGES,
    chosen_languages,
    evaluation_facts,
    language_code,
    language_runs,
)
from ccaco_cli.core.data.questions import QUESTIONS, stored
from ccaco_cli.core.data.sources.extra_columns import extra_facts
from ccaco_cli.core.data.sources.fields import FieldReader, is_missing
from ccaco_cli.core.data.sources.lists import HASH_SPLITS, SPLIT_NAMES, hash_split, revision_of
from ccaco_cli.core.data.sources.media import checked_modality
from ccaco_cli.core.data.sources.media_files import layout_error, locate
from ccaco_cli.core.data.sources.source import Source, SourceData, SourceOptions
from ccaco_cli.core.data.sources.table_formats import BATCH, FORMATS, LISTS, PROBLEM, VALUES, RawTable, extra_values
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.modalities import MODALITIES
from ccaco_cli.core.shell import quoted_path
from ccaco_cli.core.types import Media, PairRecord

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = {
    "image": "filepath",
    "caption": "title",
    "split": "split",
    "domain": "domain",
    "label": "label",
    "group": "group",
    "question": "question",
    "answers": "answers",
    "language": "language",
}
_NEEDED = ("image", "caption")
_ONE_OF_A_FILE = ("split", "domain", "label", "group")
"""Columns that must agree in all rows of one file."""
_EXPECTS = (
    "a .csv, .tsv, .json, .jsonl or .parquet file with columns filepath and title, or filepath alone; optional split, "
    "domain, label, group, language, question with answers; paths from its folder, or from --image-root"
)


def _read(root: Path | None, options: SourceOptions) -> SourceData:
    if root is None or not root.is_file():
        raise layout_error("table", "no table here", root, _EXPECTS, folder_of_media=True)
    modality = checked_modality(options.modality) or "image"
    named = {"image" if ours == modality else ours: column for ours, column in options.columns.items()}
    unknown = named.keys() - COLUMNS.keys()
    if unknown:
        raise DataError(
            f"unknown column name: {sorted(unknown)[0]}", where=root, expected=f"one of {', '.join(COLUMNS)}"
        )
    opened, columns = open_table(root, {**COLUMNS, **named}, named, options.separator)
    columns = _without_half_questions(columns, named, root)
    captioned = "caption" in columns or "question" in columns
    columns = _without_lone_languages(columns, named, root)
    # a name that is not UTF-8 cannot be stored, like an empty one
    extra = [name for name in dict.fromkeys(opened.names) if _has_text(name) and name not in columns.values()]
    table = _with_values(opened.table(columns, extra), modality)
    table = _with_paths(table, columns["image"], root, options.media_root)
    _refuse_other_media(table, modality, root)
    table, languages = _in_languages(table, options.languages, root)
    rule = (
        "its split column"
        if "split" in columns
        else "all in test"
        if not captioned
        else "80/10/10 by hash of the group"
        if "group" in columns
        else "80/10/10 by hash of the path"
    )
    return SourceData(
        records=_records(_Reader(root.parent, options.media_root, modality, captioned), table),
        protocol=f"table (split: {rule}; rows of one path are one sample)",
        revision=revision_of(root),
        facts={"rows": table.num_rows, **opened.facts, **evaluation_facts(languages)},
        text_files=() if root.suffix.lower() == ".parquet" else (root,),
        splits=() if "split" in columns else HASH_SPLITS if captioned else ("test",),
        modalities=(modality, "text") if captioned else (modality,),
    )


def open_table(
    file: Path, wanted: Mapping[str, str], named: Mapping[str, str], separator: str | None = None
) -> tuple[RawTable, dict[str, str]]:
    """Opens a table of any format.

    Args:
        wanted: our names -> columns of the file, as they are unless the file says otherwise.
        named: those that the user named.
        separator: of a CSV file; None = by its header.
    Returns:
        The table, and our names -> columns that it has.
    Raises:
        DataError: no format that can be read, a table that cannot be read, or not one column of paths.
    """
    suffix = file.suffix.lower()
    if suffix not in FORMATS:
        raise DataError("a table of unknown kind", where=file, expected=f"a file ending in {', '.join(FORMATS)}")
    opened, wanted = FORMATS[suffix](file, wanted["image"], separator), dict(wanted)
    if suffix in LISTS:
        wanted |= {ours: ours for ours in _NEEDED if ours not in named and wanted[ours] not in opened.names}
    if "caption" not in named and wanted["caption"] not in opened.names:
        del wanted["caption"]
    return opened, _columns(opened.names, wanted, named, file)


def _without_half_questions(columns: dict[str, str], named: Mapping[str, str], file: Path) -> dict[str, str]:
    """The columns without one of ``question`` and ``answers`` alone. Raises DataError: the user named that one."""
    alone = {"question", "answers"} & columns.keys()
    if len(alone) != 1:
        return columns
    if alone <= named.keys():
        raise DataError(
            "questions without answers, or answers without questions",
            where=file,
            expected="both columns",
            next="--column question=NAME --column answers=NAME",
        )
    return {ours: column for ours, column in columns.items() if ours not in alone}


def _without_lone_languages(columns: dict[str, str], named: Mapping[str, str], file: Path) -> dict[str, str]:
    """The columns without that of languages where there are no captions, or questions beside them.

    Raises DataError: the user named it.
    """
    if "language" not in columns or ("caption" in columns and "question" not in columns):
        return columns
    if "language" in named:
        problem = "languages of questions" if "question" in columns else "languages without captions"
        raise DataError(problem, where=file, expected="a column of captions, and none of questions")
    return {ours: column for ours, column in columns.items() if ours != "language"}


def _has_text(name: str) -> bool:
    return bool(name) and name.encode("utf-8", "ignore").decode() == name


def _refuse_other_media(table: pa.Table, modality: str, file: Path) -> None:
    """Raises DataError: the first path has a suffix of another modality, which would make every row a reject."""
    import pyarrow.compute as pc

    paths = table.column("image")
    first = next(iter(paths.filter(pc.not_equal(paths, "")).slice(0, 1).to_pylist()), "")
    suffix = os.path.splitext(first)[1].lower()
    entry = next((m for m in MODALITIES.values() if suffix in (*m.suffixes, *m.unreadable_suffixes)), None)
    if entry is not None and entry.name != modality:
        raise DataError(
            f"the paths of this table are {entry.name} files, not {modality}",
            where=f"{file}: {first}",
            expected=f"--modality {entry.name}",
            next=f"ccaco prepare table --source {quoted_path(file)} --modality {entry.name}",
        )


def _columns(names: list[str], wanted: Mapping[str, str], named: Mapping[str, str], file: Path) -> dict[str, str]:
    """Our names -> columns of the file. Raises DataError: a column that is needed is missing or repeated."""
    wrong = [
        ours
        for ours, column in wanted.items()
        if names.count(column) != 1 and (ours == "image" or column in names or ours in named)
    ]
    if wrong:
        raise DataError(
            f"not one column {wanted[wrong[0]]!r} for {wrong[0]}",
            where=file,
            expected=f"one of {', '.join(names)}",
            next=f"--column {wrong[0]}=ONE_OF_THESE",
        )
    return {ours: column for ours, column in wanted.items() if column in names}


def _with_values(table: pa.Table, modality: str) -> pa.Table:
    """The table with a list column as ``VALUES`` and no paths, where the samples of the modality can be such lists."""
    import pyarrow as pa

    type = table.schema.field("image").type
    is_list = pa.types.is_list(type) or pa.types.is_large_list(type) or pa.types.is_fixed_size_list(type)
    if MODALITIES[modality].from_values is None or not is_list:
        return table
    at = table.schema.get_field_index("image")
    with_values = table.append_column(VALUES, table.column("image"))
    return with_values.set_column(at, "image", pa.nulls(table.num_rows, pa.string()))


def _in_languages(table: pa.Table, wanted: tuple[str, ...], file: Path) -> tuple[pa.Table, tuple[str, ...]]:
    """The rows whose captions are in these languages (() = in any), and their codes.

    Rows without a code, or with a wrong one, stay, so that they are rejected. Without a column of languages, or with an
    empty one, the table is as it was.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if "language" not in table.column_names:
        return table, ()
    try:
        values = table.column("language").cast(pa.large_string())
    except pa.ArrowException:
        raise DataError(
            f"the column of languages holds {table.schema.field('language').type}, not codes",
            where=file,
            expected="a code such as en for each caption",
            next="--column language=ANOTHER",
        ) from None
    codes = {value: _code(value) for value in pc.unique(values).to_pylist() if not is_missing(value)}
    if not codes:
        return table.drop_columns(["language"]), ()
    chosen = chosen_languages(wanted, sorted(set(codes.values()) - {""}), file)
    others = [value for value, code in codes.items() if code and code not in chosen]
    return table.filter(pc.invert(pc.is_in(values, pa.array(others, pa.large_string())))), chosen


def _code(value: Any) -> str:
    """``language_code``; "" = it is none."""
    try:
        return language_code(str(value))
    except DataError:
        return ""


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
    paths = _from_windows(paths, file.parent)
    for folder in (file.parent, media_root) if pc.any(pc.starts_with(paths, "/")).as_py() else ():
        for prefix in {f"{folder}/", f"{os.path.realpath(folder)}/"} if folder is not None else ():
            inside = pc.utf8_slice_codeunits(paths, len(prefix))
            paths = pc.if_else(pc.starts_with(paths, prefix), inside, paths)
    return table.set_column(table.schema.get_field_index("image"), "image", paths)


def _from_windows(paths: pa.ChunkedArray, folder: Path) -> pa.ChunkedArray:
    """Paths that were written on Windows, for another system: with "/", and from the common folder of all where they
    begin with a drive, so that ``--image-root`` can name that folder.
    """
    import pyarrow.compute as pc

    windows = paths.filter(pc.match_substring(paths, "\\"))
    if os.sep == "\\" or not len(windows) or pc.any(pc.match_substring(paths, "/")).as_py():
        return paths
    if (folder / windows[0].as_py()).exists():  # a name with a backslash
        return paths
    paths = pc.replace_substring(paths, "\\", "/")
    named = paths.filter(pc.not_equal(paths, ""))
    if pc.all(pc.match_substring_regex(named, "^[A-Za-z]:/")).as_py():
        common = os.path.commonpath([os.path.dirname(path) for path in pc.min_max(named).as_py().values()])
        paths = pc.utf8_slice_codeunits(paths, len(common) + 1 if common else 0)
    return paths


@dataclass(frozen=True)
class _Reader:
    """How rows become records.

    Attributes:
        folder: of the table.
        media_root: ``--image-root``.
        modality: of the files.
        captioned: there is a column of captions.
    """

    folder: Path
    media_root: Path | None
    modality: str
    captioned: bool


def _records(reader: _Reader, table: pa.Table) -> Iterator[PairRecord]:
    """One record per file, in the order of first mention; each row without a path is a record of its own.

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
                yield _record(reader, rows)
                rows = []
            rows.append(row | {"number": number + 1})
    if rows:
        yield _record(reader, rows)


def _record(reader: _Reader, rows: list[dict[str, Any]]) -> PairRecord:
    fields = FieldReader(next((row[PROBLEM] for row in rows if row.get(PROBLEM)), ""))
    # a row without a caption counts as an empty caption
    captions: list[str] = []
    languages: list[str] = []
    meta = _common_facts(rows)
    for row in rows if "caption" in rows[0] else ():
        of_row = fields.captions(row["caption"]) or [""]
        captions += of_row
        if "language" in row:
            languages += [fields.language(row["language"], of_row)] * len(of_row)
    if languages:
        # a sample in one language can be found by it
        meta |= {LANGUAGES: language_runs(languages)} | ({"language": languages[0]} if len(set(languages)) == 1 else {})
    if "question" in rows[0]:
        questions = fields.questions((row["question"], row["answers"]) for row in rows)
        # a file has one row for each question, which repeat its captions
        captions = list(dict.fromkeys(filter(None, captions))) or [question.caption for question in questions]
        meta[QUESTIONS] = stored(questions)
    values: dict[str, str] = {}
    for name in _ONE_OF_A_FILE:
        texts = dict.fromkeys(text for row in rows if (text := fields.text(row.get(name), name)))
        if len(texts) > 1:
            fields.refuse(f"rows of one file differ in {name}")
        values[name] = next(iter(texts), "")
    path = "" if is_missing(rows[0]["image"]) else str(rows[0]["image"])
    media = _values(reader, rows[0], fields)
    if path:
        media = {reader.modality: locate(path, reader.folder, reader.media_root)}
    id = path or f"row {rows[0]['number']}"
    group = values["group"] or id
    split = values["split"] or (hash_split(group) if reader.captioned else "test")
    return PairRecord(
        id=id,
        group=group,
        split=SPLIT_NAMES.get(split.lower(), split),
        media=media,
        captions=captions,
        domain=values["domain"],
        label=values["label"],
        meta=meta,
        problem=fields.problem,
    )


def _values(reader: _Reader, row: dict[str, Any], fields: FieldReader) -> Mapping[str, Media]:
    """The sample that is a list of numbers; {} = there is none, or it is refused."""
    values, from_values = row.get(VALUES), MODALITIES[reader.modality].from_values
    if not values:
        return {}
    try:
        if from_values is None:
            raise DataError(f"{reader.modality} is a structure, not a text")
        return {reader.modality: from_values(json.loads(values) if isinstance(values, str) else values)}
    except DataError as error:
        fields.refuse(error.what)
        return {}


def _common_facts(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The further columns of a file; a column in which its rows differ is one of captions, and is left out."""
    first, *others = (extra_facts(extra_values(row)) for row in rows)
    return {name: value for name, value in first.items() if all(facts.get(name) == value for facts in others)}


SOURCE = Source("table", ("image", "text"), _EXPECTS, _read, file_facts=True)
