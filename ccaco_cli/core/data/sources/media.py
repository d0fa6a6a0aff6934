"""Any folder of images, sounds or videos without captions: a data set of one modality, to search in.

Every file at any depth is a sample of the split ``test``: nothing is trained on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from ccaco_cli.core.data.sources.media_files import UNREADABLE, PassedOver, layout_error, media_below
from ccaco_cli.core.data.sources.source import Source, SourceData, SourceOptions
from ccaco_cli.core.errors import DataError, nearest
from ccaco_cli.core.modalities import MODALITIES
from ccaco_cli.core.shell import quoted_path
from ccaco_cli.core.types import PairRecord

_EXPECTS = "images, sounds or videos, at any depth, without captions"
MEDIA = tuple(name for name, modality in MODALITIES.items() if modality.suffixes)
"""The modalities whose samples are files."""


def _read(root: Path | None, options: SourceOptions) -> SourceData:
    if root is None or not root.is_dir():
        raise layout_error("media", "no folder here", root, _EXPECTS)
    links_to = (options.media_root,) if options.media_root else ()
    modality = checked_modality(options.modality)
    counts, passed_over = count_media(root, modality or MEDIA[0], links_to)
    if not modality:
        modality = _only_modality(root, counts, passed_over)
    elif not counts.get(modality):
        raise DataError(
            f"no {modality} files in this folder (it holds {_listed(counts) or passed_over})",
            where=root,
            expected=f"files that end in {' '.join(MODALITIES[modality].suffixes[:4])} ...",
            next=f"ccaco prepare media --source {quoted_path(root)}" if counts else "ccaco prepare --list",
        )
    if modality != MEDIA[0]:
        _, passed_over = count_media(root, modality, links_to)
    return SourceData(
        records=_records(root, modality, links_to),
        protocol="media (every file of the folder, all in test)",
        facts=passed_over.facts(),
        splits=("test",),
        modalities=(modality,),
    )


def checked_modality(name: str) -> str:
    """``--modality``, "" or the name of a modality whose samples are files. Raises DataError: it is neither."""
    if name and name not in MEDIA:
        problem = "no such modality of files"
        expected = f"one of {', '.join(MEDIA)}"
        raise DataError(problem, where=f"--modality {name}", expected=expected, next=nearest(name, MEDIA))
    return name


def count_media(root: Path, modality: str, links_to: tuple[Path, ...] = ()) -> tuple[dict[str, int], PassedOver]:
    """Counts the files below a folder without opening any.

    Returns:
        Modality -> number of its files, where there are any; and what is passed over when one ``modality`` is read.
    """
    passed_over = PassedOver()
    files = media_below(root, MODALITIES[modality], links_to=links_to, passed_over=passed_over, once=True)
    counts = {modality: sum(1 for file in files if file.problem in ("", UNREADABLE))}
    for name in MEDIA:
        entry = MODALITIES[name]
        if name != modality:
            counts[name] = sum(passed_over.suffixes[s] for s in (*entry.suffixes, *entry.unreadable_suffixes))
    return {name: count for name, count in counts.items() if count}, passed_over


def _only_modality(root: Path, counts: Mapping[str, int], passed_over: PassedOver) -> str:
    """The modality of the files of a folder. Raises DataError: it holds none, or several."""
    if not counts:
        problem = f"no images, sounds or videos in this folder (it holds {passed_over})"
        raise layout_error("media", problem, root, _EXPECTS)
    if len(counts) > 1:
        frequent = max(counts, key=lambda name: counts[name])
        raise DataError(
            f"files of several modalities ({_listed(counts)})",
            where=root,
            expected=f"--modality {' or '.join(counts)}",
            next=f"ccaco prepare media --source {quoted_path(root)} --modality {frequent}",
        )
    return next(iter(counts))


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def _records(root: Path, modality: str, links_to: tuple[Path, ...]) -> Iterator[PairRecord]:
    for file in media_below(root, MODALITIES[modality], links_to=links_to, once=True):
        id = file.path.relative_to(root).as_posix()
        yield PairRecord(id, id, "test", {modality: file.path}, problem=file.problem)


SOURCE = Source("media", (), _EXPECTS, _read, file_facts=True)
