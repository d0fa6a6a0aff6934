from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ccaco_cli.core.reporting.report_tables import run_rows


@pytest.mark.parametrize("format", ["csv", "json", "markdown", "latex", "table"])
def test_every_format_shows_the_run(ccaco: Callable[..., Any], run: Path, format: str) -> None:
    done = ccaco("report", run, "--format", format)
    assert (done.code, done.err) == (0, "")
    assert "first" in done.out
    wanted = run_rows([run])[0].metrics["text_to_image_R@5"]
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
        (["RUN", "--metric", "r-sum"], "no such metric: r-sum; "),
        (["RUN", "--metric", "R@1", "--table", "domains"], "--metric text_to_image_R@1 or image_to_text_R@1"),
        (["--compare", "RUN", "RUN", "--metric", "zzz"], "no such metric: zzz; "),
        (["RUN", "--metric", "zzz", "--table", "ablation"], "no such metric: zzz; "),
        (["RUN", "--metric", "twins_accuracy"], "twins_accuracy; expected"),
        (["RUN", "--metric", "video_to_text_R@1"], "did you mean image_to_text_R@1?"),
        (["RUN", "--reference", "cacco"], "reference arm: cacco; expected ccaco; next: did you mean ccaco?"),
        (["RUN", "--by", "thing", "--table", "retrieval"], "did you mean things?"),
    ],
)
def test_errors_are_one_line(ccaco: Callable[..., Any], run: Path, arguments: list[str], words: str) -> None:
    done = ccaco("report", *(run if a == "RUN" else a for a in arguments))
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert words in done.err


def test_a_page_and_a_figure(
    ccaco: Callable[..., Any], run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ccaco_cli.core.reporting import faithfulness

    monkeypatch.setattr(faithfulness, "PAIRS", 4)
    done = ccaco("report", run, "--html", tmp_path / "run.html", "--figure", "curves", tmp_path / "curves.svg")
    assert done.code == 0
    assert done.err.splitlines() == [f"written: {tmp_path / 'curves.svg'}", f"written: {tmp_path / 'run.html'}"]
    assert done.out.startswith("run,"), "the rows are printed all the same"
    assert "<h1>first</h1>" in (tmp_path / "run.html").read_text("utf-8")
    files = ["--html", tmp_path / "late.html", "--figure", "curves", tmp_path / "late.svg"]
    for wrong in (
        ["--fail-if", "nonsense"],
        ["--metric", "nonsense"],
        ["--by", "nonsense"],
        ["--reference", "nonsense"],
        ["--split", "nonsense"],
        ["--table", "domains"],
        ["--html", tmp_path / "late.txt"],
        ["--figure", "curves", tmp_path / "late.txt"],
        ["--figure", "domains", tmp_path / "late.svg"],
    ):
        done = ccaco("report", run, *files, *wrong)
        assert done.code == 2 and not list(tmp_path.glob("late*")), "all options are checked before files are written"
    done = ccaco("report", run, "--html", tmp_path / "run.txt")
    assert done.code == 2 and "FILE.html" in done.err and not (tmp_path / "run.txt").exists()


def test_a_finished_run_is_watched_to_its_end(ccaco: Callable[..., Any], run: Path, tmp_path: Path) -> None:
    done = ccaco("report", run, "--watch")
    assert done.code == 0 and "finished" in done.err and done.out.startswith("run,")
    assert ccaco("report", tmp_path / "gone", "--watch").code == 2
