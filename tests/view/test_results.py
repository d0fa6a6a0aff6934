from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest

from ccaco_cli.core.reporting.rows import DomainRow, RunRow
from ccaco_cli.core.retrieval.search import Hit
from ccaco_cli.view import answers, results

ROWS = [
    RunRow(
        run="a",
        dataset="toy",
        arm="ccaco",
        seed=1,
        stage="cosine",
        weight=None,
        metrics={"image_to_text_R@1": 0.5, "image_to_text_mean_rank": 3.0},
        losses={"loss_total": 2.0},
    ),
    RunRow("b", "toy", "clip", 1, "cosine", None, {"extra": 7}),
]
ANSWERS = [
    (
        "a cat",
        [
            Hit(1, 5, 12.34567, 0.98765, 1.23456, {"id": "x", "text": ["t1", "t2"]}),
            Hit(2, 6, 0.5, 0.5, None, {"id": "y", "text": "t"}),
        ],
    ),
    ("nobody", []),
    ("a dog", [Hit(1, 7, 0.25, 0.25, None, {"id": "z", "text": "u"})]),
]


def test_a_table_leaves_out_what_files_keep(capsys: pytest.CaptureFixture[str]) -> None:
    results.show(ROWS, "csv", "t")
    assert next(csv.DictReader(io.StringIO(capsys.readouterr().out)))["image_to_text_mean_rank"] == "3.0"
    results.show(ROWS, "markdown", "t")
    head = capsys.readouterr().out.splitlines()[0]
    assert head == "| run | arm | stage | i2t R@1 | extra |"
    results.show([], "csv", "t")
    assert capsys.readouterr().out == ""


def test_answers_as_csv_have_one_header(capsys: pytest.CaptureFixture[str]) -> None:
    answers.show_answers(ANSWERS, "csv")
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

    answers.show_answers(stream(), "csv")


def test_answers_in_other_formats(capsys: pytest.CaptureFixture[str]) -> None:
    answers.show_answers(ANSWERS, "json")
    rows = json.loads(capsys.readouterr().out)
    assert [r["id"] for r in rows] == ["x", "y", "z"]
    assert rows[1]["match"] is None
    assert rows[0]["text"] == ["t1", "t2"]
    answers.show_answers(ANSWERS, "table")
    out = capsys.readouterr().out
    assert out.index("a cat") < out.index("a dog")
    assert "query" not in out


def test_arms_across_domains_set_gain_beside_retention(capsys: pytest.CaptureFixture[str]) -> None:
    row = DomainRow(
        dataset="squares",
        sources="paper",
        target_domain="felt",
        arm="+mmd",
        seeds=2,
        metric="text_to_image_R@1",
        target=0.25,
        low=0.2,
        high=0.3,
        gain=0.05,
        reference="source-only",
        source=0.5,
        retention=0.98,
        oracle=None,
        proxy_a_distance=0.5,
        domain_accuracy=0.625,
        proxy_a_distance_before=1.5,
    )
    results.show([row], "markdown", "t")
    head, _, line = capsys.readouterr().out.splitlines()
    cells = dict(zip(head.split("|"), line.split("|"), strict=True))
    values = {k.strip(): v.strip() for k, v in cells.items() if k}
    assert values["target (t2i R@1)"] == "25.0" and values["95 %"] == "[20.0, 30.0]"
    assert (values["gain"], values["source"], values["retention"], values["domain"]) == ("+5.0", "50.0", "98 %", "62.5")
    results.show([row], "csv", "t")
    stored = next(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert (stored["arm"], stored["gain"], stored["low"]) == ("+mmd", "0.05", "0.2"), "an arm's name is no formula"
