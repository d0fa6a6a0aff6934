"""Answers to questions about files, by the decoder of a run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from ccaco_cli.core.encoding.answers import Answer, write_answers
from ccaco_cli.core.encoding.batching import prefetch
from ccaco_cli.core.encoding.drafts import require_decoder
from ccaco_cli.core.encoding.samples import PreprocessedColumn
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.experiments.captioning import BATCH
from ccaco_cli.core.experiments.pair_scores import PairModel, read_side
from ccaco_cli.core.text_input import is_blank


def answer_files(model: PairModel, samples: Iterable[Any], questions: Sequence[str]) -> Iterator[Answer]:
    """Answers every question about each sample: sample by sample, in the order of the questions.

    A few batches are in memory at a time.

    Args:
        samples: of the side of the model that is no text: where the bytes of files come from (``types.Media``).
    Raises:
        ConfigError: the model has no decoder, or a question is too long for it.
        DataError: an empty question.
    """
    require_decoder(model.aligner, model.manifest.path)
    if any(is_blank(question) for question in questions):
        raise DataError("an empty question", where="--ask", expected='a sentence such as "what colour is the dog?"')
    tower, iterator = model.towers[model.aligner.described], iter(samples)
    batches = iter(lambda: list(islice(iterator, BATCH)), [])
    for _, side in prefetch(partial(read_side, tower, folders=()), batches):
        column = PreprocessedColumn(tower.modality, side.samples)
        items = np.arange(len(side.samples))
        by_question = [
            write_answers(model.aligner, model.towers["text"], column, items, [question] * len(items))
            if len(items)
            else []
            for question in questions
        ]
        for place, problem in zip(side.places, side.problems, strict=True):
            yield from (Answer(problem=problem) if problem else answers[place] for answers in by_question)
