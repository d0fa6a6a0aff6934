"""The text decoder of an index without torch: exported ONNX graphs, a tokenizer, Pillow, numpy."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ccaco_cli.core import runtime
from ccaco_cli.core.data.checks import decode_image
from ccaco_cli.core.encoding.sample_sides import SampleSide, read_file, read_side
from ccaco_cli.core.model.generation import Draft, GenerationOptions, NextWord, generate
from ccaco_cli.core.retrieval.describe import Describer
from ccaco_cli.core.retrieval.index import Index
from ccaco_cli.core.retrieval.query import Exported, session
from ccaco_cli.core.retrieval.rerank import Scorer

Array = np.ndarray[Any, Any]
SETTINGS, SAMPLES, DECODER = "describer.json", "samples.onnx", "decoder.onnx"
SAMPLE_OUTPUTS = ("z", "tokens", "mask")
"""Outputs of the first graph before the keys and values of each block of the decoder."""
STEP_INPUTS = ("numbers", "places", "mask")
"""Inputs of the second graph before the keys and values of the sample and the state of each block."""


def block_names(layers: int, *parts: str) -> list[str]:
    """Names of the inputs or outputs of each block: part_0 of every part, then part_1 ..."""
    return [f"{part}_{layer}" for layer in range(layers) for part in parts]


@dataclass(frozen=True)
class Pixels:
    """What ``ImagePreprocess`` does, where it resizes by Pillow: encoded image -> uint8 [3, H, W].

    Attributes:
        As those of ``ImagePreprocess``.
    """

    size: tuple[int, int]
    resize: tuple[int, ...]
    interpolation: str
    exact: bool = False
    crop_down: bool = False

    def decode(self, data: bytes) -> Array:
        """Raises DataError: no image, or a broken one."""
        return self(decode_image(data, 0 if self.exact else 2 * max(self.resize)))

    def __call__(self, image: Image.Image) -> Array:
        image = image.convert("RGB")
        width, height = image.size
        if len(self.resize) > 1:
            target = self.resize[1], self.resize[0]
        else:
            short = self.resize[0]
            longer = int(short * max(width, height) / min(width, height))
            target = (short, longer) if width <= height else (longer, short)
        if target != image.size:
            image = image.resize(target, Image.Resampling[self.interpolation.upper()])
        pixels = np.asarray(image).transpose(2, 0, 1)
        for axis, final in enumerate(self.size, 1):
            excess = pixels.shape[axis] - final
            start = excess // 2 if self.crop_down else round(excess / 2)
            pixels = pixels.take(range(start, start + final), axis)
        return np.ascontiguousarray(pixels)


@dataclass(frozen=True)
class DescribedSamples:
    """B encoded samples.

    Attributes:
        z: [B, E] float32, unit norm.
        tokens: [B, N, D] float32, for the cross branch.
        token_mask: [B, N] bool, True = real token.
        memory: keys and values [B, H, N, w] of each block of the decoder.
        mask: [B, N] bool, of the memory.
    """

    z: Array
    tokens: Array
    token_mask: Array
    memory: list[Array]
    mask: Array


class ExportedDescriber(Describer):
    """The decoder in the folder of a query side, beside what ``query.Exported`` reads.

    Args:
        scorer: as the index ranks answers.
        modalities: (a, b) of the cross branch.
    """

    def __init__(self, exported: Exported, scorer: Scorer, modalities: tuple[str, str], config: Mapping[str, Any]):
        self.exported, self.scorer, self.modalities, self.config = exported, scorer, modalities, config
        settings = json.loads((exported.folder / SETTINGS).read_text("utf-8"))
        self.modality: str = settings["modality"]
        values: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in settings["pixels"].items()}
        self.pixels = Pixels(**values)
        self.settings: dict[str, Any] = settings["decoder"]
        self.words: Array = np.array(self.settings["words"], np.int64)

    def read(self, samples: Sequence[Any]) -> SampleSide:
        return read_side(partial(read_file, self.modality, self.pixels.decode), samples, runtime.thread_count())

    def encode(self, samples: Sequence[Array]) -> DescribedSamples:
        z, tokens, token_mask, mask, *memory = self._samples.run(None, {"pixels": np.stack(samples)})
        return DescribedSamples(z, tokens.astype(np.float16).astype(np.float32), token_mask, memory, mask)

    def write(
        self,
        encoded: DescribedSamples,
        options: GenerationOptions,
        prefix_ids: Sequence[Sequence[int]] | None = None,
    ) -> list[list[Draft]]:
        return generate(_ExportedNextWord(self, encoded), prefix_ids, options)

    def scores(self, encoded: DescribedSamples, owner: Any, texts: Sequence[str]) -> Array:
        query = self.exported.encode(texts)
        cosine = (encoded.z[owner].astype(np.float64) * query.z).sum(1)
        if not self.scorer.weight:
            return np.asarray(self.scorer(cosine))
        pairs = (encoded.tokens[owner], encoded.token_mask[owner]), (query.tokens, query.mask)
        first, second = pairs if self.modalities[0] == self.modality else pairs[::-1]
        return np.asarray(self.scorer(cosine, self.exported.match(*first, *second).astype(np.float64)))

    def content_ids(self, texts: Sequence[str]) -> list[list[int]]:
        first, last = self.settings["added"]
        ids, mask = self.exported.token_ids(texts)
        return [row[first : n - last].tolist() for row, n in zip(ids, mask.sum(1), strict=True)]

    def decode(self, ids: Sequence[int]) -> str:
        return self.exported.decode(ids)

    @cached_property
    def _samples(self) -> Any:
        return session(self.exported.folder / SAMPLES)

    @cached_property
    def decoder(self) -> Any:
        return session(self.exported.folder / DECODER)


class _ExportedNextWord(NextWord):
    """The exported decoder with the samples that it describes."""

    def __init__(self, describer: ExportedDescriber, encoded: DescribedSamples):
        self.describer, self.count = describer, len(encoded.mask)
        settings = describer.settings
        self.words, self.max_words = describer.words, int(settings["max_words"])
        self.start, self.end = int(settings["start"]), int(settings["end"])
        layers = int(settings["layers"])
        self.memory_names = block_names(layers, "keys", "values")
        self.state_names = block_names(layers, "past_keys", "past_values", "before")
        self.mask, self.memory, self.state = encoded.mask, encoded.memory, list[Array]()

    def step(self, numbers: Array, place: int, rows: Array | None) -> Array:
        if rows is None:
            width = len(numbers) // self.count
            self.mask, *self.memory = (np.repeat(array, width, 0) for array in (self.mask, *self.memory))
            self.state = self._no_words(len(numbers))
        else:
            self.state = [array[rows] for array in self.state]
        inputs = dict(zip(STEP_INPUTS, (numbers, np.full_like(numbers, place), self.mask), strict=True))
        inputs |= dict(zip(self.memory_names, self.memory, strict=True))
        inputs |= dict(zip(self.state_names, self.state, strict=True))
        log_probs, *self.state = self.describer.decoder.run(None, inputs)
        return np.asarray(log_probs)

    def _no_words(self, count: int) -> list[Array]:
        """The state of the blocks before the first word."""
        settings = self.describer.settings
        past = np.zeros((count, settings["heads"], 0, settings["width"] // settings["heads"]), np.float32)
        before = np.zeros((count, settings["window"] - 1, settings["width"]), np.float32)
        return [past, past, before] * int(settings["layers"])


def has_describer(folder: Path) -> bool:
    """Whether the folder of a query side also holds a decoder."""
    return (folder / SETTINGS).is_file()


def exported_describer(index: Index, *, scores: bool) -> ExportedDescriber | None:
    """The decoder of an index that needs no torch; None where it was not exported.

    Args:
        scores: texts will also be scored, by the cross branch where it counts.
    """
    exported = index.exported
    if exported is None or not has_describer(exported.folder):
        return None
    if scores and index.scorer.weight and not exported.has_matcher:
        return None
    return ExportedDescriber(exported, index.scorer, index.modalities, index.manifest.config)
