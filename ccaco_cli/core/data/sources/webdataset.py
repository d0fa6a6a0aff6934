"""Tar shards as img2dataset writes them: consecutive ``KEY.jpg``, ``KEY.txt`` and ``KEY.json``, never unpacked.

This process reads the headers of a shard in sequence. The worker processes that check images read them directly from
the tar. Shards of an object store or of a command are streams that this process reads (``tar_streams``).
"""

from __future__ import annotations

import glob
import lzma
import os
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, cast

from ccaco_cli.core.data.checks import MAX_FILE_BYTES
from ccaco_cli.core.data.sources.extra_columns import extra_facts
from ccaco_cli.core.data.sources.fields import CAPTION_KEYS, FieldReader
from ccaco_cli.core.data.sources.lists import (
    HASH_SPLITS,
    SPLIT_NAMES,
    TYPE_FILE,
    decode_text,
    hash_split,
    is_retrieval,
    parse_strictly,
    repeated,
)
from ccaco_cli.core.data.sources.media_files import is_hidden, layout_error
from ccaco_cli.core.data.sources.source import Source, SourceData, SourceOptions
from ccaco_cli.core.data.sources.tar_members import Member, TarSample, parse_member, split_members
from ccaco_cli.core.data.sources.tar_streams import PIPE, TarShard, shards_of
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.types import PairRecord

_EXPECTS = (
    "tar shards of KEY.jpg, KEY.txt or KEY.json: a folder of them, one file, a pattern such as "
    "'shards/{00000..00099}.tar', addresses such as 's3://bucket/{00000..00099}.tar', or 'pipe:COMMAND'"
)
_LEFT_OUT = (*CAPTION_KEYS, "width", "height", "sha256")
"""Keys of a sample's json that are no facts to keep: its captions, and what img2dataset measured on the same bytes."""
_MAX_TEXT_BYTES = 1 << 20  # of a caption or a json file
_MAX_SHARDS = 1_000_000
_SHARD_FILES = (TYPE_FILE, "nshards.txt", "classnames.txt", "zeroshot_classification_templates.txt")
"""Files of CLIP_benchmark that describe a data set and are no samples."""
TOO_LARGE = object()
"""Stands for the content of a member that is too large to be read."""
_BROKEN_TAR = (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError)


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
    if options.address:
        tars = shards_of(_addresses(options.address))
    else:
        tars = [TarShard(file) for file in (_files(root) if root is not None else [])]
    if not tars:
        raise layout_error("webdataset", "no tar shards here", root, _EXPECTS, folder_of_media=True)
    files = [tar.file for tar in tars if tar.file is not None]
    size = f", {sum(file.stat().st_size for file in files)} bytes" if files else ""
    splits = [_split(tar.path) for tar in tars]
    return SourceData(
        records=_records(tars, options.limit),
        protocol="webdataset (split: name of the shard or of its folder, else 80/10/10 by hash of shard and key)",
        revision=f"{len(tars)} shards, {tars[0].path.name} to {tars[-1].path.name}{size}",
        facts={"shards": len(tars)},
        splits={name for split in splits for name in ([split] if split else HASH_SPLITS)},
    )


def _addresses(text: str) -> list[str]:
    """The addresses that a pattern stands for. In a command only ``{00..99}`` is a pattern."""
    if text.startswith(PIPE) and not re.search(r"\{\d+\.\.\d+\}", text):
        return [text]
    return expand_braces(text)


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


def _split(file: PurePath) -> str:
    """The split in the name of a shard or of its folder; "" = they name none."""
    words = (re.split(r"[^a-z]", file.name.lower())[0], file.parent.name.lower())
    return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), "")


def _records(tars: list[TarShard], limit: int | None) -> Iterator[PairRecord]:
    counts: Counter[str] = Counter()
    for tar, place in zip(tars, _places([tar.path for tar in tars]), strict=True):
        split = _split(tar.path)
        if limit is not None and split and counts[split] >= limit:
            continue
        with closing(_samples(tar, place, split)) as samples:
            for record in samples:
                if limit is not None and split and counts[split] >= limit:
                    break  # the remaining records of the shard are not needed
                counts[split] += 1
                yield record


def _places(files: list[PurePath]) -> list[str]:
    """The start of the ids of each shard's samples: its name, with its folders where shards have the same name."""
    names = []
    for file in files:
        name = file.name.partition(".")[0]
        names.append(f"{file.parent.name}/{name}" if file.parent.name.lower() in SPLIT_NAMES else name)
    twice = repeated(names)
    common = Path(os.path.commonpath([file.parent for file in files]))
    return [
        file.relative_to(common).as_posix() if name in twice else name for file, name in zip(files, names, strict=True)
    ]


def _samples(shard: TarShard, place: str, split: str) -> Generator[PairRecord, None, None]:
    """The samples of a shard. Every member that is not hidden is part of a sample, or of a record with a problem."""
    ids: Counter[str] = Counter()

    def records(members: list[Member]) -> Iterator[PairRecord]:
        for sample in split_members(members):
            ids[sample.key] += 1
            # a key that comes again later in the shard is another sample
            suffix = f"#{ids[sample.key]}" if ids[sample.key] > 1 else ""
            yield _record(f"{place}/{sample.key}{suffix}", split, sample, lines)

    lines = shard.file is not None and _is_retrieval(shard.file)
    members: list[Member] = []
    try:
        with _open_tar(shard) as (tar, plain):
            for header in tar:
                tar.members.clear()  # type: ignore[attr-defined]  # otherwise the headers of all members stay in memory
                path = PurePosixPath(header.name)
                if path.name == TYPE_FILE:
                    lines = is_retrieval(_content(tar, header))
                if not header.isfile() or is_hidden(path.name) or path.name in _SHARD_FILES:
                    continue
                member = parse_member(header.name)
                if members and member.key != members[0].key:
                    yield from records(members)
                    members = []
                members.append(replace(member, content=_media(tar, header, member.kind, plain)))
    except _BROKEN_TAR as error:
        yield from records(members)
        id = f"{place}/(the rest of {shard.path.name})"
        yield PairRecord(id, id, split or "train", {"image": Damaged(str(error))}, ["what follows the damage"])
        return
    yield from records(members)


class _StrictHeader(tarfile.TarInfo):
    """A header. A broken one is an error everywhere; ``tarfile`` takes it for the end, except at the start of a tar."""

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> _StrictHeader:
        try:
            return super().frombuf(buf, encoding, errors)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
            raise tarfile.SubsequentHeaderError(str(error)) from None  # type: ignore[attr-defined]


@contextmanager
def _open_tar(shard: TarShard) -> Iterator[tuple[tarfile.TarFile, Path | None]]:
    """Opens a shard; also gives the file that members can be read from directly, if there is one.

    Raises DataError: the connection or the command failed, which is no damage of the shard.
    """
    if shard.file is not None:
        plain = _is_uncompressed(shard.file)
        with tarfile.open(shard.file, "r:" if plain else "r|*", tarinfo=_StrictHeader) as tar:
            yield tar, shard.file if plain else None
        return
    with shard.stream() as stream:
        try:
            with tarfile.open(fileobj=cast(Any, stream), mode="r|*", tarinfo=_StrictHeader) as tar:
                yield tar, None
        except _BROKEN_TAR:
            stream.finish()
            raise
        stream.finish()


def _is_retrieval(file: Path) -> bool:
    """Whether a ``dataset_type.txt`` beside the shard or its folder says that each line of a text is a caption.

    This is the layout of CLIP_benchmark.
    """
    for folder in (file.parent, file.parent.parent):
        if (folder / TYPE_FILE).is_file():
            return is_retrieval((folder / TYPE_FILE).read_bytes())
    return False


def _is_uncompressed(file: Path) -> bool:
    """True for a tar without compression."""
    try:
        tarfile.open(file, "r:").close()
    except tarfile.ReadError:
        return False
    return True


def _media(tar: tarfile.TarFile, header: tarfile.TarInfo, kind: str, plain: Path | None) -> Any:
    """What a record needs of a member: the image or where its bytes lie, the bytes of a text, or None."""
    if kind == "image":
        if plain is not None:
            return Slice(plain, header.offset_data, header.size)
        return _content(tar, header) if header.size <= MAX_FILE_BYTES else TOO_LARGE
    if kind in ("txt", "json"):
        return _content(tar, header) if header.size <= _MAX_TEXT_BYTES else TOO_LARGE
    return None


def _content(tar: tarfile.TarFile, header: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(header)
    return b"" if file is None else file.read()


def _record(id: str, split: str, sample: TarSample, lines: bool) -> PairRecord:
    fields = FieldReader(sample.problem)
    if any(member.content is TOO_LARGE for member in sample.parts.values()):
        fields.refuse("file too large")
    contents = {kind: member.content for kind, member in sample.parts.items() if kind != "image"}
    texts = {kind: decode_text(content) for kind, content in contents.items() if isinstance(content, bytes)}
    facts: dict[str, Any] = {}
    try:
        facts = dict(parse_strictly(texts.get("json", "{}")))
    except (ValueError, TypeError):
        if "txt" not in texts:
            fields.refuse("unreadable json")
    if "txt" in sample.parts:
        text = texts.get("txt", "")
        captions = fields.captions(text.splitlines() if lines else text)
    else:
        captions = fields.captions(next((facts[key] for key in CAPTION_KEYS if key in facts), None))
    return PairRecord(
        id,
        id,
        split or hash_split(id),
        {"image": sample.parts["image"].content} if "image" in sample.parts and not fields.problem else {},
        captions,
        meta=extra_facts({key: value for key, value in facts.items() if key not in _LEFT_OUT}),
        problem=fields.problem,
    )


SOURCE = Source("webdataset", ("image", "text"), _EXPECTS, _read, resolves_path=True, reads_addresses=True)
