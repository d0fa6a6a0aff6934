from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ccaco_cli.core.data import shards
from ccaco_cli.core.data.sources import SOURCES


def test_the_list_names_every_source(ccaco: Callable[..., Any]) -> None:
    for arguments in (("--list",), ()):
        done = ccaco("prepare", *arguments, "--format", "json")
        assert done.code == 0
        assert done.err == ""
        assert [row["name"] for row in json.loads(done.out)] == list(SOURCES)


def test_counts_on_stdout_and_the_next_command_on_stderr(ccaco: Callable[..., Any], tmp_path: Path) -> None:
    done = ccaco("prepare", "scenes", "--limit", 3, "--image-size", 32, "--workers", 0, "--out", tmp_path / "few")
    assert done.code == 0
    rows = list(csv.DictReader(io.StringIO(done.out)))
    assert [row["split"] for row in rows] == ["train", "val", "test"]
    data = shards.open(tmp_path / "few")
    assert [int(row["samples"]) for row in rows] == [len(data.split(name)) for name in data.splits]
    assert done.err == f"next: ccaco train --dataset {tmp_path / 'few'}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("scnes",), ["no such data set: scnes", "scenes"]),
        (("flickr8k",), ["not part of ccaco", "--source"]),
        (("flickr8k", "--source", "gone"), ["nothing there", "gone"]),
        (("scenes", "--image-size", "16"), ["too small"]),
    ],
)
def test_errors_are_one_line(ccaco: Callable[..., Any], tmp_path: Path, arguments: tuple[str, ...], words: list[str]) -> None:
    done = ccaco("prepare", *arguments, "--out", tmp_path / "x")
    assert (done.code, done.out) == (2, "")
    assert done.err.count("\n") == 1
    assert done.err.startswith("ccaco: ")
    assert all(word in done.err for word in words)
    assert not list(tmp_path.iterdir())
