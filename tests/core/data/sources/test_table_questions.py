from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ccaco_cli.core.data.questions import read_questions
from ccaco_cli.core.data.sources.source import SourceOptions
from ccaco_cli.core.data.sources.table import SOURCE
from ccaco_cli.core.errors import DataError

QUESTIONS = [("what colour?", ("red", "dark red")), ("how many?", ("two",))]


def read(path: Path, **options: Any) -> list[tuple[list[str], list[tuple[str, tuple[str, ...]]], str]]:
    records = SOURCE.read(path, SourceOptions(**options)).records
    return [(list(r.captions), [(q.text, q.answers) for q in read_questions(r.meta)], r.problem) for r in records]


def save(path: Path, rows: list[dict[str, Any]]) -> Path:
    table = pd.DataFrame(rows)
    if path.suffix == ".csv":
        table.to_csv(path, index=False)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        table.to_parquet(path)
    return path


@pytest.mark.parametrize("kind", ["t.csv", "t.jsonl", "t.parquet"])
def test_one_row_for_each_question(tmp_path: Path, kind: str) -> None:
    rows = [
        {"filepath": "a.jpg", "title": "a ball", "question": "what colour?", "answers": "red|dark red"},
        {"filepath": "a.jpg", "title": "a ball", "question": "how many?", "answers": '["two"]'},
    ]
    assert read(save(tmp_path / kind, rows)) == [(["a ball"], QUESTIONS, "")]


@pytest.mark.parametrize("kind", ["t.csv", "t.jsonl", "t.parquet"])
def test_lists_of_questions(tmp_path: Path, kind: str) -> None:
    question: Any = ["what colour?", "how many?"]
    answers: Any = [["red", "dark red"], ["two"]]
    if kind == "t.csv":
        question, answers = json.dumps(question), json.dumps(answers)
    rows = [{"filepath": "a.jpg", "title": "a ball", "question": question, "answers": answers}]
    assert read(save(tmp_path / kind, rows)) == [(["a ball"], QUESTIONS, "")]


def test_without_captions_questions_and_answers_are_the_texts(tmp_path: Path) -> None:
    rows = [{"filepath": "a.jpg", "question": "what colour?", "answers": "red|dark red"}]
    assert read(save(tmp_path / "t.csv", rows)) == [(["what colour? red"], QUESTIONS[:1], "")]


@pytest.mark.parametrize(
    ("question", "answers", "problem"),
    [
        ("what?", "", "a question without answers"),
        ("what?", "|", "a question without answers"),
        ('["what?", "how?"]', '["a"]', "questions and answers of other numbers"),
        ('["what?", "how?"]', "a", "questions and answers of other numbers"),
        ("", "a", "questions and answers of other numbers"),
    ],
)
def test_what_cannot_be_read_is_a_reject(tmp_path: Path, question: str, answers: str, problem: str) -> None:
    rows = [{"filepath": "a.jpg", "title": "a ball", "question": question, "answers": answers}]
    assert read(save(tmp_path / "t.csv", rows))[0][2] == problem


def test_one_column_alone(tmp_path: Path) -> None:
    file = save(tmp_path / "t.csv", [{"filepath": "a.jpg", "title": "a ball", "question": "what?"}])
    (record,) = SOURCE.read(file, SourceOptions()).records
    assert record.meta == {"question": "what?"}
    with pytest.raises(DataError, match="without answers"):
        SOURCE.read(file, SourceOptions(columns={"question": "question"}))
