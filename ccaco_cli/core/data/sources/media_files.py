"""Walks the folders of a data set: which files are samples, which are rejected, and how many are passed over."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ccaco_cli.core.data.checks import OUTSIDE, is_within
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.modalities import MODALITIES, Modality
from ccaco_cli.core.shell import quoted_path

UNREADABLE = "no decoder for this kind of file"
LINKED_TWICE = "linked folder that is read under another name"
CLOSED = "unreadable folder"
SYSTEM_FILES = frozenset(
    {
        *("thumbs.db", "desktop.ini", "__macosx", "$recycle.bin", "system volume information", "lost+found"),
        *("@eadir", "#recycle", "@recycle"),  # of network drives
    }
)
"""Names, in lower case, that operating systems add to folders; they count as hidden."""


@dataclass(frozen=True)
class MediaFile:
    """A file that a folder holds as a sample; ``problem`` is the reason why it cannot be read."""

    path: Path
    problem: str = ""


@dataclass
class PassedOver:
    """The files of a folder that are not samples.

    Attributes:
        suffixes: suffix ("" = none) -> number of files, such as texts beside pictures.
        hidden: number of hidden files, hidden folders and files of the operating system.
        links: number of links to what is read under its own name.
    """

    suffixes: Counter[str] = field(default_factory=Counter)
    hidden: int = 0
    links: int = 0

    def facts(self) -> dict[str, Any]:
        """For the manifest; {} = every file is a sample."""
        if not self.suffixes and not self.hidden and not self.links:
            return {}
        links = {"links": self.links} if self.links else {}
        return {"passed_over": {"suffixes": dict(self.suffixes.most_common()), "hidden": self.hidden, **links}}

    def __str__(self) -> str:
        listed = ", ".join(f"{suffix or 'no suffix'} {count:,}" for suffix, count in self.suffixes.most_common(8))
        return listed or "no files"


def is_hidden(name: str) -> bool:
    """True for the names of hidden files and of files that an operating system adds."""
    return name.startswith(".") or name.lower() in SYSTEM_FILES


def media_below(
    root: Path,
    modality: Modality,
    *,
    links_to: tuple[Path, ...] = (),
    passed_over: PassedOver | None = None,
    once: bool = False,
) -> Iterator[MediaFile]:
    """The samples of one modality below a folder, in order.

    A linked folder is entered if it lies below ``root`` or a folder of ``links_to``. One that lies elsewhere, that
    contains the link, or that was entered through another link, is yielded like a file, so that it is counted and
    listed among the rejects.

    Args:
        root: folder.
        modality: its ``suffixes`` are read, its ``unreadable_suffixes`` are yielded with a problem.
        links_to: folders outside ``root`` that linked folders may lie in.
        passed_over: counts the files that are not yielded.
        once: no file is read twice: a link to what is read under its own name, or through another link, is passed over.
    """
    passed_over = PassedOver() if passed_over is None else passed_over
    allowed = [os.path.realpath(folder) for folder in (root, *links_to)]
    linked: set[str] = set()
    folders = [(str(root), frozenset({os.path.realpath(root)}))] if root.is_dir() else []
    while folders:
        folder, ancestors = folders.pop()
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            yield MediaFile(Path(folder), CLOSED)
            continue
        below = []
        for entry in entries:
            if is_hidden(entry.name):
                passed_over.hidden += 1
            elif once and entry.is_symlink() and _is_read_elsewhere(entry.path, allowed[0], modality, linked):
                passed_over.links += 1
            elif not _is_folder(entry):
                if once and entry.is_symlink():
                    linked.add(os.path.realpath(entry.path))
                yield from _sample(entry, modality, passed_over)
            elif not entry.is_symlink():
                below.append((entry.path, ancestors | {os.path.realpath(entry.path)}))
            elif problem := _link_problem(entry.path, allowed, ancestors, linked):
                yield MediaFile(Path(entry.path), problem)
            else:
                linked.add(os.path.realpath(entry.path))
                below.append((entry.path, ancestors | {os.path.realpath(entry.path)}))
        folders += reversed(below)


def _is_read_elsewhere(link: str, root: str, modality: Modality, linked: set[str]) -> bool:
    """Whether what a link leads to is read without it: it lies below ``root``, or another link led to it."""
    real = os.path.realpath(link)
    if real in linked or real == root:
        return True
    if not is_within(real, [root]) or any(map(is_hidden, Path(real).relative_to(root).parts)):
        return False
    return os.path.isdir(real) or (os.path.isfile(real) and os.path.splitext(real)[1].lower() in modality.suffixes)


def layout_error(
    name: str, problem: str, root: Path | None, expects: str, *, folder_of_media: bool = False
) -> DataError:
    """The error of a source that does not find its files. The next step is never the command that was typed.

    Args:
        name: of the source.
        problem: what is missing.
        root: ``--source``; None = it was not named.
        folder_of_media: whether images, sounds or videos without captions are likely to be meant, if there are any.
    """
    if root is None:
        step = f"ccaco prepare {name} --source PATH"
    elif folder_of_media and root.is_dir() and _has_media(root):
        step = f"ccaco prepare media --source {quoted_path(root)}"
    else:
        step = "ccaco prepare --list"
    return DataError(problem, where=root, expected=expects, next=step)


def _has_media(root: Path) -> bool:
    return any(not file.problem for m in MODALITIES.values() if m.suffixes for file in media_below(root, m))


def count_files(root: Path, modality: Modality, links_to: tuple[Path, ...] = ()) -> tuple[int, PassedOver]:
    """Counts the samples below a folder, and the files that are not samples, without opening any."""
    passed_over = PassedOver()
    samples = sum(1 for _ in media_below(root, modality, links_to=links_to, passed_over=passed_over))
    return samples, passed_over


def locate(name: str, folder: Path, media_root: Path | None) -> Path:
    """Path of a listed file: below ``media_root`` if one is named and the file is there, else below ``folder``.

    Absolute names stay as they are. Whether the path may be read is decided by ``checks.check``.
    """
    if media_root is None or (not os.path.exists(media_root / name) and os.path.exists(folder / name)):
        return folder / name
    return media_root / name


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # for a link to itself the entry would raise
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _sample(entry: os.DirEntry[str], modality: Modality, passed_over: PassedOver) -> Iterator[MediaFile]:
    suffix = os.path.splitext(entry.name)[1].lower()
    if suffix in modality.suffixes:
        yield MediaFile(Path(entry.path))
    elif suffix in modality.unreadable_suffixes:
        yield MediaFile(Path(entry.path), UNREADABLE)
    else:
        passed_over.suffixes[suffix] += 1


def _link_problem(link: str, allowed: list[str], ancestors: frozenset[str], linked: set[str]) -> str:
    """Why a linked folder is not entered; "" = it is."""
    real = os.path.realpath(link)
    if not is_within(real, allowed):
        return OUTSIDE
    # a folder above the link would be walked without end
    return LINKED_TWICE if real in ancestors | linked else ""
