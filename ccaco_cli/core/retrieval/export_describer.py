"""Exports the text decoder of an index as ONNX graphs, beside its query side (``exported_describer``)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ccaco_cli.core import manifest
from ccaco_cli.core.model.aligner import Aligner
from ccaco_cli.core.model.decoder import WINDOW, TextDecoder
from ccaco_cli.core.model.generation import GenerationOptions
from ccaco_cli.core.model.token_pooling import pool_grid
from ccaco_cli.core.model.towers.image_base import ImagePreprocess
from ccaco_cli.core.model.towers.tower import Tower
from ccaco_cli.core.retrieval.export import CLOSE, SENTENCES, no_space_error, quiet_exporter, root_cause, write_graph
from ccaco_cli.core.retrieval.exported_describer import (
    DECODER,
    SAMPLE_OUTPUTS,
    SAMPLES,
    SETTINGS,
    STEP_INPUTS,
    ExportedDescriber,
    Pixels,
    block_names,
)
from ccaco_cli.core.retrieval.query import Exported
from ccaco_cli.core.retrieval.rerank import COSINE, Scorer

SIZES = ((40, 30), (64, 97), (300, 200), (224, 224), (33, 500))
"""Width and height of the random images on which the graphs and the model are compared."""


class _Samples(nn.Module):
    """pixels [B, 3, H, W] uint8 -> (z, tokens and mask for the cross branch, mask, keys and values of each block)."""

    def __init__(self, aligner: Aligner, decoder: TextDecoder, max_tokens: int, *, matcher: bool):
        super().__init__()
        self.aligner, self.decoder, self.max_tokens, self.matcher = aligner, decoder, max_tokens, matcher

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        modality = self.aligner.described
        embedding, features = self.aligner.encode(modality, {"pixels": pixels})
        pooled = features
        if self.max_tokens:
            pooled = pool_grid(features, self.aligner.encoder(modality).grid, self.max_tokens)
        tokens = self.aligner.local_tokens(modality, pooled).tokens if self.matcher else pooled.tokens[..., :1].float()
        memory = self.aligner.memory(features)
        parts = (part for block in self.decoder.blocks for part in block.cross_attention.keys_values(memory))  # type: ignore[operator, union-attr]
        return embedding.z, tokens, pooled.mask, features.mask, *parts


class _Step(nn.Module):
    """One step of the decoder (``TextDecoder.step``)."""

    def __init__(self, decoder: TextDecoder):
        super().__init__()
        self.decoder = decoder

    def forward(self, numbers: Tensor, places: Tensor, mask: Tensor, *blocks: Tensor) -> tuple[Tensor, ...]:
        layers = len(self.decoder.blocks)
        memory = [blocks[2 * i : 2 * i + 2] for i in range(layers)]
        state = blocks[2 * layers :]
        past = [state[3 * i : 3 * i + 3] for i in range(layers)]
        log_probs, new = self.decoder.step(numbers, places, memory, mask, past)  # type: ignore[arg-type]
        return log_probs, *(part for block in new for part in block)


def export_describer(
    folder: Path,
    aligner: Aligner,
    towers: Mapping[str, Tower],
    texts: Sequence[str],
    max_tokens: int,
    *,
    matcher: bool,
) -> dict[str, Any]:
    """Writes the decoder of a model into the folder of its query side; removes it when it writes other texts.

    A decoder that cannot be exported raises no error, because captions can use the model itself.

    Args:
        aligner: on the CPU, in evaluation mode, with a decoder.
        texts: on which both tokenizers are compared.
        max_tokens: as the index pools the tokens of its items; 0 = it does not.
        matcher: the cross branch was exported, too.
    Returns:
        For the manifest: {"exported": True, "difference"} or {"exported": False, "why"}.
    """
    tower = towers[aligner.described]
    preprocess = tower.preprocess
    if not isinstance(preprocess, ImagePreprocess):
        return {"exported": False, "why": f"reading {aligner.described} files needs torch"}
    if preprocess.resize_tensor:
        return {"exported": False, "why": "its images are resized by torch"}
    assert aligner.decoder is not None
    try:
        _write_settings(folder, aligner, preprocess)
        with torch.inference_mode(False), torch.no_grad(), quiet_exporter():
            samples = _Samples(aligner, _known_words_only(aligner.decoder), max_tokens, matcher=matcher)
            _write_graphs(folder, samples.eval(), preprocess.size)
        difference = _difference(folder, aligner, towers, texts)
    except Exception as error:  # the exporter raises many kinds of errors
        _remove(folder)
        if full := no_space_error(error):
            raise full from None
        return {"exported": False, "why": root_cause(error)}
    if not difference <= CLOSE:
        _remove(folder)
        return {"exported": False, "why": "it differs from the model", "difference": difference}
    return {"exported": True, "difference": difference}


def _remove(folder: Path) -> None:
    for name in (SETTINGS, SAMPLES, DECODER):
        for file in folder.glob(f"{name}*"):
            file.unlink()


def _write_settings(folder: Path, aligner: Aligner, preprocess: ImagePreprocess) -> None:
    decoder = aligner.decoder
    assert decoder is not None
    block: Any = decoder.blocks[0]
    manifest.write_json(
        folder / SETTINGS,
        {
            "modality": aligner.described,
            "pixels": {field.name: getattr(preprocess, field.name) for field in fields(Pixels)},
            "decoder": {
                "words": decoder.words.tolist(),
                "start": int(decoder.number[decoder.start]),
                "end": int(decoder.number[decoder.end]),
                "added": list(decoder.added),
                "max_words": decoder.max_words,
                "layers": len(decoder.blocks),
                "heads": block.self_attention.heads,
                "width": decoder.positions.shape[1],
                "window": WINDOW,
            },
        },
    )


def _known_words_only(decoder: TextDecoder) -> TextDecoder:
    """A copy of a decoder whose vocabulary is the known words, so that a graph holds no other vectors."""
    small = copy.deepcopy(decoder)
    small.embedding = nn.Embedding(len(decoder.words), decoder.embedding.embedding_dim)
    small.embedding.weight.data = decoder.embedding.weight.detach()[decoder.words].clone()
    small.start, small.end = (int(decoder.number[id]) for id in (decoder.start, decoder.end))
    small.words = small.number = torch.arange(len(decoder.words))
    small.known = torch.ones(len(decoder.words), dtype=torch.bool)
    return small.eval()


def _write_graphs(folder: Path, samples: _Samples, size: tuple[int, int]) -> None:
    decoder = samples.decoder
    count, layers = 3, len(decoder.blocks)
    pixels = torch.zeros(count, 3, *size, dtype=torch.uint8)
    memory_names = block_names(layers, "keys", "values")
    write_graph(
        folder / SAMPLES, samples, (pixels,), ("pixels",), (*SAMPLE_OUTPUTS, "memory_mask", *memory_names), varying=(0,)
    )
    mask, *memory = samples(pixels)[3:]
    numbers, past = torch.full((count,), decoder.start), None
    for place in range(3):
        _, past = decoder.step(numbers, place, [memory[2 * i : 2 * i + 2] for i in range(layers)], mask, past)
    state = [part.clone() for block in past or [] for part in block]
    write_graph(
        folder / DECODER,
        _Step(decoder),
        (numbers, torch.full((count,), 3), mask, *memory, *state),
        (*STEP_INPUTS, *memory_names, *block_names(layers, "past_keys", "past_values", "before")),
        ("log_probs", *block_names(layers, "new_keys", "new_values", "new_before")),
        varying=(0, 2),
    )


def _difference(folder: Path, aligner: Aligner, towers: Mapping[str, Tower], texts: Sequence[str]) -> float:
    """Largest difference of cosines and of log-probabilities per word between the graphs and the model; infinity where
    pixels, token ids or decoded texts differ."""
    exported = ExportedDescriber(Exported(folder), Scorer(COSINE), aligner.modalities, {})
    tower, text = towers[aligner.described], towers["text"]
    generator = np.random.default_rng(0)
    images = [Image.fromarray(generator.integers(0, 256, (h, w, 3), np.uint8)) for w, h in SIZES]
    pixels = torch.stack([tower.preprocess(image) for image in images])
    if not np.array_equal(np.stack([exported.pixels(image) for image in images]), pixels.numpy()):
        return float("inf")
    texts = [*SENTENCES, *texts]
    encoded_texts = text.preprocess(texts)
    assert text.tokenizer is not None and aligner.decoder is not None
    first, last = aligner.decoder.added
    for row, count, ids in zip(
        encoded_texts["ids"].tolist(), encoded_texts["mask"].sum(1).tolist(), exported.content_ids(texts), strict=True
    ):
        content = row[first : int(count) - last]
        if ids != content or exported.decode(ids) != text.tokenizer.decode(content):
            return float("inf")
    with torch.no_grad():
        embedding, features = aligner.encode(aligner.described, {"pixels": pixels})
        options = GenerationOptions(sample=True, drafts=4, max_words=8)
        drafts = aligner.decoder.write(aligner.memory(features), features.mask, None, options)
    samples = exported.encode(list(pixels.numpy()))
    differences = [float(np.abs(samples.z @ samples.z.T - (embedding.z @ embedding.z.T).numpy()).max())]
    by_ids = [{draft.ids: draft.log_prob for draft in of} for of in exported.write(samples, options)]
    for of_sample, known in zip(drafts, by_ids, strict=True):
        differences += [abs(draft.log_prob - known.get(draft.ids, float("inf"))) for draft in of_sample]
    return max(differences)
