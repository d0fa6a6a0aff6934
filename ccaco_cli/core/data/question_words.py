"""The questions and answers of a split as a text decoder takes them, and the texts of a batch that mixes them with
captions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ccaco_cli.core.data.caption_words import CaptionWords
from ccaco_cli.core.data.questions import read_questions
from ccaco_cli.core.data.shards import Split
from ccaco_cli.core.types import Words

Array = np.ndarray[Any, Any]
Tokenize = Callable[[list[str]], Mapping[str, Tensor]]
CAPTION = -1
"""In place of a question: the decoder reads the caption of the pair."""
ROWS_AT_ONCE = 4096
"""Samples whose facts are Python objects at a time."""


def content_ids(tokenize: Tokenize, texts: Sequence[str], added: tuple[int, int]) -> list[Array]:
    """The token ids of texts without start and end.

    Args:
        added: number of tokens that the tokenizer puts before and after each text (``TextDecoder.added``).
    """
    if not texts:
        return []
    encoded = tokenize(list(texts))
    first, last = added
    lengths = encoded["mask"].sum(1).tolist()
    return [row[first : n - last] for row, n in zip(encoded["ids"].numpy().astype(np.int64), lengths, strict=True)]


class QuestionColumn:
    """The questions of a split with one of their answers each, as token ids.

    An *item* is a question with one of its answers; an answer of several people is as many items.

    Args:
        split: rows with questions.
        rows: number of rows that are read; None = all.
        tokenize: of the text tower.
        ends: token ids (start, end) of a text; None = the tokenizer adds none.
        share: of the pairs whose sample has questions, those that train an answer in place of the caption, 0..1.
    Attributes:
        start: [rows + 1] int64; row r has the items start[r] .. start[r + 1] - 1.
    """

    def __init__(
        self,
        split: Split,
        tokenize: Tokenize,
        ends: tuple[int | None, int | None],
        share: float,
        rows: int | None = None,
    ):
        self.share, self.ends = share, tuple([] if id is None else [id] for id in ends)
        questions: dict[str, int] = {}
        answers: dict[str, int] = {}
        pairs: list[tuple[int, int]] = []
        counts = np.zeros(len(split), np.int64)
        total = len(split) if rows is None else rows
        for first in range(0, total, ROWS_AT_ONCE):
            batch = range(first, min(first + ROWS_AT_ONCE, total))
            for row, meta in zip(batch, split.metas(batch), strict=True):
                for question in read_questions(meta):
                    number = questions.setdefault(question.text, len(questions))
                    pairs += [(number, answers.setdefault(answer, len(answers))) for answer in question.answers]
                    counts[row] += len(question.answers)
        self.start = np.concatenate([[0], np.cumsum(counts)])
        self._pairs = np.array(pairs, np.int32).reshape(-1, 2)
        added = len(self.ends[0]), len(self.ends[1])
        self._questions = content_ids(tokenize, list(questions), added)
        self._answers = content_ids(tokenize, list(answers), added)

    def __len__(self) -> int:
        return len(self._pairs)

    def draw(self, rows: Array, rng: np.random.Generator) -> Array:
        """Draws the text that the decoder reads of each row: an item, or ``CAPTION``.

        Args:
            rows: [B] int64.
        """
        counts = self.start[rows + 1] - self.start[rows]
        items = self.start[rows] + (rng.random(len(rows)) * counts).astype(np.int64)
        return np.where((rng.random(len(rows)) < self.share) & (counts > 0), items, CAPTION)

    def token_ids(self) -> Array:
        """The token ids of all questions and answers, each once."""
        return np.unique(np.concatenate([*self._questions, *self._answers])) if len(self) else np.empty(0, np.int64)

    def text(self, item: int) -> tuple[Array, int]:
        """Token ids of a question, its answer, start and end; and the number of tokens of the question."""
        question, answer = (ids[n] for ids, n in zip((self._questions, self._answers), self._pairs[item], strict=True))
        start, end = self.ends
        return np.concatenate([start, question, answer, end]).astype(np.int64), len(question)


@dataclass(frozen=True)
class MixedWords:
    """Texts of a batch: captions, and questions with answers."""

    captions: CaptionWords
    questions: QuestionColumn

    def __call__(self, items: Array, questions: Array) -> Words:
        """The caption ``items[i]``, or the question ``questions[i]`` if it is not ``CAPTION``, for each pair i."""
        words = self.captions(items)
        texts = {row: self.questions.text(int(item)) for row, item in enumerate(questions) if item != CAPTION}
        longest = max([words.ids.shape[1], *(len(ids) for ids, _ in texts.values())])
        ids, mask = (torch.nn.functional.pad(t, (0, longest - t.shape[1])) for t in (words.ids, words.mask))
        prefix = torch.zeros(len(items), dtype=torch.long)
        for row, (token_ids, question_length) in texts.items():
            ids[row, : len(token_ids)] = torch.from_numpy(token_ids)
            mask[row] = torch.arange(longest) < len(token_ids)
            prefix[row] = question_length
        return Words(ids, mask, prefix)
