"""Damaged files of every format end in success or in one clear line: 500 here, 10,000 by ``benchmarks/fuzz.py``."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ccaco_cli.core.errors import DataError
from examples.benchmarks import fuzz


def test_five_hundred_damaged_files() -> None:
    """By the command itself: its processes are forked from one that has not computed anything."""
    command = [sys.executable, "-m", "examples.benchmarks.fuzz", "--inputs", "500"]
    done = subprocess.run(command, cwd=Path(fuzz.__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = re.fullmatch(
        r"inputs 500, clear refusals (\d+), accepted (\d+), tracebacks 0, hangs 0, crashes 0",
        done.stdout.splitlines()[-1],
    )
    assert summary, done.stdout
    refused, accepted = map(int, summary.groups())
    assert refused > 100 and accepted > 20, done.stdout


FOUND = (
    ("karpathy", 306),
    ("coco", 56),
    ("karpathy-coco", 807),
    ("csv", 61),
    ("csv", 262),
    ("jsonl", 66),
    ("parquet", 224),
    ("languages", 11),
    ("languages", 22),
    ("config", 178),
    ("result", 56),
)
"""Inputs that once failed: nests of three thousand brackets, columns with names as long, a Parquet header that is not
text, a file name of a kilobyte, names of columns that are not UTF-8."""


@pytest.mark.parametrize(("format", "seed"), FOUND)
def test_earlier_failures_end_well_now(format: str, seed: int, tmp_path: Path) -> None:
    sample_format = fuzz.formats()[format]
    file = sample_format.make(tmp_path)
    ending, message = fuzz.attempt(sample_format, file.read_bytes(), file, tmp_path, seed)
    assert fuzz.ENDINGS[ending] in ("refused", "accepted"), message


def test_the_fuzzer_sees_what_it_looks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def valid(folder: Path) -> bool:
        return (folder / "x").read_text("latin-1") == "valid"

    def spin(folder: Path) -> None:
        while True:
            pass

    def sample_file(folder: Path) -> Path:
        (folder / "x").write_text("valid")
        return folder / "x"

    def refuse(folder: Path) -> None:
        raise DataError("damaged", where=folder)

    ways = {"accepted": lambda folder: None, "refused": refuse, "traceback": lambda folder: 1 / 0}
    ways |= {"hang": spin, "crash": lambda folder: os._exit(3)}
    ways = {name: lambda folder, read=read: None if valid(folder) else read(folder) for name, read in ways.items()}
    monkeypatch.setattr(fuzz, "SECONDS", 1)
    monkeypatch.setattr(fuzz, "formats", lambda: {name: fuzz.Format(sample_file, read) for name, read in ways.items()})
    messages: list[str] = []
    assert fuzz.run(5, report_line=messages.append) == dict.fromkeys(ways, 1)
    assert any("ZeroDivisionError" in line for line in messages)
