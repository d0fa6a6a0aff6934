"""Answers the decoder of a model gives to questions about samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ccaco_cli.core.data.loader import Column
from ccaco_cli.core.data.question_words import content_ids
from ccaco_cli.core.encoding.drafts import require_decoder, write_drafts
from ccaco_cli.core.model.aligner import Aligner
from ccaco_cli.core.model.generation import ANSWERS, Answer
from ccaco_cli.core.model.towers.tower import Tower


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
    drafts = [of_item[0] for of_item in write_drafts(aligner, column, items, ANSWERS, prefixes)]
    return [Answer(tokenizer.decode(draft.ids), math.exp(draft.total_log_prob)) for draft in drafts]
