"""Encodes the files of a folder for an index, exactly as a query with the same file is encoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ccaco_cli.core.encoding.batching import BATCH_SIZE, prefetch
from ccaco_cli.core.encoding.encode import EncodeOptions, encode
from ccaco_cli.core.encoding.samples import PreprocessedColumn
from ccaco_cli.core.library.parts import PartWriter
from ccaco_cli.core.library.reader import MediaReader, ReadFile
from ccaco_cli.core.memory import keep_freed_memory
from ccaco_cli.core.modalities import MODALITIES
from ccaco_cli.core.model.aligner import Aligner
from ccaco_cli.core.types import EncodedSamples, OnProgress, no_progress

CLIPS_AT_ONCE = 16
"""Recordings that are decoded at a time: a second of one has as many numbers as a picture."""
NOT_FINITE = "embedding is not finite"


@dataclass(frozen=True, eq=False)
class MediaEncoder:
    """The model and settings that encode the files of an index.

    Attributes:
        aligner: on its device, in the precision of the items.
        modality: of the files.
        max_tokens: as in ``EncodeOptions``.
        with_tokens: also compute the tokens for the cross branch.
    """

    aligner: Aligner
    modality: str
    max_tokens: int = 0
    with_tokens: bool = False

    def encode_files(
        self, reader: MediaReader, paths: Sequence[str], writer: PartWriter, on_progress: OnProgress = no_progress
    ) -> None:
        """Reads, encodes and writes files; a thread reads the next ones while the device encodes.

        Args:
            paths: names below the folder of the reader.
            writer: receives all files; those whose content is new with their embeddings.
        """
        device = next(self.aligner.parameters()).device
        size = BATCH_SIZE.get(device.type, BATCH_SIZE["cuda"])
        if MODALITIES[self.modality].kind == "clip":
            size = CLIPS_AT_ONCE
        groups = [paths[first : first + size] for first in range(0, len(paths), size)]
        done = 0
        with keep_freed_memory():
            for group, files in prefetch(reader.read, groups):
                writer.add(*self._encoded(files))
                done += len(group)
                on_progress(done, len(paths), {"what": f"{self.modality} vectors"})
        writer.flush()

    def _encoded(self, files: Sequence[ReadFile]) -> tuple[list[ReadFile], EncodedSamples | None]:
        samples: list[Any] = [file.sample for file in files if file.sample is not None]
        if not samples:
            return list(files), None
        encoded = encode(
            self.aligner,
            self.modality,
            PreprocessedColumn(self.modality, samples),
            options=EncodeOptions(max_tokens=self.max_tokens),
            local_tokens=self.with_tokens,
        )
        finite = torch.isfinite(encoded.z).all(1)
        if finite.all():
            return list(files), encoded
        verdicts = iter(finite.tolist())
        checked = [file if file.sample is None or next(verdicts) else _rejected(file) for file in files]
        return checked, encoded[finite] if finite.any() else None


def _rejected(file: ReadFile) -> ReadFile:
    return ReadFile(replace(file.state, problem=NOT_FINITE))
