"""Tar shards as img2dataset writes them: consecutive ``KEY.jpg``, ``KEY.txt`` and ``KEY.json``, never unpacked.

This process reads the headers of a shard in sequence. The worker processes that check images read them directly from
the tar.
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

_EXPECTS = (
    "tar shards of KEY.jpg, KEY.txt or KEY.json: a folder of them, one file, or a pattern such as "
    "'shards/{00000..00099}.tar'"
)
_MAX_TEXT_BYTES = 1 << 20  # of a caption or a json file
_MAX_SHARDS = 1_000_000
_META_KEYS = ("url", "key", "license")  # of a sample's json


@dataclass(frozen=True)
class Slice:
    """The bytes of one member of an uncompressed tar, read when called."""

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
    """Stands for the unreadable part of a broken tar, so that it is counted and listed among the rejects."""

    reason: str

    def __call__(self) -> bytes:
        raise DataError("broken archive", where=self.reason)


def _read(root: Path | None, options: SourceOptions) -> SourceData:
    files = [] if root is None else _files(root)
    if not files:
        raise DataError(
            "no tar shards here", where=root, expected=_EXPECTS, next="ccaco prepare webdataset --source PATTERN"
        )
    return SourceData(
        records=_records(files, options.limit),
        protocol="webdataset (split: name of the shard or of its folder, else 80/10/10 by hash of shard and key)",
        revision=f"{len(files)} shards, {files[0].name} to {files[-1].name}, "
        f"{sum(file.stat().st_size for file in files)} bytes",
        facts={"shards": len(files)},
        splits={split for file in files for split in ([_split(file)] if _split(file) else HASH_SPLITS)},
    )


def _files(root: Path) -> list[Path]:
    """The shards in order. Raises DataError: a shard of the pattern is missing."""
    if root.is_dir():
        return sorted(path for path in root.rglob("*.tar*") if path.is_file())
    shards: list[Path] = []
    for pattern in [str(root)] if root.exists() else expand_braces(str(root)):
        paths = [pattern] if Path(pattern).is_file() else sorted(glob.glob(pattern, recursive=True))
        if not paths:
            raise DataError("a shard of this pattern is missing", where=pattern, expected=_EXPECTS)
        shards += map(Path, paths)
    return shards


def expand_braces(pattern: str) -> list[str]:
    """Expands ``{00..02}`` and ``{a,b}``; the first braces vary fastest.

    Raises DataError: another syntax, or too many names.

    The library ``braceexpand`` would not be shorter: it needs the same guard against huge ranges, and its order
    differs.
    """
    head, brace, after = pattern.partition("{")
    if not brace:
        return [pattern]
    inside, closed, tail = after.partition("}")
    span = re.fullmatch(r"(\d+)\.\.(\d+)", inside)
    if span and closed and int(span[2]) - int(span[1]) < _MAX_SHARDS:
        choices = [f"{number:0{len(span[1])}d}" for number in range(int(span[1]), int(span[2]) + 1)]
    elif closed and "," in inside:
        choices = inside.split(",")
    else:
        raise DataError("invalid pattern", where=pattern, expected="{00000..00099} or {a,b}")
    return [f"{head}{choice}{end}" for end in expand_braces(tail) for choice in choices]


def _split(file: Path) -> str:
    """The split in the name of a shard or of its folder; "" = they name none."""
    words = (re.split(r"[^a-z]", file.name.lower())[0], file.parent.name.lower())
    return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), "")


def _records(files: list[Path], limit: int | None) -> Iterator[PairRecord]:
    counts: Counter[str] = Counter()
    for file in files:
        split = _split(file)
        for record in _samples(file, split):
            if limit is not None and split and counts[split] >= limit:
                break  # the remaining records of the shard are not needed
            counts[split] += 1
            yield record


def _samples(file: Path, split: str) -> Iterator[PairRecord]:
    name = file.name.partition(".")[0]
    place = f"{file.parent.name}/{name}" if file.parent.name.lower() in SPLIT_NAMES else name
    key = ""
    parts: dict[str, Any] = {}
    try:
        plain = _is_uncompressed(file)
        with tarfile.open(file, "r:" if plain else "r|*") as tar:
            for member in tar:
                tar.members.clear()  # type: ignore[attr-defined]  # otherwise the headers of all members stay in memory
                if not member.isfile():
                    continue
                path = PurePosixPath(member.name)
                stem, _, suffix = path.name.partition(".")
                if (member_key := str(path.with_name(stem)) if stem else str(path)) != key and parts:
                    yield _record(place, key, split, parts)
                    parts = {}
                key = member_key
                kind = suffix.lower().rpartition(".")[2]
                if f".{kind}" in MODALITIES["image"].suffixes:
                    parts.setdefault(
                        "image", Slice(file, member.offset_data, member.size) if plain else _content(tar, member)
                    )
                elif kind in ("txt", "json"):
                    parts[kind] = _content(tar, member, _MAX_TEXT_BYTES)
    except (tarfile.TarError, EOFError, OSError) as error:
        if parts:
            yield _record(place, key, split, parts)
        id = f"{place}/(the rest of {file.name})"
        yield PairRecord(id, id, split or "train", {"image": Damaged(str(error))}, ["what follows the damage"])
        return
    if parts:
        yield _record(place, key, split, parts)


def _is_uncompressed(file: Path) -> bool:
    """True for a tar without compression."""
    try:
        tarfile.open(file, "r:").close()
    except tarfile.ReadError:
        return False
    return True


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    file = tar.extractfile(member)
    return b"" if file is None else file.read(max_bytes)


def _record(place: str, key: str, split: str, parts: dict[str, Any]) -> PairRecord:
    try:
        facts = dict(parse_json(decode_text(parts.get("json", b"{}"))))
    except (ValueError, TypeError):
        facts = {}
    captions = texts_of(parts["txt"]) if "txt" in parts else texts_of(facts.get("caption"))
    id = f"{place}/{key}"
    media: dict[str, Media] = {"image": parts["image"]} if "image" in parts else {}
    return PairRecord(
        id,
        id,
        split or hash_split(id),
        media,
        captions,
        meta={k: facts[k] for k in _META_KEYS if isinstance(facts.get(k), str)},
    )


SOURCE = Source("webdataset", ("image", "text"), _EXPECTS, _read, resolves_path=True)
