"""``ccaco embed --images FOLDER``, and ``--remove``: an index of media files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ccaco_cli.core.modalities import MODALITIES


def embed_folder(
    folders: Mapping[str, Path], index: Path | None, model: str | None, settings: Mapping[str, Any]
) -> None:
    """Builds or updates an index of media files and prints what changed.

    Args:
        folders: modality -> folder of its files; empty = only remove items.
        index: folder of the index.
        model: a run or SPEC; None = the model in the index.
        settings: fields of ``MediaRequest``.
    """
    from ccaco_cli.core.errors import ConfigError
    from ccaco_cli.core.retrieval.media_library import REJECTS
    from ccaco_cli.core.shell import quoted_path
    from ccaco_cli.core.workflows.embed_folder import MediaRequest, embed_folder
    from ccaco_cli.view import progress

    flags = ", ".join(f"--{entry.folder_option}" for entry in MODALITIES.values() if entry.folder_option)
    if len(folders) > 1:
        raise ConfigError("an index of media files has one modality", expected=f"one of {flags}", next="two commands")
    if index is None:
        raise ConfigError("no index is named", expected="--index NAME.idx", next="add --index photos.idx")
    (modality, source), *_ = folders.items() or [("image", None)]
    request = MediaRequest(index, source, modality, model, **settings)
    with progress.bar("embed") as report_progress:
        result = embed_folder(request, on_progress=report_progress)
    ((modality, count),) = result.index.facts["rows"].items()
    changes = ", ".join(f"{number:,} {name}" for name, number in result.counts.items() if number)
    progress.note(f"{index}: {count:,} {modality}: {changes if result.written else 'nothing has changed'}")
    if result.rejects:
        file = index / result.index.facts["generation"] / REJECTS
        progress.note(f"{len(result.rejects):,} files are no items, for example {_example(result.rejects)}: see {file}")
    if not result.written:
        return
    from ccaco_cli.commands.embed import storage_text

    progress.note(f"{modality}: {storage_text(result.index.facts['storage'][modality])}")
    if reason := result.index.facts.get("query", {}).get("why"):
        progress.note(f"text queries load the whole model: {reason}")
    first, second = result.index.facts["modalities"]
    query = MODALITIES[second if modality == first else first].query
    progress.note(f"next: ccaco retrieve {query} --index {quoted_path(index)}")


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


def _example(rejects: Any) -> str:
    from ccaco_cli.core.escape import printable

    path, reason, _ = rejects[0]
    return f"{printable(path)} ({reason})"
