"""Sound files in class folders, or in folds as in ESC-10 and ESC-50; the captions come from the classes.

Layout: ``[SPLIT/]CLASS/*.wav|ogg|mp3|flac``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ccaco_cli.core.data.sources.delimited import open_delimited
from ccaco_cli.core.data.sources.fields import text_from
from ccaco_cli.core.data.sources.lists import SPLIT_NAMES, hash_fraction, hash_split
from ccaco_cli.core.data.sources.media_files import PassedOver, layout_error, media_below
from ccaco_cli.core.data.sources.source import Source, SourceData, SourceOptions
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.modalities import MODALITIES
from ccaco_cli.core.types import PairRecord

_EXPECTS = (
    "class folders of sounds: CLASS/*.wav|ogg|mp3|flac, under train/ val/ test/ if you have splits; "
    "or ESC-10 or ESC-50 with its folds"
)
_TEMPLATE = "the sound of {}"
_ESC = re.compile(r"(?P<fold>\d)-(?P<recording>\d+)-(?P<take>[A-Z])(?:-(?P<target>\d+))?")
"""File names of ESC: fold, Freesound id, take, and in ESC-50 the class number."""
VAL = 0.1
"""Share of the recordings of the other folds that is used for validation."""


@dataclass(frozen=True)
class _Sound:
    path: Path
    id: str
    label: str
    split: str | None
    fold: int
    recording: str
    problem: str = ""


def _read(root: Path | None, options: SourceOptions) -> SourceData:
    if root is None or not root.is_dir():
        raise layout_error("audiofolder", "no folder here", root, _EXPECTS)
    template = options.template or _TEMPLATE
    if "{}" not in template:
        raise DataError("the template has no {} for the class name", where=template, expected=f'"{_TEMPLATE}"')
    links_to, passed_over = (options.media_root,) if options.media_root else (), PassedOver()
    class_table = root / "meta" / "esc50.csv"
    categories, table_facts = _categories(class_table) if class_table.is_file() else ({}, {})
    sounds = list(_sounds(root, categories, links_to, passed_over))
    if not sounds:
        problem = f"no sound in this folder (it holds {passed_over})"
        raise layout_error("audiofolder", problem, root, _EXPECTS, folder_of_media=True)
    folds = sorted({sound.fold for sound in sounds})
    in_folds = folds[0] > 0 and len(folds) > 1 and not any(sound.split for sound in sounds)
    if options.fold and (not in_folds or options.fold not in folds):
        raise DataError(
            "no such fold",
            where=f"--fold {options.fold}",
            expected=f"one of {', '.join(map(str, folds))}" if in_folds else "a set in folds",
        )
    test = options.fold or folds[-1]
    protocol = "audiofolder (split folders where there are any; else 80/10/10 by hash of the path)"
    if in_folds:
        others = "+".join(str(fold) for fold in folds if fold != test)
        protocol = (
            f"audiofolder: test on fold {test}, train on folds {others}, a tenth of their recordings by hash "
            "for validation"
        )
    return SourceData(
        records=_records(sounds, template, test if in_folds else 0),
        protocol=protocol,
        facts={"template": template, "classes": len({sound.label for sound in sounds})}
        | ({"test_fold": test} if in_folds else {})
        | table_facts
        | passed_over.facts(),
        text_files=(class_table,) if class_table.is_file() else (),
    )


def _records(sounds: list[_Sound], template: str, test_fold: int) -> Iterator[PairRecord]:
    for sound in sounds:
        split = sound.split or hash_split(sound.id)
        if test_fold:
            # takes of one recording stay in one split
            split = "test" if sound.fold == test_fold else "val" if hash_fraction(sound.recording) < VAL else "train"
        yield PairRecord(
            id=sound.id,
            group=sound.label,  # two sounds of a class have the same caption, so they are no negatives of each other
            split=split,
            media={"audio": sound.path},
            captions=[template.format(sound.label), sound.label] if sound.label else [],
            label=sound.label,
            problem=sound.problem,
        )


def _sounds(
    root: Path, categories: Mapping[str, str], links_to: tuple[Path, ...], passed_over: PassedOver
) -> Iterator[_Sound]:
    for file in media_below(root, MODALITIES["audio"], links_to=links_to, passed_over=passed_over):
        path = file.path
        id = path.relative_to(root).as_posix()
        places = path.relative_to(root).parts[:-1]
        split = SPLIT_NAMES.get(places[0].lower()) if places else None
        label = _class_name(places[-1]) if places[1 if split else 0 :] else ""
        label = categories.get(path.name, label)
        esc = _ESC.fullmatch(path.stem)
        fold, recording = (int(esc["fold"]), esc["recording"]) if esc else (0, path.stem)
        yield _Sound(path, id, label, split, fold, recording, file.problem)


def _class_name(folder: str) -> str:
    """``003 - Sea waves`` -> ``sea waves``."""
    return re.sub(r"^\d+\s*-\s*", "", folder).replace("_", " ").strip().lower()


def _categories(table: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Reads ESC-50's ``meta/esc50.csv``: file name -> class ("" = missing), and the facts of the table.

    Raises DataError: other columns, or a file with two rows.
    """
    opened = open_delimited(table, ",", path_column="filename")
    if any(opened.names.count(column) != 1 for column in ("filename", "category")):
        raise DataError(
            "a table without the expected columns", where=table, expected="the columns filename and category"
        )
    categories: dict[str, str] = {}
    for cells in opened.rows:
        row = dict(zip(opened.names, cells, strict=True))
        if row["filename"] in categories:
            raise DataError("a file with two rows", where=f"{table}: {row['filename']}", expected="one row a file")
        categories[row["filename"]] = text_from(row["category"], "category").replace("_", " ")
    return categories, opened.facts()


SOURCE = Source("audiofolder", ("audio", "text"), _EXPECTS, _read)
