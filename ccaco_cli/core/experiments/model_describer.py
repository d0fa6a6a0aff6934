"""Describes files by the decoder of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from ccaco_cli.core.data.question_words import content_ids
from ccaco_cli.core.encoding.drafts import require_decoder, write_drafts
from ccaco_cli.core.encoding.encode import EncodeOptions, encode
from ccaco_cli.core.encoding.sample_sides import SampleSide
from ccaco_cli.core.encoding.samples import PreprocessedColumn, sample_column
from ccaco_cli.core.experiments.pair_scores import PairModel, read_samples
from ccaco_cli.core.model.generation import Draft, GenerationOptions
from ccaco_cli.core.retrieval.describe import Describer


class ModelDescriber(Describer):
    """A model with a decoder. Raises ConfigError: it has none."""

    def __init__(self, model: PairModel):
        self.model, self.decoder = model, require_decoder(model.aligner, model.manifest.path)
        self.modality = model.aligner.described
        self.config: Mapping[str, Any] = model.manifest.config
        self.text = model.towers["text"]

    def read(self, samples: Sequence[Any]) -> SampleSide:
        return read_samples(self.model.towers[self.modality], samples, ())

    def encode(self, samples: Sequence[Any]) -> PreprocessedColumn:
        return PreprocessedColumn(self.modality, samples)

    def write(
        self,
        encoded: PreprocessedColumn,
        options: GenerationOptions,
        prefix_ids: Sequence[Sequence[int]] | None = None,
    ) -> list[list[Draft]]:
        return write_drafts(self.model.aligner, encoded, np.arange(len(encoded.samples)), options, prefix_ids)

    def scores(self, encoded: PreprocessedColumn, owner: Any, texts: Sequence[str]) -> list[float]:
        aligner, has_cross = self.model.aligner, self.model.has_cross
        encode_side = partial(
            encode, aligner, local_tokens=has_cross, options=EncodeOptions(max_tokens=self.model.max_tokens)
        )
        media, written = encode_side(self.modality, encoded), encode_side("text", sample_column(self.text, texts))
        places = torch.stack([torch.from_numpy(owner), torch.arange(len(texts))], 1)
        if aligner.modalities[0] == "text":
            media, written, places = written, media, places.flip(1)
        return [float(pair.score or 0.0) for pair in self.model.score_places(media, written, places)]

    def content_ids(self, texts: Sequence[str]) -> list[list[int]]:
        return [ids.tolist() for ids in content_ids(self.text.preprocess, texts, self.decoder.added)]

    def decode(self, ids: Sequence[int]) -> str:
        assert self.text.tokenizer is not None
        return self.text.tokenizer.decode(ids)
