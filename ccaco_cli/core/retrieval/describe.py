"""Describes files, and answers questions about them, by any decoder: of a run, or exported with an index."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Protocol

import numpy as np

from ccaco_cli.core.encoding.batching import prefetch
from ccaco_cli.core.encoding.sample_sides import SampleSide
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.model.generation import ANSWERS, Answer, Draft, GenerationOptions
from ccaco_cli.core.text_input import is_blank

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


class Describer(Protocol):
    """What writes texts about samples of one modality.

    Attributes:
        modality: of the samples.
        config: of the run.
    """

    modality: str
    config: Mapping[str, Any]

    def read(self, samples: Sequence[Any]) -> SampleSide:
        """Reads and preprocesses files (``types.Media``)."""
        ...

    def encode(self, samples: Sequence[Any]) -> Any:
        """Encodes preprocessed samples, at least one, for ``write`` and ``scores``."""
        ...

    def write(
        self, encoded: Any, options: GenerationOptions, prefix_ids: Sequence[Sequence[int]] | None = None
    ) -> list[list[Draft]]:
        """Writes drafts about each sample, the best first; as ``generate``."""
        ...

    def scores(self, encoded: Any, owner: Any, texts: Sequence[str]) -> Any:
        """Scores [n] of texts and the samples ``owner`` [n], by the formula that ranks the answers of a search."""
        ...

    def content_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts without start and end."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids."""
        ...


def caption_files(
    describer: Describer, samples: Iterable[Any], options: GenerationOptions = GenerationOptions(), rerank: int = 0
) -> Iterator[Caption]:
    """Describes samples in their order; a few batches are in memory at a time.

    Args:
        samples: where the bytes of files come from (``types.Media``).
        options: how drafts are written.
        rerank: drafts per sample, of which the one with the best score is taken; 0 = the most probable draft.
    """
    options = replace(options, drafts=rerank) if rerank else options
    for side in _sides(describer, samples):
        captions: list[Caption] = []
        if side.samples:
            encoded = describer.encode(side.samples)
            captions = _captions(describer, encoded, describer.write(encoded, options), bool(rerank))
        for place, problem in zip(side.places, side.problems, strict=True):
            yield Caption(problem=problem) if problem else captions[place]


def answer_files(describer: Describer, samples: Iterable[Any], questions: Sequence[str]) -> Iterator[Answer]:
    """Answers every question about each sample: sample by sample, in the order of the questions.

    A few batches are in memory at a time.

    Args:
        samples: where the bytes of files come from (``types.Media``).
    Raises:
        ConfigError: a question is too long for the decoder.
        DataError: an empty question.
    """
    if any(is_blank(question) for question in questions):
        raise DataError("an empty question", where="--ask", expected='a sentence such as "what colour is the dog?"')
    prefixes = describer.content_ids(questions)
    for side in _sides(describer, samples):
        by_question: list[list[Answer]] = [[] for _ in questions]
        if side.samples:
            encoded = describer.encode(side.samples)
            for answers, prefix in zip(by_question, prefixes, strict=True):
                drafts = [of[0] for of in describer.write(encoded, ANSWERS, [prefix] * len(side.samples))]
                answers += [Answer(describer.decode(d.ids), math.exp(d.total_log_prob)) for d in drafts]
        for place, problem in zip(side.places, side.problems, strict=True):
            yield from (Answer(problem=problem) if problem else answers[place] for answers in by_question)


def _sides(describer: Describer, samples: Iterable[Any]) -> Iterator[SampleSide]:
    iterator = iter(samples)
    for _, side in prefetch(describer.read, iter(lambda: list(islice(iterator, BATCH)), [])):
        yield side


def _captions(describer: Describer, encoded: Any, drafts: list[list[Draft]], rerank: bool) -> list[Caption]:
    """The best draft of each sample: by score with ``rerank``, else the most probable one."""
    if not rerank:
        return [Caption(describer.decode(of[0].ids), of[0].log_prob) for of in drafts]
    texts = [[describer.decode(draft.ids) for draft in of_sample] for of_sample in drafts]
    counts = [len(of_sample) for of_sample in texts]
    flat = [text for of_sample in texts for text in of_sample]
    scores = describer.scores(encoded, np.repeat(np.arange(len(texts)), counts), flat)
    captions = []
    for sample_texts, sample_drafts, end in zip(texts, drafts, np.cumsum(counts), strict=True):
        of_sample = [float(score) for score in scores[end - len(sample_texts) : end]]
        best = int(np.argmax(of_sample))
        captions.append(Caption(sample_texts[best], sample_drafts[best].log_prob, of_sample[best]))
    return captions
