"""Suites: published data sets that are only scored, each with its own table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ccaco_cli.core import manifest
from ccaco_cli.core.data.sources.source import SourceOptions
from ccaco_cli.core.errors import ConfigError, nearest
from ccaco_cli.core.experiments.datasets import prepared, prepared_folder
from ccaco_cli.core.types import OnNote, OnProgress, no_note, no_progress

SUITES = ("winoground", "aro", "sugarcrepe", "flickr8k-roles", "flickr30k-roles", "crossmodal-3600")
"""Names of sources."""


def parse_suites(text: str) -> dict[str, Path | None]:
    """Reads ``NAME,NAME=FOLDER``: name of a suite -> the folder in which it is published, or None.

    Raises:
        ConfigError: no such suite, a suite twice, or no suite.
    """
    suites: dict[str, Path | None] = {}
    for entry in text.split(","):
        name, equals, folder = (part.strip() for part in entry.partition("="))
        if name not in SUITES or (equals and not folder) or name in suites:
            problem = "a suite twice" if name in suites else "no folder" if name in SUITES else "no such suite"
            raise ConfigError(
                problem,
                where=f"--suite {entry.strip() or text!r}",
                expected=f"{' | '.join(SUITES)}, each with =FOLDER where it is not prepared",
                next=nearest(name, SUITES),
            )
        suites[name] = Path(folder) if folder else None
    return suites


def prepared_suites(
    suites: Mapping[str, Path | None],
    data_root: Path = Path("data"),
    on_progress: OnProgress = no_progress,
    on_note: OnNote = no_note,
) -> dict[str, str]:
    """The prepared data set of each suite; one with a folder is prepared on the way where it is not yet.

    Returns:
        Name of each suite -> its prepared folder.
    Raises:
        DataError: a suite that is not prepared and has no folder, or a folder with another layout.
    """
    folders = {}
    for name, folder in suites.items():
        if folder is None or manifest.exists(folder):
            path = prepared(name if folder is None else str(folder), data_root, on_progress)
        else:
            path = prepared_folder(name, folder, data_root, SourceOptions(), on_progress, on_note)
        folders[name] = str(path)
    return folders
