"""Encodes samples that are in no data set (queries, inputs of the Python API) exactly as the items of a data set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ccaco_cli.core.data.loader import Column, TextColumn, decode_media
from ccaco_cli.core.encoding.encode import EncodeOptions, encode
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.modalities import MODALITIES
from ccaco_cli.core.model.aligner import Aligner
from ccaco_cli.core.model.towers.tower import Tower
from ccaco_cli.core.types import EncodedSamples, OnProgress, no_progress

Array = np.ndarray[Any, Any]


class Sentences:
    """Texts, one a row, as ``TextColumn`` takes them.

    Attributes:
        captions: the texts.
        caption_row: [n] int64, the row of each text.
        caption_start: [n + 1] int64, the texts of row r are caption_start[r] .. caption_start[r + 1].
    """

    def __init__(self, texts: Sequence[str]):
        self.captions, self.caption_row, self.caption_start = (
            list(texts),
            np.arange(len(texts)),
            np.arange(len(texts) + 1),
        )


class SampleColumn:
    """A ``Column`` of listed samples of any modality but text, decoded when they are encoded.

    Args:
        samples: files (``Path``), encoded bytes, or decoded samples as ``preprocess`` takes them.
    """

    length: Array | None = None

    def __init__(self, modality: str, samples: Sequence[Any], preprocess: Callable[[Any], Tensor]):
        self.modality, self.samples, self.preprocess = modality, samples, preprocess
        self.row, self.start = np.arange(len(samples)), np.arange(len(samples) + 1)

    def inputs(self, items: Array) -> dict[str, Tensor]:
        """What the tower takes of some samples. Raises DataError: a file that cannot be read or decoded."""
        batch: dict[str, Tensor] = MODALITIES[self.modality].collate(
            [self._preprocessed(self.samples[i]) for i in items]
        )
        return batch

    def _preprocessed(self, sample: Any) -> Tensor:
        if not isinstance(sample, Path):
            return self.preprocess(decoded(self.modality, sample, self.preprocess))
        try:  # recordings are decoded by ``preprocess``
            return self.preprocess(decoded(self.modality, sample, self.preprocess))
        except DataError as error:  # decoders get bytes and cannot name the file
            raise DataError(error.what, where=sample, expected=error.expected) from None


class PreprocessedColumn:
    """A ``Column`` of samples of one modality that are preprocessed already, as the tower takes them."""

    def __init__(self, modality: str, samples: Sequence[Tensor]):
        self.modality, self.samples = modality, samples
        self.row, self.start = np.arange(len(samples)), np.arange(len(samples) + 1)
        clips = MODALITIES[modality].kind == "clip"
        self.length: Array | None = np.array([len(sample) for sample in samples]) if clips else None

    def inputs(self, items: Array) -> dict[str, Tensor]:
        batch: dict[str, Tensor] = MODALITIES[self.modality].collate([self.samples[i] for i in items])
        return batch


def decoded(modality: str, sample: Any, preprocess: Any) -> Any:
    """A file or encoded bytes as ``preprocess`` takes them; anything else is decoded already, and returned as it is.

    Raises:
        DataError: the file cannot be read, or holds no sample of this modality.
    """
    if isinstance(sample, Path):
        try:
            sample = sample.read_bytes()
        except OSError as error:
            message = f"cannot read this file ({error.strerror or error})"
            raise DataError(message, where=sample, expected=f"a readable {modality} file") from None
    return decode_media(modality, sample, preprocess) if isinstance(sample, bytes) else sample


def sample_column(tower: Tower, samples: Sequence[Any]) -> Column:
    """The column of listed samples of a tower's modality: texts as str, others as ``SampleColumn`` takes them."""
    if MODALITIES[tower.modality].kind == "text":
        return TextColumn(Sentences(samples), tower.preprocess)
    return SampleColumn(tower.modality, samples, tower.preprocess)


def encode_samples(
    aligner: Aligner,
    tower: Tower,
    samples: Sequence[Any],
    *,
    local_tokens: bool = True,
    options: EncodeOptions = EncodeOptions(),
    on_progress: OnProgress = no_progress,
) -> EncodedSamples:
    """Encodes samples that are in no data set.

    Args:
        tower: of their modality, whose preprocessing they get.
        samples: n texts, files, encoded bytes, or decoded samples.
        local_tokens: also compute the tokens for the cross branch.
        options: as ``encode`` takes them.
    Returns:
        Embeddings (and tokens) on the CPU, in the order of the samples.
    Raises:
        DataError: a file that cannot be read or decoded.
    """
    column = sample_column(tower, samples)
    return encode(aligner, tower.modality, column, local_tokens=local_tokens, options=options, on_progress=on_progress)
