"""Turns a published source into a prepared data set on disk."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path, PurePath
from typing import Any

from ccaco_cli.core.data import shards
from ccaco_cli.core.data.caption_languages import LANGUAGES, language_code, language_runs
from ccaco_cli.core.data.shards import DatasetInfo, WriteOptions
from ccaco_cli.core.data.sources import SOURCES
from ccaco_cli.core.data.sources.lists import assumed_encodings
from ccaco_cli.core.data.sources.source import Source, SourceData, SourceOptions
from ccaco_cli.core.data.sources.tar_streams import public
from ccaco_cli.core.data.split_shares import SplitShares, published_splits
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.manifest import Manifest
from ccaco_cli.core.shell import quoted_path
from ccaco_cli.core.types import OnProgress, PairRecord, no_progress


def prepare(
    name: str,
    *,
    source_path: Path | None = None,
    out: Path,
    options: SourceOptions | None = None,
    write: WriteOptions | None = None,
    shares: SplitShares = SplitShares(),
    on_progress: OnProgress = no_progress,
) -> Manifest:
    """Reads a source, checks every sample, and writes the data set ``out``. The same call resumes an interrupted run.

    Args:
        name: an entry of ``SOURCES``; ``hub:NAME`` reads the source ``hub`` with NAME as an option.
        source_path: the published folder or file, or a pattern of files (not for embedded sources).
        out: the new folder.
        options: of the source.
        write: re-encoding, processes, limits.
        shares: of ``train`` that become ``val`` and ``test`` where the source has no such split.
    Returns:
        The manifest of the data set.
    Raises:
        DataError: unknown name, no source, another layout, ``out`` exists, too many rejects, a language that the
            source does not have.
    """
    name, _, option = name.partition(":")
    options = options or SourceOptions()
    languages = tuple(dict.fromkeys(map(language_code, options.languages)))
    options = replace(options, name=option, languages=languages)
    source = find_source(name)
    _refuse_address(source, options)
    shards.refuse_overwrite(Path(out))
    path = _resolve(source, source_path)
    options = replace(options, media_root=_media_root(options.media_root))
    data = _divided(source, path, options, shares)
    modalities = data.modalities or source.modalities
    if languages and "text" not in modalities:
        raise DataError(f"{name} has no captions", where=f"--language {','.join(languages)}", expected="no --language")
    limit, counts = options.limit, data.counts.values()
    protocol = data.protocol if limit is None else f"{data.protocol}; at most {limit:,} samples a split"
    info = DatasetInfo(
        out_name(f"{name}:{option}"),
        modalities,
        facts={"protocol": protocol, "licence": data.licence, "revision": data.revision, "source": _source_facts(data)},
        config={"source": name, **_config(options), **({"split_shares": asdict(shares)} if shares.requested() else {})},
        root=data.root or (None if path is None else path if path.is_dir() else path.parent),
        unpaired=options.unpaired,
        media_root=options.media_root,
        media_facts=not source.embedded,
        file_facts=source.file_facts,
    )
    total = sum(n if limit is None else min(n, limit) for n in counts) if counts else None
    records = _limited(_in_language(data.records, languages), limit, data.splits or tuple(data.counts))
    return shards.write(records, Path(out), info, write, total=total, on_progress=on_progress)


def _divided(source: Source, path: Path | None, options: SourceOptions, shares: SplitShares) -> SourceData:
    """The opened source, with the splits that it lacks taken from ``train``.

    The source is read once more before, without its media, unless it knows its counts in advance.
    """
    data = source.read(path, options)
    wanted = shares.requested()
    if not wanted:
        return data
    if data.counts:
        published = {name for name, count in data.counts.items() if count}
    else:
        published = published_splits(source.read(path, options).records, wanted)
    missing = shares.missing(published)
    if not missing.requested():
        return data
    return replace(
        data,
        records=missing.divide(data.records),
        protocol=data.protocol + missing.protocol,
        facts={**data.facts, "split_shares": missing.requested()},
        counts={},
        splits=tuple({**dict.fromkeys(data.splits), **missing.requested()}) if data.splits else (),
    )


def _in_language(records: Iterable[PairRecord], languages: Sequence[str]) -> Iterator[PairRecord]:
    """Gives the language of ``--language`` to each record whose source does not know the language of its captions.

    Raises DataError: several languages are named.
    """
    for record in records:
        if languages and record.captions and not record.problem and LANGUAGES not in record.meta:
            if len(languages) > 1:
                raise DataError(
                    "the language of each caption is not known here",
                    where=f"--language {','.join(languages)}",
                    expected="one code, the language of all captions",
                    next=f"--language {languages[0]}",
                )
            runs = language_runs([languages[0]] * len(record.captions))
            record = replace(record, meta={**record.meta, LANGUAGES: runs})
        yield record


def _source_facts(data: SourceData) -> dict[str, Any]:
    """What the manifest says about the source, with the list files that are not UTF-8."""
    encodings = assumed_encodings(data.text_files)
    return {**data.facts, **({"assumed_encodings": encodings} if encodings else {})}


def out_name(name: str) -> str:
    """The default folder name of a source: ``hub:people/photos:english`` -> ``photos``."""
    source, _, option = name.partition(":")
    return PurePath(option.partition(":")[0]).name or source


def find_source(name: str) -> Source:
    """The entry of that name. Raises DataError that names the nearest one and lists all."""
    if name in SOURCES:
        return SOURCES[name]
    near = difflib.get_close_matches(name, SOURCES, 1)
    next = f"ccaco prepare {near[0]}" if near else "ccaco prepare --list"
    raise DataError("no such data set", where=name, expected=f"one of {', '.join(SOURCES)}", next=next)


def _resolve(source: Source, path: Path | None) -> Path | None:
    """The path of the source with symbolic links resolved, so that "inside the folder" is well defined."""
    if source.embedded or source.resolves_path:
        return path
    if path is None:
        raise DataError(
            f"{source.name} is not part of ccaco",
            where="--source",
            expected=source.expects,
            next=f"ccaco prepare {source.name} --source PATH",
        )
    if not path.exists():
        raise DataError(
            "no such file or folder", where=path, expected=source.expects, next=_nearest_path(source.name, path)
        )
    return path.resolve() if path.is_dir() else path.parent.resolve() / path.name


def _refuse_address(source: Source, options: SourceOptions) -> None:
    """Raises DataError: an address or a command for a source that reads files."""
    if options.address and not source.reads_addresses:
        readers = ", ".join(name for name, entry in SOURCES.items() if entry.reads_addresses)
        raise DataError(
            f"{source.name} reads files, not addresses or commands",
            where=f"--source {public(options.address)}",
            expected=source.expects,
            next=f"a folder or file, or tar shards with ccaco prepare {readers}",
        )


def _nearest_path(name: str, path: Path) -> str:
    """The command with the name beside ``path`` that is most like it, or else the list of sources."""
    beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, beside, 1)
    return f"ccaco prepare {name} --source {quoted_path(path.with_name(near[0]))}" if near else "ccaco prepare --list"


def _media_root(folder: Path | None) -> Path | None:
    """The real path of the folder that the user names for media. Raises DataError: there is none."""
    if folder is None:
        return None
    if not folder.is_dir():
        raise DataError(
            "no such folder", where=f"--image-root {folder}", expected="the folder that the listed files lie in"
        )
    return folder.resolve()


def _config(options: SourceOptions) -> dict[str, Any]:
    """The options as the manifest stores them."""
    config = asdict(options)
    folder = config.pop("media_root")
    address = config.pop("address")
    inputs = {name: str(path) for name, path in config.pop("inputs").items()}
    config |= {"inputs": inputs} if inputs else {}
    config |= {"address": public(address)} if address else {}
    return config if folder is None else {**config, "media_root": str(folder)}


def _limited(records: Iterable[PairRecord], limit: int | None, splits: Collection[str]) -> Iterator[PairRecord]:
    """At most ``limit`` records per split; stops when all ``splits`` (() = not known) have that many."""
    counts: Counter[str] = Counter()
    for record in records:
        counts[record.split] += 1
        if limit is None or counts[record.split] <= limit:
            yield record
        if limit is not None and splits and all(counts[split] >= limit for split in splits):
            return
