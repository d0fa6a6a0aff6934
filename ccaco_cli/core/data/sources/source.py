"""The interface of a source: one published layout of one data set, read as a stream of ``PairRecord``."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ccaco_cli.core.types import PairRecord


@dataclass(frozen=True)
class SourceOptions:
    """The options of all sources; a source ignores those that do not concern it.

    Attributes:
        limit: maximum number of records per split; None = all.
        seed: of generated data sets.
        size: short side in pixels of generated images.
        columns: of ``table`` and ``hub``: our name (image, caption, split, domain, label, group) -> name of the column.
        modality: of ``media`` and ``table``: image, audio, video or array; "" = what the folder holds, or image in a
            table.
        separator: of ``table``: CSV separator.
        template: of sources with classes: caption made from a class name; empty = the source's default.
        media_root: folder of the files that a list names, or that links lead to, if it is not the folder of the list.
        fold: of ``audiofolder``: the test fold of a data set in folds; 0 = the last.
        name: of ``hub``: the part after the colon of ``hub:NAME``.
        all_test: of ``imagefolder``: samples without a split folder belong to ``test``.
        address: of sources that read streams: address or command instead of a path.
        inputs: of ``pairs``: a, b, captions, ids, groups -> file.
        languages: codes of the captions that are loaded, or generated (``scenes``); () = all that the source has.
        unpaired: domains whose samples may have no captions; of ``imagefolder``, folders of images without class
            folders.
    """

    limit: int | None = None
    seed: int = 0
    size: int = 64
    columns: Mapping[str, str] = field(default_factory=dict)
    separator: str | None = None
    template: str = ""
    media_root: Path | None = None
    fold: int = 0
    name: str = ""
    address: str = ""
    inputs: Mapping[str, Path] = field(default_factory=dict)
    languages: tuple[str, ...] = ()
    unpaired: tuple[str, ...] = ()
    all_test: bool = False
    modality: str = ""


@dataclass(frozen=True)
class SourceData:
    """One opened source.

    Attributes:
        records: streamed and consumed once; media are not read (paths under the source folder, or functions).
        protocol: name of the split and caption protocol; two results are comparable only if it is the same.
        licence, revision: stored in the manifest.
        facts: other facts for the manifest.
        counts: split -> number of records, if known in advance (for the progress bar).
        splits: all splits that the records can have, if known in advance; ``--limit`` can then stop early.
        root: real path of the folder that media paths may not leave, if ``--source`` does not name it.
        text_files: list files and tables; the manifest names those that are not UTF-8.
        modalities: of the records, where they differ from those of the ``Source``; () = they do not.
    """

    records: Iterable[PairRecord]
    protocol: str
    licence: str = ""
    revision: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    splits: Collection[str] = ()
    root: Path | None = None
    text_files: Sequence[Path] = ()
    modalities: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """An entry of ``sources.SOURCES``.

    Attributes:
        name: of the source on the command line.
        modalities: the two of every pair, or the one of every sample; () = they depend on the files
            (``SourceData.modalities``).
        expects: what ``--source PATH`` must contain, one line for ``prepare --list`` and for errors.
        read: (root, options) -> SourceData; raises DataError at once if the layout is not there.
        embedded: nothing needs to be downloaded (``root`` is None).
        resolves_path: ``read`` interprets ``--source`` itself: as a pattern of files, or as nothing where the name is
            enough.
        file_facts: the samples are files of the user, so that path, folder, size and date of each are stored. A data
            set of another folder, or of files that were touched, is then another data set.
        reads_addresses: ``read`` also takes an address or a command (``SourceOptions.address``).
    """

    name: str
    modalities: tuple[str, ...]
    expects: str
    read: Callable[[Path | None, SourceOptions], SourceData]
    embedded: bool = False
    resolves_path: bool = False
    file_facts: bool = False
    reads_addresses: bool = False
