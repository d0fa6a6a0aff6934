from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest

from ccaco_cli.core.retrieval.search import Hit
from ccaco_cli.view import results

ROWS = [{"run": "a", "seed": 1, "image_to_text_R@1": 0.5, "image_to_text_mean_rank": 3.0, "loss_total": 2.0}, {"run": "b", "extra": 7}]
ANSWERS = [
    (
        "a cat",
        [Hit(1, 5, 12.34567, 0.98765, 1.23456, {"id": "x", "text": ["t1", "t2"]}), Hit(2, 6, 0.5, 0.5, None, {"id": "y", "text": "t"})],
    ),
    ("nobody", []),
    ("a dog", [Hit(1, 7, 0.25, 0.25, None, {"id": "z", "text": "u"})]),
]


def test_a_table_leaves_out_what_files_keep(capsys: pytest.CaptureFixture[str]) -> None:
    results.show(ROWS, "csv", "t")
    assert next(csv.DictReader(io.StringIO(capsys.readouterr().out)))["image_to_text_mean_rank"] == "3.0"
    results.show(ROWS, "markdown", "t")
    head = capsys.readouterr().out.splitlines()[0]
    assert head == "| run | i2t R@1 | extra |"
    results.show([], "csv", "t")
    assert capsys.readouterr().out == ""


def test_answers_as_csv_have_one_header(capsys: pytest.CaptureFixture[str]) -> None:
    results.show_answers(ANSWERS, "csv")
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(r["query"], r["rank"], r["id"], r["match"]) for r in rows] == [
        ("a cat", "1", "x", "1.2346"),
        ("a cat", "2", "y", ""),
        ("a dog", "1", "z", ""),
    ]
    assert rows[0]["score"] == "12.3457"


def test_answers_come_one_query_at_a_time(capsys: pytest.CaptureFixture[str]) -> None:
    def stream() -> Any:
        yield ANSWERS[0]
        assert "a cat,1" in capsys.readouterr().out
        yield ANSWERS[2]

    results.show_answers(stream(), "csv")


def test_answers_in_other_formats(capsys: pytest.CaptureFixture[str]) -> None:
    results.show_answers(ANSWERS, "json")
    rows = json.loads(capsys.readouterr().out)
    assert [r["id"] for r in rows] == ["x", "y", "z"]
    assert rows[1]["match"] is None
    assert rows[0]["text"] == ["t1", "t2"]
    results.show_answers(ANSWERS, "table")
    out = capsys.readouterr().out
    assert out.index("a cat") < out.index("a dog")
    assert "query" not in out
