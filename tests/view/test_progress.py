from __future__ import annotations

import io
import sys

import pytest

from ccaco_cli.core.types import no_progress
from ccaco_cli.view import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_nothing_is_drawn_when_nobody_looks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress.bar("x") as report_progress:
        assert report_progress is no_progress
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("CI", "true")
    with progress.bar("x") as report_progress:
        assert report_progress is no_progress
    assert capsys.readouterr() == ("", "")


def test_a_bar_a_thing_on_stderr_only(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    with progress.bar("train x") as report_progress:
        report_progress(1, 10, {"total": 1.23456, "samples/s": 1234.0})
        report_progress(2, None, {"what": "pictures", "cell": "a-s0"})
        report_progress(10, 10, {"total": 0.5})
    drawn = terminal.getvalue()
    assert "train x" in drawn
    assert "10/10" in drawn
    assert "0.500" in drawn
    assert capsys.readouterr().out == ""


def test_results_that_are_printed_under_a_bar_stay_on_stdout(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    with progress.bar("score pairs") as report_progress:
        report_progress(1, None, {})
        print("a row")
    assert capsys.readouterr().out == "a row\n" and "a row" not in terminal.getvalue()


def test_a_note_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    progress.note("next: x")
    assert capsys.readouterr() == ("", "next: x\n")
