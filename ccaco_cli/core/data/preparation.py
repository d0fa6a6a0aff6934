"""From a published source to a prepared data set on disk."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path, PurePath

from ccaco_cli.core.data import shards
from ccaco_cli.core.data.sources import SOURCES
from ccaco_cli.core.data.sources.source import Source, SourceOptions
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.manifest import Manifest
from ccaco_cli.core.types import OnProgress, PairRecord, no_progress


def prepare(
    name: str,
    *,
    source_path: Path | None = None,
    out: Path,
    options: SourceOptions | None = None,
    image_size: int | None = None,
    workers: int | None = None,
    max_rejects: float = shards.MAX_REJECTS,
    on_progress: OnProgress = no_progress,
) -> Manifest:
    """Reads a source, checks every sample, and writes the data set ``out``; goes on where an interrupted run of the same call stopped.

    name         an entry of ``SOURCES``; ``hub:NAME`` reads the source ``hub`` with NAME as an option
    source_path  the published folder or file, or a pattern of files (not for embedded sources)
    image_size   short side in pixels above which pictures are re-encoded
    workers      processes; None = all cores
    max_rejects  share of samples, 0..1, that may be rejected
    Raises       DataError: unknown name, no source, another layout, ``out`` exists, too many rejects
    """
    name, _, of = name.partition(":")
    options = replace(options or SourceOptions(), name=of)
    source = find_source(name)
    shards.refuse_overwrite(Path(out))
    where = _whereabouts(source, source_path)
    data = source.read(where, options)
    counts = data.counts.values()
    protocol = data.protocol if options.limit is None else f"{data.protocol}; at most {options.limit:,} samples a split"
    return shards.write(
        _limited(data.records, options.limit, data.splits or tuple(data.counts)),
        Path(out),
        name=out_name(f"{name}:{of}"),
        modalities=source.modalities,
        facts={"protocol": protocol, "licence": data.licence, "revision": data.revision, "source": dict(data.facts)},
        config={"source": name, **asdict(options)},
        root=data.root or (None if where is None else where if where.is_dir() else where.parent),
        image_size=image_size,
        unpaired=options.unpaired,
        workers=workers,
        max_rejects=max_rejects,
        total=sum(n if options.limit is None else min(n, options.limit) for n in counts) if counts else None,
        on_progress=on_progress,
    )


def out_name(name: str) -> str:
    """The folder under ``data/`` that a source's NAME goes to: ``hub:people/photos:english`` -> ``photos``."""
    source, _, of = name.partition(":")
    return PurePath(of.partition(":")[0]).name or source


def find_source(name: str) -> Source:
    """The entry of that name; raises DataError with the nearest name and all there are."""
    if name in SOURCES:
        return SOURCES[name]
    near = difflib.get_close_matches(name, SOURCES, 1)
    next = f"ccaco prepare {near[0]}" if near else "ccaco prepare --list"
    raise DataError("no such data set", where=name, expected=f"one of {', '.join(SOURCES)}", next=next)


def _whereabouts(source: Source, path: Path | None) -> Path | None:
    """What the source is to read: its path with the links of its folders resolved, so that "inside" has one meaning."""
    if source.embedded or source.finds:
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
            "nothing there", where=path, expected=source.expects, next=f"ccaco prepare {source.name} --source PATH"
        )
    return path.resolve() if path.is_dir() else path.parent.resolve() / path.name


def _limited(records: Iterable[PairRecord], limit: int | None, splits: Collection[str]) -> Iterator[PairRecord]:
    """At most ``limit`` records a split; stops when all ``splits`` there are (() = not known) have them."""
    seen: Counter[str] = Counter()
    for record in records:
        seen[record.split] += 1
        if limit is None or seen[record.split] <= limit:
            yield record
        if limit is not None and splits and all(seen[split] >= limit for split in splits):
            return
