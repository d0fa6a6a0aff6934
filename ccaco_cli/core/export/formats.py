"""The formats that a model can be exported to. A new format is a module that declares one, and one entry here."""

from __future__ import annotations

from collections.abc import Mapping

from ccaco_cli.core.errors import ConfigError, nearest
from ccaco_cli.core.experiments.pretrained import LoadedModel
from ccaco_cli.core.export import onnx_folder, open_clip_folder, sentence_transformers_folder, transformers_folder
from ccaco_cli.core.export.export_format import ExportFormat

FORMATS: Mapping[str, ExportFormat] = {
    "open_clip": open_clip_folder.FORMAT,
    "transformers": transformers_folder.FORMAT,
    "onnx": onnx_folder.FORMAT,
    "sentence-transformers": sentence_transformers_folder.FORMAT,
}


def find_format(name: str) -> ExportFormat:
    """Returns the format of a name. Raises ConfigError: there is none."""
    if name not in FORMATS:
        raise ConfigError(
            "unknown export format", where=f"--export {name}", expected=" | ".join(FORMATS), next=nearest(name, FORMATS)
        )
    return FORMATS[name]


def formats_of(model: LoadedModel) -> list[str]:
    """The formats that can hold a model."""
    return [name for name, entry in FORMATS.items() if not entry.why_not(model)]
