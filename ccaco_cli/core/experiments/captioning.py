"""Captions of images, sounds and films: written by the decoder of a run, and chosen by the cross branch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch

from ccaco_cli.core.data.loader import Column
from ccaco_cli.core.encoding.batching import prefetch
from ccaco_cli.core.encoding.drafts import require_decoder, write_drafts
from ccaco_cli.core.encoding.encode import EncodeOptions, encode
from ccaco_cli.core.encoding.samples import PreprocessedColumn, sample_column
from ccaco_cli.core.experiments.pair_scores import PairModel, read_side
from ccaco_cli.core.model.generation import Draft, GenerationOptions
from ccaco_cli.core.model.towers.tower import Tower

BATCH = 64
"""Samples that are read and described at a time."""


@dataclass(frozen=True, slots=True)
class Caption:
    """The caption of one sample.

    Attributes:
        text: the caption; "" where there is a problem.
        log_prob: mean log-probability of its words, in nats per word.
        score: of the sample and the caption, as it ranks answers of a search; None without ``rerank``.
        problem: why the sample cannot be described; "" = it can.
    """

    text: str = ""
    log_prob: float | None = None
    score: float | None = None
    problem: str = ""


def caption_files(
    model: PairModel, samples: Iterable[Any], options: GenerationOptions = GenerationOptions(), rerank: int = 0
) -> Iterator[Caption]:
    """Describes samples in their order; a few batches are in memory at a time.

    Args:
        samples: of the side of the model that is no text: where the bytes of files come from (``types.Media``).
        options: how drafts are written.
        rerank: drafts per sample, of which the one with the best score is taken; 0 = the most probable draft.
    Raises:
        ConfigError: the model has no decoder.
    """
    require_decoder(model.aligner, model.manifest.path)
    options = replace(options, drafts=rerank) if rerank else options
    tower, iterator = model.towers[model.aligner.described], iter(samples)
    batches = iter(lambda: list(islice(iterator, BATCH)), [])
    for batch, side in prefetch(partial(read_side, tower, folders=()), batches):
        described: list[Caption] = []
        if side.samples:
            column = PreprocessedColumn(tower.modality, side.samples)
            drafts = write_drafts(model.aligner, column, np.arange(len(side.samples)), options)
            described = _captions(model, column, drafts, bool(rerank))
        for place, problem in zip(side.places, side.problems, strict=True):
            yield Caption(problem=problem) if problem else described[place]
        assert len(batch) == len(side.places)


def _captions(model: PairModel, column: Column, drafts: list[list[Draft]], rerank: bool) -> list[Caption]:
    """The best draft of each sample: by score with ``rerank``, else the most probable one."""
    tower = model.towers["text"]
    assert tower.tokenizer is not None
    texts = [[tower.tokenizer.decode(draft.ids) for draft in of_sample] for of_sample in drafts]
    if not rerank:
        return [Caption(text[0], draft[0].log_prob) for text, draft in zip(texts, drafts, strict=True)]
    scores = _scores(model, column, tower, texts)
    captions = []
    for sample_texts, sample_drafts, sample_scores in zip(texts, drafts, scores, strict=True):
        best = int(np.argmax(sample_scores))
        captions.append(Caption(sample_texts[best], sample_drafts[best].log_prob, sample_scores[best]))
    return captions


def _scores(model: PairModel, column: Column, tower: Tower, texts: list[list[str]]) -> list[list[float]]:
    """Scores of samples and their drafts, by the formula that ranks the answers of a search."""
    aligner, options = model.aligner, EncodeOptions(max_tokens=model.max_tokens)
    flat = [text for of_sample in texts for text in of_sample]
    owner = np.repeat(np.arange(len(texts)), [len(of_sample) for of_sample in texts])
    media = encode(aligner, aligner.described, column, local_tokens=model.has_cross, options=options)
    written = encode(aligner, "text", sample_column(tower, flat), local_tokens=model.has_cross, options=options)
    rows = torch.stack([torch.from_numpy(owner), torch.arange(len(flat))], 1)
    first, second, places = media, written, rows
    if aligner.modalities[0] == "text":
        first, second, places = written, media, rows.flip(1)
    score = [float(pair.score or 0.0) for pair in model.score_places(first, second, places)]
    ends = np.cumsum([len(of_sample) for of_sample in texts])
    return [score[end - len(of_sample) : end] for end, of_sample in zip(ends, texts, strict=True)]
