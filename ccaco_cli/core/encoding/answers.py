"""Answers the decoder of a model gives to questions about samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ccaco_cli.core.data.loader import Column
from ccaco_cli.core.data.question_words import content_ids
from ccaco_cli.core.encoding.drafts import require_decoder, write_drafts
from ccaco_cli.core.model.aligner import Aligner
from ccaco_cli.core.model.generation import GenerationOptions
from ccaco_cli.core.model.towers.tower import Tower

MAX_ANSWER_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a question about a sample.

    Attributes:
        text: the answer; "" where there is a problem.
        confidence: probability of the whole answer under the decoder, 0..1.
        problem: why there is no answer; "" = there is one.
    """

    text: str = ""
    confidence: float | None = None
    problem: str = ""


def write_answers(
    aligner: Aligner, text_tower: Tower, column: Column, items: Any, questions: Sequence[str]
) -> list[Answer]:
    """Answers question i about item i, in one batch; the most probable word at each place (greedy).

    Args:
        aligner: with a decoder; it is set to evaluation mode.
        text_tower: of the same model.
        column: inputs, or cached tokens, of ``Aligner.described``.
        items: [B] int64, positions in the column.
    Raises:
        ConfigError: the model has no decoder, or a question is too long for it.
    """
    tokenizer, decoder = text_tower.tokenizer, require_decoder(aligner, "this model")
    assert tokenizer is not None
    prefixes = [ids.tolist() for ids in content_ids(text_tower.preprocess, questions, decoder.added)]
    options = GenerationOptions(max_words=MAX_ANSWER_TOKENS)
    drafts = [of_item[0] for of_item in write_drafts(aligner, column, items, options, prefixes)]
    return [Answer(tokenizer.decode(draft.ids), math.exp(draft.total_log_prob)) for draft in drafts]
