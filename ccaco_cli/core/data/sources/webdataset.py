"""Tar shards as img2dataset writes them (webdataset layout): ``KEY.jpg``, ``KEY.txt`` and ``KEY.json`` one after another, never unpacked.

The headers of a shard are read in sequence by this process; pictures are read where they lie in the tar by the processes that check them.
"""

from __future__ import annotations

import glob
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ccaco_cli.core.data.checks import MAX_FILE_BYTES
from ccaco_cli.core.data.sources.lists import (
    HASH_SPLITS,
    SPLIT_NAMES,
    decode_text,
    hash_split,
    texts_of,
)
from ccaco_cli.core.data.sources.source import Source, SourceData, SourceOptions
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.manifest import parse_json
from ccaco_cli.core.modalities import MODALITIES
from ccaco_cli.core.types import Media, PairRecord

_EXPECTS = "tar shards of KEY.jpg, KEY.txt or KEY.json: a folder of them, one file, or a pattern such as 'shards/{00000..00099}.tar'"
_TEXT_BYTES = 1 << 20  # more of a caption or a json file is no caption
_MOST_SHARDS = 1_000_000
_KEPT = ("url", "key", "license")  # of a sample's json


@dataclass(frozen=True)
class Slice:
    """The bytes of one member of a tar that is not compressed, read when called."""

    file: Path
    start: int
    size: int

    def __call__(self) -> bytes:
        if self.size > MAX_FILE_BYTES:
            raise DataError("file too large", expected=f"at most {MAX_FILE_BYTES} bytes")
        with self.file.open("rb") as tar:
            tar.seek(self.start)
            data = tar.read(self.size)
        if len(data) < self.size:
            raise OSError("the tar ends within this member")
        return data


@dataclass(frozen=True)
class Damaged:
    """Stands for what cannot be read of a broken tar, so that it is counted and named among the rejects."""

    why: str

    def __call__(self) -> bytes:
        raise DataError("broken archive", where=self.why)


def _read(root: Path | None, options: SourceOptions) -> SourceData:
    files = [] if root is None else _files(root)
    if not files:
        raise DataError(
            "no tar shards here", where=root, expected=_EXPECTS, next="ccaco prepare webdataset --source PATTERN"
        )
    return SourceData(
        records=_records(files, options.limit),
        protocol="webdataset (split: name of the shard or of its folder, else 80/10/10 by hash of shard and key)",
        revision=f"{len(files)} shards, {files[0].name} to {files[-1].name}, {sum(file.stat().st_size for file in files)} bytes",
        facts={"shards": len(files)},
        splits={split for file in files for split in ([_split(file)] if _split(file) else HASH_SPLITS)},
    )


def _files(root: Path) -> list[Path]:
    """The shards in order. Raises DataError: one that the pattern names is not there."""
    if root.is_dir():
        return sorted(path for path in root.rglob("*.tar*") if path.is_file())
    found: list[Path] = []
    for pattern in [str(root)] if root.exists() else braces(str(root)):
        here = [pattern] if Path(pattern).is_file() else sorted(glob.glob(pattern, recursive=True))
        if not here:
            raise DataError("a shard of this pattern is missing", where=pattern, expected=_EXPECTS)
        found += map(Path, here)
    return found


def braces(pattern: str) -> list[str]:
    """``{00..02}`` and ``{a,b}`` written out, as a shell does it. Raises DataError: neither, or far too many."""
    head, brace, rest = pattern.partition("{")
    if not brace:
        return [pattern]
    inside, closed, tail = rest.partition("}")
    span = re.fullmatch(r"(\d+)\.\.(\d+)", inside)
    if span and closed and int(span[2]) - int(span[1]) < _MOST_SHARDS:
        choices = [f"{number:0{len(span[1])}d}" for number in range(int(span[1]), int(span[2]) + 1)]
    elif closed and "," in inside:
        choices = inside.split(",")
    else:
        raise DataError("a pattern that cannot be read", where=pattern, expected="{00000..00099} or {a,b}")
    return [f"{head}{choice}{end}" for end in braces(tail) for choice in choices]


def _split(file: Path) -> str:
    """What the name of a shard, or of its folder, says; "" when they say nothing."""
    words = (re.split(r"[^a-z]", file.name.lower())[0], file.parent.name.lower())
    return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), "")


def _records(files: list[Path], limit: int | None) -> Iterator[PairRecord]:
    seen: Counter[str] = Counter()
    for file in files:
        split = _split(file)
        for record in _samples(file, split):
            if limit is not None and split and seen[split] >= limit:
                break  # the rest of the shard would be read for nothing
            seen[split] += 1
            yield record


def _samples(file: Path, split: str) -> Iterator[PairRecord]:
    name = file.name.partition(".")[0]
    place = f"{file.parent.name}/{name}" if file.parent.name.lower() in SPLIT_NAMES else name
    key = ""
    parts: dict[str, Any] = {}
    try:
        plain = _opens(file)
        with tarfile.open(file, "r:" if plain else "r|*") as tar:
            for member in tar:
                tar.members.clear()  # type: ignore[attr-defined]  # it would remember every one
                if not member.isfile():
                    continue
                path = PurePosixPath(member.name)
                stem, _, suffix = path.name.partition(".")
                if (here := str(path.with_name(stem)) if stem else str(path)) != key and parts:
                    yield _record(place, key, split, parts)
                    parts = {}
                key = here
                kind = suffix.lower().rpartition(".")[2]
                if f".{kind}" in MODALITIES["image"].suffixes:
                    parts.setdefault(
                        "image", Slice(file, member.offset_data, member.size) if plain else _content(tar, member)
                    )
                elif kind in ("txt", "json"):
                    parts[kind] = _content(tar, member, _TEXT_BYTES)
    except (tarfile.TarError, EOFError, OSError) as error:
        if parts:
            yield _record(place, key, split, parts)
        id = f"{place}/(the rest of {file.name})"
        yield PairRecord(id, id, split or "train", {"image": Damaged(str(error))}, ["what follows the damage"])
        return
    if parts:
        yield _record(place, key, split, parts)


def _opens(file: Path) -> bool:
    """True for a tar that is not compressed."""
    try:
        tarfile.open(file, "r:").close()
    except tarfile.ReadError:
        return False
    return True


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo, most: int = MAX_FILE_BYTES) -> bytes:
    found = tar.extractfile(member)
    return b"" if found is None else found.read(most)


def _record(place: str, key: str, split: str, parts: dict[str, Any]) -> PairRecord:
    try:
        told = dict(parse_json(decode_text(parts.get("json", b"{}"))))
    except (ValueError, TypeError):
        told = {}
    captions = texts_of(parts["txt"]) if "txt" in parts else texts_of(told.get("caption"))
    id = f"{place}/{key}"
    media: dict[str, Media] = {"image": parts["image"]} if "image" in parts else {}
    return PairRecord(
        id,
        id,
        split or hash_split(id),
        media,
        captions,
        meta={k: told[k] for k in _KEPT if isinstance(told.get(k), str)},
    )


SOURCE = Source("webdataset", ("image", "text"), _EXPECTS, _read, resolves_path=True)
