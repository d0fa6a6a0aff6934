"""Every command with odd names of files and with streams that are closed: it works, or it ends in one line."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

REPOSITORY = Path(__file__).parents[2]
SMALL = ["--set", "model.width=16", "--set", "model.image.size=32", "--set", "optim.steps=1", "--device", "cpu"]
LATIN = os.fsdecode(b"caf\xe9")
"""A name whose bytes are not UTF-8."""


def next_step(done: Any) -> list[str]:
    """The arguments of the command that the last line recommends, as a shell reads them."""
    assert done.code == 0, done.err
    line = done.err.splitlines()[-1]
    assert line.startswith("next: ccaco ")
    return shlex.split(line.removeprefix("next: ccaco "))


@pytest.mark.parametrize("name", ["two  spaces", "it's", "-dash"])
def test_next_steps_work_with_odd_names(
    ccaco: Callable[..., Any], data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(data_root / "scenes", Path("data") / name)
    arguments = [*SMALL, f"--dataset={name}", "--logs=.", f"--name={name}"]
    embed = next_step(ccaco("train", *arguments))
    assert embed[0] == "embed"
    retrieve = next_step(ccaco(*embed, "--device", "cpu"))
    assert retrieve[0] == "retrieve"
    assert ccaco(*retrieve, "-k", 1).code == 0
    again = ccaco("train", *arguments)
    assert again.code == 2
    step = again.err.partition("next: ccaco ")[2].partition(", or add")[0]
    assert ccaco(*shlex.split(step)).code == 0
    occupied = ccaco("embed", f"--run={Path.cwd() / name}", f"--dataset={name}", "--split=val", f"--out=data/{name}")
    assert occupied.code == 2
    assert shlex.split(occupied.err.rpartition("rm -r ")[2]) == [f"data/{name}"]


def test_names_that_are_not_utf8_work_or_are_refused_in_one_line(
    ccaco: Callable[..., Any], data_root: Path, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(f"{LATIN}.toml").write_text("seed = 3\n")
    train = ["train", *SMALL, "--data", data_root]
    assert ccaco(*train, "--config", f"{LATIN}.toml", "--name", "config").code == 0
    Image.new("RGB", (40, 40)).save(f"{LATIN}.png", format="png")
    assert ccaco("retrieve", "--image", f"{LATIN}.png", "--index", index, "-k", 1).code == 0
    shutil.copytree(data_root / "scenes", LATIN)
    shutil.copytree(index, f"{LATIN}.idx")
    for arguments in (
        [*train, "--dataset", LATIN],
        [*train, "--name", LATIN],
        ["retrieve", "a cat", "--index", f"{LATIN}.idx"],
        ["report", LATIN],
        ["prepare", "imagefolder", "--source", LATIN],
        ["embed", "--run", "runs/config", "--data", data_root, "--out", LATIN],
    ):
        done = ccaco(*arguments)
        assert (done.code, done.out, done.err.count("\n")) == (2, "", 1), arguments
        assert "not UTF-8" in done.err and "Traceback" not in done.err


def test_a_source_with_names_that_are_not_utf8_loses_no_picture(ccaco: Callable[..., Any], tmp_path: Path) -> None:
    for label in (LATIN, "cat", "dog"):
        (tmp_path / "source" / label).mkdir(parents=True)
        for number in range(8):
            Image.new("RGB", (40, 40), (number, 0, 0)).save(tmp_path / "source" / label / f"{LATIN}{number}.png")
    done = ccaco("prepare", "imagefolder", "--source", tmp_path / "source", "--out", tmp_path / "out", "--workers", 0)
    assert "Traceback" not in done.err
    if done.code:
        assert (done.code, done.err.count("\n")) == (2, 1)


@pytest.mark.parametrize("streams", [">&- 2>&-", "| true; exit ${PIPESTATUS[0]}"], ids=["closed", "reader ended"])
@pytest.mark.parametrize("command", ["prepare", "train", "ablate", "embed", "retrieve", "report"])
def test_streams_that_are_closed_change_no_exit_code(
    run: Path, index: Path, data_root: Path, tmp_path: Path, command: str, streams: str
) -> None:
    arguments: dict[str, list[object]] = {
        "prepare": ["scenes", "--limit", 20, "--out", tmp_path / "scenes", "--workers", 0],
        "train": [*SMALL, "--data", data_root, "--logs", tmp_path],
        "ablate": [*SMALL, "--data", data_root, "--logs", tmp_path, "--arms", "clip", "--seeds", 1],
        "embed": ["--run", run, "--data", data_root, "--out", tmp_path / "out", "--device", "cpu"],
        "retrieve": ["a cat", "a dog", "--index", index],
        "report": [run],
    }
    line = shlex.join([sys.executable, "-m", "ccaco_cli", command, *map(str, arguments[command])])
    done = subprocess.run(
        ["bash", "-c", f"{line} {streams}"], capture_output=True, text=True, cwd=REPOSITORY, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
