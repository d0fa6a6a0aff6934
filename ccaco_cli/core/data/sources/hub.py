"""A data set in the layout of the Hugging Face hub, by name or as a local folder, streamed through ``datasets``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ccaco_cli.core.data.caption_languages import LANGUAGES, language_runs
from ccaco_cli.core.data.sources.extra_columns import extra_facts
from ccaco_cli.core.data.sources.fields import FieldReader
from ccaco_cli.core.data.sources.lists import HASH_SPLITS, SPLIT_NAMES, TYPE_FILE, hash_split, is_retrieval
from ccaco_cli.core.data.sources.source import Source, SourceData, SourceOptions
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.types import Media, PairRecord

if TYPE_CHECKING:
    from datasets import IterableDataset

_EXPECTS = (
    "hub:NAME or hub:NAME:CONFIG of huggingface.co/datasets, or a local folder in that layout; "
    "columns by --column OURS=THEIRS"
)
_TEMPLATE = "a photo of a {}"
_USUAL = {
    "image": ("image", "img", "jpg", "png", "filepath", "file_name"),
    "caption": ("caption", "captions", "text", "txt", "title", "sentences"),
    "label": ("label", "labels", "class"),
    "split": ("split",),
    "domain": ("domain",),
    "group": ("group",),
    "language": (),
}
"""Our names -> default column names; the first that exists is used unless a flag names another."""


@dataclass(frozen=True)
class _Columns:
    """Our names -> names of the columns (``source``).

    ``labels`` converts class numbers to names; with ``lines`` each line of a text is a caption. ``extra`` are further
    columns, of numbers, texts and dates. Rows in other languages than ``languages`` are passed over; () = in none.
    """

    source: Mapping[str, str]
    labels: Any
    template: str
    lines: bool = False
    extra: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()

    def captions(self, row: Mapping[str, Any], label: str, fields: FieldReader) -> list[str]:
        if "caption" in self.source:
            value = row[self.source["caption"]]
            return fields.captions(value.splitlines() if self.lines and isinstance(value, str) else value)
        return [self.template.format(label)] if label else []

    def text(self, row: Mapping[str, Any], name: str, fields: FieldReader) -> str:
        value = row[self.source[name]] if name in self.source else None
        if name == "label" and isinstance(value, int) and hasattr(self.labels, "int2str"):
            return str(self.labels.int2str(value)).replace("_", " ") if value >= 0 else ""
        return fields.text(value, name)


def _read(root: Path | None, options: SourceOptions) -> SourceData:
    where, _, config = options.name.partition(":") if root is None else (str(root), "", "")
    if not where:
        raise DataError(
            "no name of a data set", where="hub", expected=_EXPECTS, next="ccaco prepare hub --source FOLDER"
        )
    folder = Path(where).resolve() if Path(where).is_dir() else None
    parts, licence, revision = _load(where, config, folder)
    columns = _columns(where, next(iter(parts.values())), options)
    if columns.source.get("caption") == "txt":
        columns = replace(columns, lines=_is_retrieval(where, folder))
    single_split = len(parts) == 1 and "split" not in columns.source
    if options.limit is not None and not single_split and "split" not in columns.source:
        parts = {name: part.take(options.limit) for name, part in parts.items()}
    return SourceData(
        records=_records(parts, replace(columns, languages=options.languages), folder, single_split),
        protocol=f"hub {folder.name if folder else where}{config and f' ({config})'}; "
        + ("80/10/10 by hash of the row number (published as one split)" if single_split else "splits as published"),
        licence=licence,
        revision=revision,
        facts={"columns": dict(columns.source)},
        splits=HASH_SPLITS if single_split else (),
        root=folder,
    )


def _load(where: str, config: str, folder: Path | None) -> tuple[dict[str, IterableDataset], str, str]:
    """The splits, the licence, and the commit of the hub's repository ("" for a local folder)."""
    import datasets

    datasets.disable_progress_bars()  # the command shows its own
    try:
        builder = datasets.load_dataset_builder(str(folder or where), config or None)
        parts = dict(builder.as_streaming_dataset())
    except (
        Exception
    ) as error:  # no network, no such name, an unknown layout: its readers raise many kinds of exceptions
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise DataError(
            f"the library datasets cannot read this ({why[:300]})", where=where, expected=_EXPECTS
        ) from None
    return parts, builder.info.license or "", "" if folder else f"commit {builder.hash}"


def _columns(where: str, part: IterableDataset, options: SourceOptions) -> _Columns:
    features = dict(part.features or dict.fromkeys(next(iter(part), {})))
    wanted = {ours: [name for name in names if name in features][:1] for ours, names in _USUAL.items()}
    pictures = [name for name, kind in features.items() if type(kind).__name__ == "Image"]
    if len(pictures) == 1:
        wanted["image"] = pictures
    unknown = options.columns.keys() - _USUAL.keys()
    if unknown:
        raise DataError(
            f"unknown column name: {sorted(unknown)[0]}", where=where, expected=f"one of {', '.join(_USUAL)}"
        )
    wanted |= {ours: [name] if name in features else [] for ours, name in options.columns.items()}
    needed = ["image"] if wanted["label"] and not wanted["caption"] else ["image", "caption"]
    missing = [ours for ours in (*needed, *options.columns) if not wanted[ours]]
    if missing:
        requested = options.columns.get(missing[0])
        raise DataError(
            f"no column {requested!r} for {missing[0]}" if requested else f"no column that looks like the {missing[0]}",
            where=where,
            expected=f"one of {', '.join(features)}",
            next=f"--column {missing[0]}=ONE_OF_THESE",
        )
    source = {ours: names[0] for ours, names in wanted.items() if names}
    extra = tuple(name for name, kind in features.items() if name not in source.values() and _is_plain(kind))
    return _Columns(source, features.get(source.get("label", "")), options.template or _TEMPLATE, extra=extra)


def _is_plain(kind: Any) -> bool:
    """Whether a column holds numbers, texts or dates, which cost little to read."""
    return type(kind).__name__ == "Value" and "binary" not in str(kind.dtype)


def _records(
    parts: Mapping[str, IterableDataset], columns: _Columns, folder: Path | None, single_split: bool
) -> Iterator[PairRecord]:
    import datasets

    for name, part in parts.items():
        picture = columns.source["image"]
        part = part.select_columns([*dict.fromkeys(columns.source.values()), *columns.extra])  # others are not decoded
        if type((part.features or {}).get(picture)).__name__ == "Image":
            part = part.cast_column(picture, datasets.Image(decode=False))
        for number, row in enumerate(_rows(part, name)):
            fields, id = FieldReader(), f"{name}/{number}"
            label = columns.text(row, "label", fields)
            split = columns.text(row, "split", fields) or (hash_split(id) if single_split else name)
            media = _media(row[picture], folder, fields)
            captions = columns.captions(row, label, fields)
            meta = extra_facts({name: row[name] for name in columns.extra})
            if "language" in columns.source:
                code = fields.language(row[columns.source["language"]], captions)
                if code and columns.languages and code not in columns.languages:
                    continue
                meta |= {LANGUAGES: language_runs([code] * len(captions)), "language": code}
            yield PairRecord(
                id,
                columns.text(row, "group", fields) or (label if "caption" not in columns.source else id),
                SPLIT_NAMES.get(split.lower(), split),
                {} if media is None else {"image": media},
                captions,
                domain=columns.text(row, "domain", fields),
                label=label,
                meta=meta,
                problem=fields.problem,
            )


def _rows(part: IterableDataset, name: str) -> Iterator[Mapping[str, Any]]:
    try:
        yield from part
    except Exception as error:  # as in ``_load``
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise DataError(
            f"the library datasets failed to read split {name} ({why[:300]})",
            where="hub",
            next="correct the files, or --limit N",
        ) from None


def _media(value: Any, folder: Path | None, fields: FieldReader) -> Media | None:
    """Bytes, a local file, or a function that downloads a file of the hub; None = the row has no image."""
    data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (None, value)
    for value in (data, path):
        if isinstance(value, bytes):
            return value
    path = fields.text(path, "image")
    if not path:
        return None
    return folder / path if folder is not None and "://" not in path else partial(_fetch, path)


def _is_retrieval(where: str, folder: Path | None) -> bool:
    """Whether the shards are a retrieval set of CLIP_benchmark, which has one caption a line."""
    file = f"hf://datasets/{where}/{TYPE_FILE}" if folder is None else str(folder / TYPE_FILE)
    try:
        return is_retrieval(_fetch(file))
    except Exception:  # most data sets have no such file; how the hub says this depends on its client
        return False


def _fetch(path: str) -> bytes:
    from datasets.utils.file_utils import xopen

    with xopen(path, "rb") as file:
        data: bytes = file.read()
    return data


SOURCE = Source("hub", ("image", "text"), _EXPECTS, _read, resolves_path=True)
