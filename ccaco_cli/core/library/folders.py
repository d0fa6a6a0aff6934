"""Folders of several modalities in one index, such as photos and sounds: one update after the other."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ccaco_cli.core import manifest
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.library import states
from ccaco_cli.core.library.request import MediaRequest
from ccaco_cli.core.library.scan import scan
from ccaco_cli.core.library.settings import settings_in
from ccaco_cli.core.library.states import MediaLibrary
from ccaco_cli.core.modalities import MODALITIES, sides_of
from ccaco_cli.core.retrieval.index import FOLDERS


def requests_of(request: MediaRequest, folders: Mapping[str, Path]) -> list[MediaRequest]:
    """One request for each modality: of its folder, and of the items that ``request.remove`` names.

    Nothing is written yet, so that a folder that cannot be indexed is refused before another one is.

    Args:
        request: without folder and modality.
        folders: modality -> folder of its files; empty = those of the index, from which items are only removed.
    Raises:
        DataError: no such folder, no media in it, a model that lacks one of the modalities, or no such item.
        ManifestError: no finished run, or no index.
    """
    if len(folders) > 1:
        _check(request, folders)
    if folders:
        modalities: Sequence[str] = sorted(folders, key=list(MODALITIES).index)
    elif manifest.exists(request.index):
        modalities = list(manifest.open(request.index, kind="index").facts.get(FOLDERS, ()))
    else:
        modalities = ()
    if len(modalities) < 2:
        modality = next(iter(modalities), request.modality)
        return [replace(request, modality=modality, source=folders.get(modality))]
    removed = _removed(request, modalities) if request.remove else {}
    named = [modality for modality in modalities if modality in folders or modality in removed]
    return [
        # the first request builds the index anew, and the others join it
        replace(
            request, modality=m, source=folders.get(m), remove=removed.get(m, ()), rebuild=request.rebuild and not n
        )
        for n, m in enumerate(named)
    ]


def _check(request: MediaRequest, folders: Mapping[str, Path]) -> None:
    """Raises DataError or ManifestError: one of several folders cannot be indexed by the model."""
    for modality, folder in folders.items():
        scan(Path(os.path.realpath(folder)), modality, MODALITIES[modality].folder_option)
    sides: Sequence[str]
    if manifest.exists(request.index) and not request.rebuild:
        sides = sides_of(manifest.open(request.index, kind="index"))
    elif request.model is not None:
        sides = _sides_of(str(request.model))
    else:
        return  # what is missing is named later
    for modality in folders:
        if modality not in sides:
            raise DataError(
                f"this model cannot encode {modality} files",
                where=request.model or request.index,
                expected=f"a model of {' and '.join(folders)}; this one has {' and '.join(sides)}",
            )


def _sides_of(model: str) -> Sequence[str]:
    from ccaco_cli.core.experiments.pretrained import is_run
    from ccaco_cli.core.model.towers.dual_encoders import dual_modalities
    from ccaco_cli.core.model.towers.tower import TowerSpec

    return (
        sides_of(manifest.open(Path(model), kind="run")) if is_run(model) else dual_modalities(TowerSpec.parse(model))
    )


def _removed(request: MediaRequest, modalities: Sequence[str]) -> dict[str, list[str]]:
    """The names of ``--remove``, by the modality that has such items; a name may be a folder of several."""
    old = manifest.open(request.index, kind="index")
    names: dict[str, list[str]] = {}
    for name in request.remove:
        refused: DataError | None = None
        matches = 0
        for modality in (m for m in modalities if m in old.facts["rows"]):
            library = MediaLibrary(states.read_states(request.index / old.facts["generation"] / modality))
            try:
                library.resolve_names([name], Path(settings_in(old, modality)["source"]))
            except DataError as error:
                refused = error
                continue
            names.setdefault(modality, []).append(name)
            matches += 1
        if not matches and refused is not None:
            raise refused
    return names
