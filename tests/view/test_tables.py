from __future__ import annotations

import csv
import io
import json
import math
import sys
from typing import Any

import pytest

from ccaco_cli.view import tables

ROWS = [
    {
        "run": "a&b_1",
        "image_to_text_R@1": 0.1234,
        "text_to_image_mean_rank": 1234.5,
        "n": 12345,
        "note": None,
        "text": ["x|y", "z"],
    },
    {"run": "=cmd()", "image_to_text_R@1": math.nan, "n": 3},
]
COLUMNS = ("run", "image_to_text_R@1", "text_to_image_mean_rank", "n", "note", "text")


def shown(capsys: pytest.CaptureFixture[str], format: str | None, **more: Any) -> str:
    tables.show(ROWS, COLUMNS, format, **more)
    out, err = capsys.readouterr()
    assert err == ""
    return out


def test_csv_keeps_fractions_and_disarms_formulas(capsys: pytest.CaptureFixture[str]) -> None:
    rows = list(csv.DictReader(io.StringIO(shown(capsys, "csv"))))
    assert [float(r["image_to_text_R@1"]) for r in rows] == pytest.approx([0.1234, math.nan], nan_ok=True)
    assert rows[0]["run"] == "a&b_1"
    assert rows[1]["run"] == "'=cmd()"
    assert rows[0]["text"] == "x|y | z"
    assert rows[1]["note"] == ""
    assert "run" not in shown(capsys, "csv", header=False)


def test_json_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    rows = json.loads(shown(capsys, "json"))
    assert rows[0] == ROWS[0]
    assert rows[1] == {
        "run": "=cmd()",
        "image_to_text_R@1": None,
        "text_to_image_mean_rank": None,
        "n": 3,
        "note": None,
        "text": None,
    }


def test_markdown_and_latex_escape(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys, "markdown").splitlines()
    assert lines[0] == "| run | i2t R@1 | t2i mean rank | n | note | text |"
    assert lines[1] == "| --- | --- | --- | --- | --- | --- |"
    assert lines[2] == "| a&b_1 | 12.3 | 1,234.5 | 12,345 |  | x\\|y \\| z |"
    assert len(lines) == 4
    latex = shown(capsys, "latex")
    assert r"a\&b\_1 & 12.3 & 1,234.5" in latex
    assert latex.startswith("\\begin{tabular}{llllll}\n\\toprule\n")
    assert latex.endswith("\\bottomrule\n\\end{tabular}\n")


def test_a_table_shows_percent_and_takes_markup_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    tables.show([{"run": "[red]x[/red]", "image_to_text_R@1": 0.5}], ("run", "image_to_text_R@1"), "table", "Title")
    out = capsys.readouterr().out
    assert "Title" in out
    assert "[red]x[/red]" in out
    assert "50.0" in out
    assert "i2t" in out and "R@1" in out, "a heading may break between words"


def test_a_closed_pipe_is_reported_to_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Closed())
    for format in tables.FORMATS:
        assert tables.show(ROWS, COLUMNS, format) is False


def test_default_is_a_table_on_a_terminal_and_csv_in_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tables.default_format() == "csv"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert tables.default_format() == "table"


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("image_to_text_mAP", 0.5, "50.0"),
        ("accuracy", 1, "100.0"),
        ("x", True, "True"),
        ("x", 123.456, "123.5"),
        ("x", -0.001234, "-0.00123"),
        ("x", None, ""),
        ("x", ("a", 1), "a | 1"),
        ("x", 1_000_000, "1,000,000"),
    ],
)
def test_values_as_people_read_them(name: str, value: Any, wanted: str) -> None:
    assert tables.text(name, value) == wanted


def test_short_names() -> None:
    assert tables.short("text_to_image_R@10") == "t2i R@10"
    assert tables.short("video_to_audio_median_rank") == "v2a median rank"
    assert tables.short("seconds") == "time (s)"
    assert tables.short("memory_MiB") == "memory (MiB)"
