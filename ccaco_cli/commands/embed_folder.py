"""``ccaco embed --images FOLDER``, and ``--remove``: an index of media files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ccaco_cli.core.modalities import MODALITIES

if TYPE_CHECKING:
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
    from ccaco_cli.core.library.request import MediaRequest
    from ccaco_cli.core.library.states import REJECTS
    from ccaco_cli.core.library.update import embed_folder
    from ccaco_cli.core.retrieval import vector_duplicates
    from ccaco_cli.core.retrieval.address import index_place
    from ccaco_cli.core.shell import quoted_path
    from ccaco_cli.view import progress

    flags = ", ".join(f"--{entry.folder_option}" for entry in MODALITIES.values() if entry.folder_option)
    if len(folders) > 1:
        raise ConfigError("an index of media files has one modality", expected=f"one of {flags}", next="two commands")
    index, database = index_place(index_text)
    if index_text is None or index is None:
        raise ConfigError("no index is named", expected="--index NAME.idx", next="add --index photos.idx")
    modality, source = next(iter(folders.items()), ("image", None))
    if settings["remove"] and settings["rebuild"]:
        raise ConfigError("--rebuild forgets what was removed", expected="--remove without it", next="two commands")
    request = MediaRequest(index, source, modality, model, database=database, **settings)
    with progress.bar("embed") as report_progress:
        result = embed_folder(request, on_progress=report_progress)
    ((modality, count),) = result.index.facts["rows"].items()
    changes = ", ".join(f"{number:,} {name}" for name, number in result.counts.items() if number)
    progress.note(f"{index_text}: {count:,} {modality}: {changes if result.written else 'nothing has changed'}")
    if result.moved_from:
        progress.note(f"the folder was {result.moved_from}; the same files keep their vectors, and their paths are new")
    if result.rejects:
        file = index / result.index.facts["generation"] / REJECTS
        progress.note(f"{_rejects_text(result.rejects)}: see {file}")
    if not result.written:
        return
    duplicates = result.index.facts["duplicates"]
    if reason := duplicates.get("skipped"):
        progress.note(f"near-duplicates are not listed: {reason}")
    elif duplicates["groups"]:
        file = index / result.index.facts["generation"] / vector_duplicates.FILE
        count = duplicates["groups"]
        progress.note(f"{count:,} group{'s' if count > 1 else ''} of near-duplicates: see {file}")
    from ccaco_cli.commands.embed import storage_text

    progress.note(f"{modality}: {storage_text(result.index.facts['storage'][modality])}")
    if reason := result.index.facts.get("query", {}).get("why"):
        progress.note(f"text queries load the whole model: {reason}")
    first, second = result.index.facts["modalities"]
    query = MODALITIES[second if modality == first else first].query
    progress.note(f"next: ccaco retrieve {query} --index {quoted_path(index_text)}")


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
            expected="--images, --sounds, --videos or --remove without it",
            next="two commands",
        )


def _rejects_text(rejects: Sequence[Reject]) -> str:
    """How many files are no items, with an example."""
    from ccaco_cli.core.escape import printable

    path, reason, _ = rejects[0]
    if len(rejects) == 1:
        return f"1 file is no item ({printable(path)}: {reason})"
    return f"{len(rejects):,} files are no items (first {printable(path)}: {reason})"
