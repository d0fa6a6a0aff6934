"""``ccaco embed --images FOLDER``, and ``--remove``: an index of media files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ccaco_cli.core.modalities import MODALITIES, folder_flags

if TYPE_CHECKING:
    from ccaco_cli.core.library.request import MediaResult
    from ccaco_cli.core.library.scan import Reject


def embed_folder(
    folders: Mapping[str, Path], index_text: str | None, model: str | None, settings: Mapping[str, Any]
) -> None:
    """Builds or updates an index of media files and prints what changed.

    Args:
        folders: modality -> folder of its files; empty = only remove items.
        index_text: folder of the index, or address of a database.
        model: a run or SPEC; None = the model in the index.
        settings: fields of ``MediaRequest``.
    """
    from ccaco_cli.core.errors import ConfigError
    from ccaco_cli.core.library.folders import requests_of
    from ccaco_cli.core.library.request import MediaRequest
    from ccaco_cli.core.library.update import embed_folder
    from ccaco_cli.core.retrieval.address import index_place
    from ccaco_cli.core.shell import quoted_path
    from ccaco_cli.view import progress

    index, database = index_place(index_text)
    if index_text is None or index is None:
        raise ConfigError("no index is named", expected="--index NAME.idx", next="add --index photos.idx")
    if settings["remove"] and settings["rebuild"]:
        raise ConfigError("--rebuild forgets what was removed", expected="--remove without it", next="two commands")
    request = MediaRequest(index, model=model, database=database, **settings)
    results = []
    for part in requests_of(request, folders):
        with progress.bar("embed") as report_progress:
            results.append(embed_folder(part, on_progress=report_progress))
        _note_changes(results[-1], index_text)
    result = results[-1]
    if not any(result.written for result in results):
        return
    if reason := result.index.facts.get("query", {}).get("why"):
        progress.note(f"text queries load the whole model: {reason}")
    first, second = result.index.facts["modalities"]
    query = MODALITIES[second if result.modality == first else first].query
    progress.note(f"next: ccaco retrieve {query} --index {quoted_path(index_text)}")


def _note_changes(result: MediaResult, index_text: str) -> None:
    """Prints what an update has changed, which files are no items, and how the items are stored."""
    from ccaco_cli.commands.embed import storage_text
    from ccaco_cli.core.library.states import REJECTS
    from ccaco_cli.core.retrieval import vector_duplicates
    from ccaco_cli.view import progress

    facts, modality = result.index.facts, result.modality
    changes = ", ".join(f"{number:,} {name}" for name, number in result.counts.items() if number)
    text = changes if result.written else "nothing has changed"
    progress.note(f"{index_text}: {facts['rows'][modality]:,} {modality}: {text}")
    if result.moved_from:
        progress.note(f"the folder was {result.moved_from}; the same files keep their vectors, and their paths are new")
    side = result.index.path / facts["generation"] / modality
    if result.rejects:
        progress.note(f"{_rejects_text(result.rejects)}: see {side / REJECTS}")
    if not result.written:
        return
    duplicates = facts["duplicates"][modality]
    if reason := duplicates.get("skipped"):
        progress.note(f"near-duplicates are not listed: {reason}")
    elif count := duplicates["groups"]:
        groups = f"{count:,} group{'s' if count > 1 else ''}"
        progress.note(f"{groups} of near-duplicates: see {side / vector_duplicates.FILE}")
    progress.note(f"{modality}: {storage_text(facts['storage'][modality])}")


def refuse_other_options(values: Mapping[str, Any]) -> None:
    """Raises ConfigError: an option of the command line belongs to a data set or to an export.

    Args:
        values: flag -> value; None or empty = absent.
    """
    from ccaco_cli.core.errors import ConfigError

    for flag in (flag for flag, value in values.items() if value):
        raise ConfigError(
            "an index of media files has no such option",
            where=flag,
            expected=f"{folder_flags()} or --remove without it",
            next="two commands",
        )


def _rejects_text(rejects: Sequence[Reject]) -> str:
    """How many files are no items, with an example."""
    from ccaco_cli.core.escape import printable

    path, reason, _ = rejects[0]
    if len(rejects) == 1:
        return f"1 file is no item ({printable(path)}: {reason})"
    return f"{len(rejects):,} files are no items (first {printable(path)}: {reason})"
