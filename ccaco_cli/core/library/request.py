"""What the user requests of ``ccaco embed --images``, and what was done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ccaco_cli.core.library.scan import Reject
from ccaco_cli.core.manifest import Manifest
from ccaco_cli.core.retrieval.storage_settings import StorageSettings


@dataclass(frozen=True)
class MediaRequest(StorageSettings):
    """Which files to index, and how; ``StorageSettings`` describes the other attributes.

    Attributes:
        index: folder of the index; made or updated.
        source: folder of the files; None = only ``remove``.
        modality: of the files; an index may hold several, each with its folder.
        model: folder of a finished run, or SPEC of a pretrained dual encoder; None = the model in the index.
        remove: paths or ids of items that are taken out, and stay out while their content is unchanged.
    """

    index: Path
    source: Path | None = None
    modality: str = "image"
    model: str | Path | None = None
    remove: Sequence[str] = ()


@dataclass(frozen=True)
class MediaResult:
    """What ``embed_folder`` did.

    Attributes:
        index: manifest of the index.
        modality: of the files; the counts and rejects are theirs.
        counts: number of items that are new, changed, moved, unchanged, removed.
        rejects: files that are no items.
        written: False = nothing had to be done.
        moved_from: the folder of before, where the same files are in another one now; "" = it is the same.
    """

    index: Manifest
    modality: str
    counts: Mapping[str, int]
    rejects: Sequence[Reject]
    written: bool = True
    moved_from: str = ""
