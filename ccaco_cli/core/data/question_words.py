"""The questions and answers of a split as a text decoder takes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ccaco_cli.core.data.questions import read_questions
from ccaco_cli.core.data.shards import Split
from ccaco_cli.core.types import Words

Array = np.ndarray[Any, Any]
Tokenize = Callable[[list[str]], Mapping[str, Tensor]]
NO_QUESTION = -1
"""In place of an item: the sample has no question."""
NONE: Array = np.empty(0, np.int64)
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
        per_pair: K, items that are drawn for each pair.
    Attributes:
        start: [rows + 1] int64; row r has the items start[r] .. start[r + 1] - 1.
    """

    def __init__(
        self,
        split: Split,
        tokenize: Tokenize,
        ends: tuple[int | None, int | None],
        per_pair: int,
        rows: int | None = None,
    ):
        self.per_pair, self.ends = per_pair, tuple([] if id is None else [id] for id in ends)
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
        """Draws items of each row, different ones where it has K of them: [B] int64 -> [B, K] int64."""
        counts = (self.start[rows + 1] - self.start[rows])[:, None]
        first = (rng.random((len(rows), 1)) * counts).astype(np.int64)
        items = self.start[rows][:, None] + (first + np.arange(self.per_pair)) % np.maximum(1, counts)
        return np.where(counts > 0, items, NO_QUESTION)

    def token_ids(self) -> Array:
        """The token ids of all questions and answers, each once."""
        return np.unique(np.concatenate([*self._questions, *self._answers])) if len(self) else np.empty(0, np.int64)

    def text(self, item: int) -> tuple[Array, int]:
        """Token ids of a question, its answer, start and end; and the number of tokens of the question."""
        question, answer = (ids[n] for ids, n in zip((self._questions, self._answers), self._pairs[item], strict=True))
        start, end = self.ends
        return np.concatenate([start, question, answer, end]).astype(np.int64), len(question)

    def __call__(self, items: Array) -> Words:
        """The texts of these items; ``NO_QUESTION`` has no tokens."""
        texts = [(NONE, 0) if item == NO_QUESTION else self.text(int(item)) for item in items]
        ids = pad_sequence([torch.from_numpy(ids) for ids, _ in texts], batch_first=True)
        mask = torch.arange(ids.shape[1]) < torch.tensor([len(ids) for ids, _ in texts])[:, None]
        return Words(ids, mask, torch.tensor([length for _, length in texts]))
