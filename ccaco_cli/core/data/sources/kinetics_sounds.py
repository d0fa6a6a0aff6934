"""Kinetics-Sounds: clips in class folders, or the list files as distributed over a folder of clips.

The set is a choice of classes of Kinetics, and published work uses different choices. The number of classes therefore
names the protocol, and a hash of the class list tells two lists of equal length apart. Clips disappear from the site
that hosts them, so the number of missing clips is part of the protocol of the data set and of every result.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ccaco_cli.core.data.sources.lists import (
    SPLIT_NAMES,
    decode_text,
    hash_fraction,
    read_lines,
    repeated,
    revision_of,
)
from ccaco_cli.core.data.sources.media_files import MediaFile, PassedOver, layout_error, media_below
from ccaco_cli.core.data.sources.source import Source, SourceData, SourceOptions
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.modalities import MODALITIES
from ccaco_cli.core.types import PairRecord

_EXPECTS = (
    "CLASS/*.mp4 (under train/ val/ test/ if you have splits; class.txt chooses classes), "
    "or the lists *train*.txt and *test*.txt (ID,10,LABEL) beside the clips"
)
_CLASS_FILE = "class.txt"
_CLIP = re.compile(r"(?P<video>.{11})_(?P<start>\d+)(?:_\d+)?")
"""Two notations: ``VIDEO_000058_000068`` and ``VIDEO_58``."""
PROTOCOLS = {
    31: "the lists of OGM-GE (arXiv:2203.15332)",
    32: "what the released Kinetics-400 has of the 34",
    33: "the class.txt that goes round with the lists",
    34: "the original (arXiv:1705.08168, appendix A)",
}
"""Number of classes -> source of this choice of classes."""
VAL = 0.1
"""Share of the training videos, by hash of their id, that is used for validation if there is no validation list."""


@dataclass(frozen=True)
class _Clip:
    """A listed clip; ``path`` is None if the file is missing, ``problem`` is why it cannot be used."""

    name: str
    label: str
    split: str
    path: Path | None
    problem: str = ""


def _read(root: Path | None, options: SourceOptions) -> SourceData:
    if root is None or not root.is_dir():
        raise layout_error("kinetics-sounds", "no folder here", root, _EXPECTS)
    lists, passed_over = _lists(root), PassedOver()
    files = list(_files(root, options.media_root, passed_over))
    if lists:
        clips, classes, absent = _listed(files, lists)
        revision = revision_of(*lists)
    else:
        clips, classes, absent = _in_folders(root, [file for file in files if file.path.is_relative_to(root)])
        revision = ""
    missing = sorted(clip.name for clip in clips if clip.path is None)
    if len(missing) == len(clips):
        problem = f"none of the {len(clips):,} listed clips is here" if clips else "no clips here"
        raise layout_error("kinetics-sounds", problem, root, _EXPECTS)
    listed, lost = Counter(clip.split for clip in clips), Counter(clip.split for clip in clips if clip.path is None)
    known = PROTOCOLS.get(len(classes), "no published number of classes")
    protocol = f"kinetics-sounds-{len(classes)} ({known}; class list sha256:{_hash(classes)})"
    protocol += "".join(
        f", {split} {lost[split]:,} of {count:,} missing" for split, count in sorted(listed.items()) if lost[split]
    )
    facts = {
        "classes": len(classes),
        "class_list": _hash(classes),
        "classes_without_clips": absent,
        "listed": dict(listed),
        "missing": dict(lost),
        "missing_list": _hash(missing) if missing else "",
        **passed_over.facts(),
    }
    here = [clip for clip in clips if clip.path is not None]
    return SourceData(
        records=_records(here),
        protocol=protocol,
        licence="clips belong to their uploaders; Kinetics' annotations CC BY 4.0",
        revision=revision,
        text_files=[file for file in (*lists, root / _CLASS_FILE) if file.is_file()],
        facts=facts,
        counts=Counter(clip.split for clip in here),
    )


def _records(clips: list[_Clip]) -> Iterator[PairRecord]:
    for clip in clips:
        if clip.path is not None:
            media = {"video": clip.path, "audio": clip.path}
            yield PairRecord(clip.name, clip.name, clip.split, media, label=clip.label, problem=clip.problem)


def _lists(root: Path) -> dict[Path, str]:
    """List files -> their split, from the file names."""
    splits = {}
    for path in sorted(root.glob("*.txt")):
        words = [SPLIT_NAMES[word] for word in re.split(r"[^a-z]+", path.stem.lower()) if word in SPLIT_NAMES]
        if words:
            splits[path] = words[0]
    return splits


def _listed(files: list[MediaFile], lists: dict[Path, str]) -> tuple[list[_Clip], list[str], list[str]]:
    """Clips of the lists, in their order; classes are numbers, because the lists do not name them."""
    by_key: dict[tuple[str, int], list[MediaFile]] = {}
    for file in files:
        by_key.setdefault(_key(file.path.stem), []).append(file)
    has_val = "val" in lists.values()
    clips = []
    for table, split in lists.items():
        for number, line in enumerate(read_lines(table), 1):
            parts = line.strip().rsplit(",", 2)
            name, label = parts[0].removesuffix(".mp4"), parts[-1].strip()
            if len(parts) != 3 or not label.isdigit() or not _CLIP.fullmatch(name):
                expected = "ID_START_END,10,LABEL or ID_START,10,LABEL"
                raise DataError(
                    "not a line of a Kinetics-Sounds list",
                    where=f"{table.name}:{number}: {line[:60]}",
                    expected=expected,
                )
            here = by_key.get(_key(name), [])
            here = [file for file in here if file.path.stem == name] or here
            problem = "several files of one clip" if len(here) > 1 else here[0].problem if here else ""
            path = here[0].path if here else None
            clips.append(_Clip(name, label, _split(split, name, has_val), path, problem))
    twice = [name for name, count in Counter(clip.name for clip in clips).items() if count > 1]
    if twice:
        raise DataError("a clip is listed twice", where=twice[0], expected="each clip once, in one list")
    return clips, sorted({clip.label for clip in clips}, key=int), []


def _in_folders(root: Path, files: list[MediaFile]) -> tuple[list[_Clip], list[str], list[str]]:
    """Clips of class folders; ``class.txt`` (names separated by commas or line ends) chooses the classes.

    Files of one name are told apart by their folder and suffix.
    """
    wanted = _class_list(root)
    labelled = []
    for file in files:
        places = file.path.relative_to(root).parts[:-1]
        split = SPLIT_NAMES.get(places[0].lower(), "") if places else ""
        label = _class_name(places[-1]) if places[1 if split else 0 :] else ""
        if label and (wanted is None or label in wanted):
            labelled.append((file, label, split))
    splits = {split for _, _, split in labelled}
    twice = repeated(file.path.stem for file, _, _ in labelled)
    clips = []
    for file, label, split in labelled:
        path, stem = file.path, file.path.stem
        name = path.relative_to(root).as_posix() if stem in twice else stem
        clips.append(_Clip(name, label, _split(split, stem, "val" in splits), path, file.problem))
    classes = wanted if wanted is not None else sorted({clip.label for clip in clips})
    return clips, classes, sorted(set(classes) - {clip.label for clip in clips})


def _split(split: str, name: str, has_val: bool) -> str:
    """The split of a clip; clips of one video stay in one split."""
    fraction = hash_fraction(_key(name)[0])
    if not split:
        return "train" if fraction < 0.8 else "val" if fraction < 0.9 else "test"
    return "val" if split == "train" and not has_val and fraction < VAL else split


def _key(stem: str) -> tuple[str, int]:
    """Video and start in seconds: equal for both notations of a clip."""
    match = _CLIP.fullmatch(stem)
    return (match["video"], int(match["start"])) if match else (stem, -1)


def _files(root: Path, media_root: Path | None, passed_over: PassedOver) -> Iterator[MediaFile]:
    """The videos below the folder of the lists, and below the folder that the user names for media."""
    links_to = (media_root,) if media_root else ()
    yield from media_below(root, MODALITIES["video"], links_to=links_to, passed_over=passed_over)
    if media_root is not None and not media_root.is_relative_to(root):
        yield from media_below(media_root, MODALITIES["video"], links_to=(root,), passed_over=passed_over)


def _class_list(root: Path) -> list[str] | None:
    file = root / _CLASS_FILE
    if not file.is_file():
        return None
    names = (_class_name(name) for name in re.split(r"[,\n]", decode_text(file.read_bytes())))
    return sorted({name for name in names if name})


def _class_name(text: str) -> str:
    return " ".join(text.replace("_", " ").lower().split())


def _hash(names: Iterable[str]) -> str:
    """Start of the SHA-256 of names, one a line, in the order given."""
    return hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest()[:16]


SOURCE = Source("kinetics-sounds", ("video", "audio"), _EXPECTS, _read)
