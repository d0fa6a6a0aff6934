"""What a format of exported models declares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ccaco_cli.core.experiments.pretrained import LoadedModel
from ccaco_cli.core.export.same_vectors import LibraryModel


@dataclass(frozen=True)
class ExportFormat:
    """One format of exported models.

    Attributes:
        library: name by which the hub knows the library that loads it.
        usage: (model) -> code that encodes with it; NAME stands for the exported model.
        spec: SPEC of an exported folder, with FOLDER in place of its path; "" = ``--model`` does not take it.
        why_not: (model) -> why the format cannot hold it, as a clause; "" = it can.
        write: (model, empty folder) -> None.
        read: (exported folder) -> the model as its library loads it.
    """

    library: str
    usage: Callable[[LoadedModel], str]
    spec: str
    why_not: Callable[[LoadedModel], str]
    write: Callable[[LoadedModel, Path], None]
    read: Callable[[Path], LibraryModel]
