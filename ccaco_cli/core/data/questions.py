"""Questions about samples, with their accepted answers: they travel in ``PairRecord.meta``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ccaco_cli.core.data.checks import clean_caption

QUESTIONS = "questions"
"""Key of the questions in ``PairRecord.meta``."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question about a sample.

    Attributes:
        text: the question.
        answers: accepted answers, or with ``voted`` the answer of each person.
        kind: by which results are divided, such as "colour"; "" = none.
        chance: accuracy 0..1 of a draw among its possible answers; None = not known.
        voted: several people answered, and an answer counts by how many of them gave it (arXiv:1505.00468).
    """

    text: str
    answers: tuple[str, ...]
    kind: str = ""
    chance: float | None = None
    voted: bool = False

    @property
    def caption(self) -> str:
        """The question and its most frequent answer as one text, for samples without captions."""
        return f"{self.text} {Counter(self.answers).most_common(1)[0][0]}"


def stored(questions: Iterable[Question]) -> list[dict[str, Any]]:
    """Questions as JSON types, for ``PairRecord.meta``; texts are cleaned as captions are."""
    return [
        {"question": clean_caption(q.text), "answers": [clean_caption(a) for a in q.answers], "kind": q.kind}
        | ({} if q.chance is None else {"chance": q.chance})
        | ({"voted": True} if q.voted else {})
        for q in questions
    ]


def read_questions(meta: Mapping[str, Any]) -> list[Question]:
    """The questions of a sample from its facts."""
    return [
        Question(entry["question"], tuple(entry["answers"]), entry["kind"], entry.get("chance"), "voted" in entry)
        for entry in meta.get(QUESTIONS) or ()
    ]
