from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ccaco_cli.core.workflows.report import rows


@pytest.mark.parametrize("format", ["csv", "json", "markdown", "latex", "table"])
def test_every_format_shows_the_run(ccaco: Callable[..., Any], run: Path, format: str) -> None:
    done = ccaco("report", run, "--format", format)
    assert (done.code, done.err) == (0, "")
    assert "first" in done.out
    wanted = rows([run])[0]["text_to_image_R@5"]
    if format == "json":
        assert json.loads(done.out)[0]["text_to_image_R@5"] == wanted
    elif format == "csv":
        assert float(next(csv.DictReader(io.StringIO(done.out)))["text_to_image_R@5"]) == wanted
    elif format != "table":
        assert f" {100 * wanted:.1f} " in done.out


def test_gates_end_with_1_and_name_themselves(ccaco: Callable[..., Any], run: Path) -> None:
    done = ccaco("report", run, "--stages", "--fail-if", "text_to_image_R@10<0", "--fail-if", "steps>1")
    assert done.code == 1
    assert [line.partition(" (")[2] for line in done.err.splitlines()] == ["steps>1)"] * 2
    assert len(list(csv.DictReader(io.StringIO(done.out)))) == 2
    assert ccaco("report", run, "--fail-if", "text_to_image_R@10<0").code == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["gone"], "no finished run here: gone"),
        (["RUN", "--split", "dev"], "no results on dev"),
        (["RUN", "--fail-if", "R@1"], "cannot read"),
    ],
)
def test_errors_are_one_line(ccaco: Callable[..., Any], run: Path, arguments: list[str], words: str) -> None:
    done = ccaco("report", *(run if a == "RUN" else a for a in arguments))
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert words in done.err
