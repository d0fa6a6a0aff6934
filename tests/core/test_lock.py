from __future__ import annotations

import os
from pathlib import Path

import pytest

from ccaco_cli.core import lock
from ccaco_cli.core.errors import DataError
from tests.processes import launch


def hold_and_die(folder: Path) -> None:
    with lock.hold(folder, "run"):
        os._exit(9)


def try_it(folder: Path, report: Path) -> None:
    try:
        with lock.hold(folder, "run"):
            report.write_text("held")
    except DataError as error:
        report.write_text(str(error))


def test_the_holder_is_named_and_afterwards_nothing_is_left(tmp_path: Path) -> None:
    with lock.hold(tmp_path / "r", "run"):
        assert launch(1, try_it, tmp_path / "r", tmp_path / "said") == [0]
    report = (tmp_path / "said").read_text()
    assert f"another process is writing this run (process {os.getpid()} on " in report
    assert str(tmp_path / "r") in report
    assert sorted(p.name for p in tmp_path.iterdir()) == ["said"]


def test_a_holder_that_died_holds_nothing(tmp_path: Path) -> None:
    assert launch(1, hold_and_die, tmp_path / "r") == [9]
    assert launch(1, try_it, tmp_path / "r", tmp_path / "said") == [0]
    assert (tmp_path / "said").read_text() == "held"


@pytest.mark.parametrize("note", ["", "{", "[1]", '{"process": "x"}', "[" * 10_000])
def test_an_unreadable_note_does_no_harm(tmp_path: Path, note: str) -> None:
    with lock.hold(tmp_path / "r", "run"):
        (tmp_path / ".r.holder").write_text(note)
        assert launch(1, try_it, tmp_path / "r", tmp_path / "said") == [0]
    assert "it has just begun" in (tmp_path / "said").read_text()
