"""What a source is: one published layout of one data set, read as a stream of ``PairRecord``."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ccaco_cli.core.types import PairRecord


@dataclass(frozen=True)
class SourceOptions:
    """What the user may ask of a source; each source takes what concerns it.

    limit     at most this many records a split (None = all)
    seed      of generated sets
    size      pixels of the short side of generated pictures
    columns   for ``table`` and ``hub``: our name (image, caption, split, domain, label, group) -> the column's name there
    separator for ``table``: CSV separator
    template  for sources of classes: the caption made of a class name; empty = the source's own
    fold      for ``audiofolder``: the test fold of a set in folds; 0 = the last
    name      for ``hub``: what comes after the colon of ``hub:NAME``
    unpaired  domains whose samples may be without captions; for ``imagefolder``, folders of pictures without class folders
    """

    limit: int | None = None
    seed: int = 0
    size: int = 64
    columns: Mapping[str, str] = field(default_factory=dict)
    separator: str | None = None
    template: str = ""
    fold: int = 0
    name: str = ""
    unpaired: tuple[str, ...] = ()


@dataclass(frozen=True)
class SourceData:
    """One opened source.

    records  consumed once and streamed; media stay unread (paths under the source's folder, or functions)
    counts   split -> records, where the source knows it beforehand (tells progress how much is to come)
    splits   all that the records can be in, where that is known beforehand: ``--limit`` may then stop early
    root     real path of the folder that media paths may not leave, where ``--source`` does not say it
    """

    records: Iterable[PairRecord]
    protocol: str
    licence: str = ""
    revision: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    splits: Collection[str] = ()
    root: Path | None = None


@dataclass(frozen=True)
class Source:
    """An entry of ``sources.SOURCES``.

    expects  what ``--source PATH`` must hold, one line for ``prepare --list`` and for errors
    read     (root, options) -> SourceData; raises DataError at once when the layout is not there
    embedded True when nothing needs to be downloaded (``root`` is None)
    resolves_path: ``read`` interprets ``--source`` itself: as a pattern of files, or as nothing where the name says enough.
    """

    name: str
    modalities: tuple[str, str]
    expects: str
    read: Callable[[Path | None, SourceOptions], SourceData]
    embedded: bool = False
    resolves_path: bool = False
