"""The settings that an index of media files was made with, and the refusal of an update with others."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ccaco_cli.core import manifest
from ccaco_cli.core.data.sources.media_files import media_below
from ccaco_cli.core.errors import ConfigError, DataError
from ccaco_cli.core.library.request import MediaRequest
from ccaco_cli.core.library.scan import Scan
from ccaco_cli.core.library.states import MediaLibrary
from ccaco_cli.core.manifest import Manifest
from ccaco_cli.core.modalities import MODALITIES
from ccaco_cli.core.retrieval import index as indexes


def settings_of(request: MediaRequest) -> dict[str, Any]:
    """What a request stores under ``FOLDERS`` for its modality, but for the model."""
    assert request.source is not None
    names = ("modality", "index_type", "store_tokens", "store_grid", "precision")
    return {"source": os.path.realpath(request.source), **{name: getattr(request, name) for name in names}}


def refuse_other_settings(request: MediaRequest, old: Manifest) -> None:
    """Raises ConfigError or DataError: the index is by another model or with other settings."""
    stored = settings_in(old, request.modality)
    if request.source is not None:
        settings = settings_of(request)
        # a folder may be moved (refuse_other_files), and a further modality may join the index
        exempt = ("index_type", "source", "modality")
        different = [name for name in settings if name not in exempt and settings[name] != stored[name]]
        if different:
            raise ConfigError(
                f"this index was made with {_described(different, stored)}",
                where=request.index,
                expected=f"the same, not {_described(different, settings)}",
                next="the command that made the index, or add --rebuild",
            )
    text = str(request.model)
    if request.model is None or (text == stored["model"] and ":" in text and not Path(text).exists()):
        return  # its weights are compared when it is loaded, which is only done when there is something to encode
    if manifest.exists(Path(text)) or ":" not in text:
        refuse_other_model(manifest.open(Path(text), kind="run"), old, request)
    else:
        from ccaco_cli.core.experiments.pretrained import open_model

        refuse_other_model(open_model(text, request.device).manifest, old, request)


def settings_in(old: Manifest, modality: str) -> Mapping[str, Any]:
    """The settings that an index stores for a modality; of another one where it holds no items of this one."""
    folders: Mapping[str, Mapping[str, Any]] = old.facts[indexes.FOLDERS]
    return folders.get(modality) or next(iter(folders.values()))


def _described(names: Sequence[str], settings: Mapping[str, Any]) -> str:
    flags = {"source": f"--{MODALITIES[settings['modality']].folder_option}"}
    return " ".join(f"{flags.get(name, '--' + name.replace('_', '-'))} {settings[name]}" for name in names)


def refuse_other_files(request: MediaRequest, old: Manifest, library: MediaLibrary, scanned: Scan) -> None:
    """Raises ConfigError: the folder is another one, and not that of the index, which was moved or renamed."""
    stored, settings = settings_in(old, request.modality), settings_of(request)
    source = Path(stored["source"])
    is_gone = not os.path.isdir(source) or not any(media_below(source, MODALITIES[stored["modality"]]))
    if is_gone and library.is_of(scanned):
        return
    raise ConfigError(
        f"this index was made with {_described(['source'], stored)}"
        + (", where no such files are now, and most files of this folder are others" if is_gone else ""),
        where=request.index,
        expected=f"the same, not {_described(['source'], settings)}",
        next="another --index, or add --rebuild",
    )


def refuse_other_model(model: Manifest, old: Manifest, request: MediaRequest) -> None:
    """Raises DataError: the index was made by another model."""
    if indexes.model_identity(model) != old.facts["model"]:
        raise DataError(
            f"this index was made by the model {old.facts['run']} ({settings_in(old, request.modality)['model']}); "
            "vectors of two models cannot be compared",
            where=request.index,
            expected=f"that model, not {request.model}",
            next="leave out --model to use the model in the index, or add --rebuild",
        )
