"""Answers of a text decoder to the questions of a split, beside those of a baseline that reads the question alone."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

from ccaco_cli.core.data.questions import Question


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
