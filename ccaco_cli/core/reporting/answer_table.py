"""Answers of runs in numbers: accuracy by kind of question, beside chance and a baseline that reads no picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ccaco_cli.core.errors import DataError
from ccaco_cli.core.evaluation import significance
from ccaco_cli.core.evaluation.significance import PerQuery
from ccaco_cli.core.reporting.rows import Cells, ReportRow
from ccaco_cli.core.scoring.answers import STAGE, AnsweredQuestion, load_answers
from ccaco_cli.core.scoring.results import Run

ALL = "all"
"""The row over all questions."""


@dataclass(frozen=True)
class AnswerRow(ReportRow):
    """One kind of question of a run. Accuracies are 0..1, means over questions.

    Attributes:
        kind: of the questions; ``all`` = all of them.
        questions: number of them.
        low, high: 95 % interval of the accuracy, clustered by sample; None for a single sample.
        blind_accuracy: of the most frequent answer to the same text in training data; None without training data.
        chance: of a draw among the possible answers; None where they are not known.
    """

    run: str
    dataset: str
    arm: str
    seed: int
    kind: str
    questions: int
    accuracy: float
    low: float | None
    high: float | None
    blind_accuracy: float | None
    chance: float | None

    def sections(self) -> tuple[Cells, ...]:
        cells: Cells = {"run": self.run, "dataset": self.dataset, "arm": self.arm, "seed": self.seed}
        cells |= {"kind": self.kind, "questions": self.questions, "answer_accuracy": self.accuracy}
        cells |= {"low": self.low, "high": self.high}
        return (cells | {"blind_accuracy": self.blind_accuracy, "chance": self.chance},)


def answer_rows(runs: Sequence[Run], split: str) -> list[AnswerRow]:
    """Rows of each run by kind of question, and over all questions.

    Raises:
        DataError: no run has stored answers on the split.
    """
    answering = [run for run in runs if (run.path / "results" / f"{split}.{STAGE}.json").is_file()]
    if not answering and runs:
        load_answers(runs[0].path, split)  # says what is missing
    if not answering:
        raise DataError("no runs", expected="a run that was trained with --gamma above 0 on data with questions")
    return [row for run in answering for row in _rows(run, load_answers(run.path, split))]


def _rows(run: Run, questions: list[AnsweredQuestion]) -> list[AnswerRow]:
    kinds = sorted({question.kind for question in questions if question.kind})
    parts = {kind: [question for question in questions if question.kind == kind] for kind in kinds} | {ALL: questions}
    return [_row(run, kind, part) for kind, part in parts.items()]


def _row(run: Run, kind: str, questions: list[AnsweredQuestion]) -> AnswerRow:
    outcomes, rows = np.array([q.accuracy for q in questions]), np.array([q.row for q in questions])
    interval = significance.estimate([PerQuery.of(outcomes, rows)]) if len(set(rows.tolist())) > 1 else None
    chances = [question.chance for question in questions if question.chance is not None]
    return AnswerRow(
        run=run.name,
        dataset=run.dataset,
        arm=run.label,
        seed=int(run.facts["seed"]),
        kind=kind,
        questions=len(questions),
        accuracy=float(outcomes.mean()),
        low=interval.low if interval else None,
        high=interval.high if interval else None,
        blind_accuracy=float(np.mean([q.blind_accuracy for q in questions])) if questions[0].blind else None,
        chance=float(np.mean(chances)) if len(chances) == len(questions) else None,
    )
