"""Answers of a text decoder to the questions of a split, beside those of a baseline that reads the question alone.

Each answer is stored, so that every table is made without the model.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ccaco_cli.core import manifest
from ccaco_cli.core.config import RunConfig
from ccaco_cli.core.data.questions import Question, read_questions
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.evaluation.answers import answer_accuracy

if TYPE_CHECKING:  # tables of stored answers load no torch
    from ccaco_cli.core.data.loader import Column
    from ccaco_cli.core.data.shards import PairData, Split
    from ccaco_cli.core.model.aligner import Aligner
    from ccaco_cli.core.model.towers.tower import Tower

STAGE = "answers"
"""Stage of a result file that holds answers: ``results/SPLIT.answers.json``."""
BATCH = 256


@dataclass(frozen=True)
class AnsweredQuestion:
    """One question with its answers.

    Attributes:
        id: of the sample.
        row: of the sample in its split.
        question, kind, chance, voted: as in ``questions.Question``.
        accepted: its answers in the data set.
        answer, confidence: of the decoder; probability 0..1.
        blind: the most frequent answer to this text in the training split (``MajorityAnswers``); "" = there is none.
    """

    id: str
    row: int
    question: str
    kind: str
    chance: float | None
    voted: bool
    accepted: tuple[str, ...]
    answer: str
    confidence: float
    blind: str

    @property
    def accuracy(self) -> float:
        """0..1 (``answer_accuracy``)."""
        return answer_accuracy(self.answer, self.accepted, voted=self.voted)

    @property
    def blind_accuracy(self) -> float:
        """0..1, of ``blind``."""
        return answer_accuracy(self.blind, self.accepted, voted=self.voted)


class MajorityAnswers:
    """The blind baseline: the most frequent answer to the same question text in training data.

    A text that does not occur there has the most frequent answer of its kind, or else of all questions.

    Args:
        questions: of the training split.
    """

    def __init__(self, questions: Iterable[Question]):
        counts: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
        for question in questions:
            for key in ((question.kind, question.text), (question.kind,), ()):
                counts[key].update(question.answers)
        self._answers = {key: answers.most_common(1)[0][0] for key, answers in counts.items()}

    def __call__(self, question: Question) -> str:
        """The answer; "" without training questions."""
        keys: tuple[tuple[str, ...], ...] = ((question.kind, question.text), (question.kind,), ())
        return next((self._answers[key] for key in keys if key in self._answers), "")


def split_questions(split: Split) -> list[tuple[int, Question]]:
    """The questions of a split with the rows of their samples."""
    from ccaco_cli.core.data.question_words import ROWS_AT_ONCE

    parts = (range(first, min(first + ROWS_AT_ONCE, len(split))) for first in range(0, len(split), ROWS_AT_ONCE))
    return [
        (row, question)
        for rows in parts
        for row, meta in zip(rows, split.metas(rows), strict=True)
        for question in read_questions(meta)
    ]


def answer_split(
    aligner: Aligner, towers: Mapping[str, Tower], split: Split, column: Column, train: Split | None
) -> list[AnsweredQuestion]:
    """Answers the questions of a split; [] where it has none.

    Args:
        aligner: with a decoder.
        column: the samples of the split, of ``Aligner.described``.
        train: the training split, which the blind baseline reads; None = there is none.
    """
    from ccaco_cli.core.encoding.answers import write_answers

    questions = split_questions(split)
    if not questions:
        return []
    blind = MajorityAnswers(question for _, question in (split_questions(train) if train is not None else ()))
    answered = []
    for first in range(0, len(questions), BATCH):
        batch = questions[first : first + BATCH]
        rows, texts = np.array([row for row, _ in batch]), [question.text for _, question in batch]
        answers = write_answers(aligner, towers["text"], column, rows, texts)
        for (row, question), answer in zip(batch, answers, strict=True):
            answered.append(
                AnsweredQuestion(
                    id=str(split.ids[row]),
                    row=row,
                    question=question.text,
                    kind=question.kind,
                    chance=question.chance,
                    voted=question.voted,
                    accepted=question.answers,
                    answer=answer.text,
                    confidence=round(answer.confidence or 0.0, 6),
                    blind=blind(question),
                )
            )
    return answered


def store_answers(
    folder: Path, data: PairData, config: RunConfig, split: str, questions: Sequence[AnsweredQuestion]
) -> Path:
    """Writes ``SPLIT.answers.json`` into the folder of the results of a run; returns the file."""
    body = {
        "split": split,
        "stage": STAGE,
        "arm": config.arm,
        "seed": config.seed,
        "dataset": data.name,
        "data": data.manifest.sha256,
        "questions": [asdict(question) for question in questions],
    }
    file = folder / f"{split}.{STAGE}.json"
    manifest.write_json(file, body)
    return file


def load_answers(run: Path, split: str) -> list[AnsweredQuestion]:
    """The stored answers of a run.

    Raises:
        DataError: there are none, or the file is damaged.
    """
    file = run / "results" / f"{split}.{STAGE}.json"
    if not file.is_file():
        raise DataError(
            f"this run has no answers on {split}",
            where=run,
            expected="a run that was trained with --gamma above 0 on data with questions",
            next="ccaco train --dataset scenes --gamma 1",
        )
    try:
        body = manifest.read_json(file)
        return [AnsweredQuestion(**{**entry, "accepted": tuple(entry["accepted"])}) for entry in body["questions"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"unreadable answers ({error})", where=file, expected="what ccaco train wrote") from None
