"""Opens files in the viewer of the platform."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ccaco_cli.core.errors import DataError
from ccaco_cli.core.modalities import MODALITIES
from ccaco_cli.view.streams import write_message

MAX_FILES = 3
START_SECONDS = 3.0
"""How long a viewer may take to report that it cannot open a file."""
_SUFFIXES = frozenset(suffix for modality in MODALITIES.values() for suffix in modality.suffixes)


def open_hits(answers: Sequence[tuple[str, Sequence[Any]]]) -> None:
    """Opens the files of the best hits; of items that are no files, a contact sheet of all answers.

    Args:
        answers: (query, its hits). The first hits of all queries are opened before the second ones.
    Raises:
        DataError: there is nothing to see, a file is gone or no media file, or no viewer starts.
    """
    ranked = sorted((hit.rank, number, hit) for number, (_, hits) in enumerate(answers) for hit in hits)
    hits = [hit for _, _, hit in ranked]
    if not hits:
        return
    paths = [path for hit in hits[:MAX_FILES] if (path := hit.item.get("path"))]
    if paths:
        for path in paths:
            _check(Path(path))
            open_file(Path(path))
        return
    if not any(hit.item.get("thumbnail") for hit in hits):
        raise DataError(
            "these answers are no files and have no pictures", where="--open", expected="images, sounds or videos"
        )
    from ccaco_cli.view import figures

    sheet = Path(tempfile.mkdtemp(prefix="ccaco-")) / "answers.png"
    figures.contact_sheet(sheet, answers)
    write_message(f"ccaco: the contact sheet of the answers is {sheet}")
    open_file(sheet)


def _check(path: Path) -> None:
    """An index may come from somebody else, so only media files are opened, never a program or a starter."""
    if not path.is_file():
        raise DataError(
            "the file of an answer is gone",
            where=path,
            expected="the file that was embedded",
            next="the command of 'ccaco embed --images' again, which removes it from the index",
        )
    if path.suffix.lower() not in _SUFFIXES:
        raise DataError("not a media file, so it is not opened", where=path, expected="an image, sound or video file")


def open_file(path: Path) -> None:
    """Starts the viewer of the platform for one file, without a shell.

    Raises:
        DataError: there is no viewer, or it reports an error.
    """
    if sys.platform == "win32":
        os.startfile(path)
        return
    name = "open" if sys.platform == "darwin" else "xdg-open"
    program = shutil.which(name)
    next_step = "ccaco retrieve ... --save answers.png"
    if program is None:
        raise DataError(f"no viewer: the program {name} is not installed", where="--open", next=next_step)
    null = subprocess.DEVNULL
    viewer = subprocess.Popen([program, str(path)], stdin=null, stdout=null, stderr=null, start_new_session=True)
    try:
        code = viewer.wait(START_SECONDS)
    except subprocess.TimeoutExpired:  # it shows the file, and ends when it is closed
        viewer.returncode = 0  # it is left alone
        return
    if code:
        raise DataError(f"{name} cannot open this file (exit code {code})", where=path, next=next_step)
