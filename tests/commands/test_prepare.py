from __future__ import annotations

import csv
import errno
import io
import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ccaco_cli.core import manifest
from ccaco_cli.core.data import shards
from ccaco_cli.core.data.sources import SOURCES


def test_the_list_names_every_source(ccaco: Callable[..., Any]) -> None:
    for arguments in (("--list",), ()):
        done = ccaco("prepare", *arguments, "--format", "json")
        assert done.code == 0
        assert done.err == ""
        assert [row["name"] for row in json.loads(done.out)] == list(SOURCES)


def test_a_full_disk_is_named_and_the_same_command_goes_on(
    ccaco: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("prepare", "scenes", "--limit", 3, "--image-size", 32, "--workers", 0, "--out", tmp_path / "few")

    def full(number: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        done = ccaco(*command)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert done.err.startswith(f"ccaco: No space left on device: {tmp_path}")
    assert done.err.endswith("; expected free disk space; next: repeat the command, finished parts are kept\n")
    assert not (tmp_path / "few").exists() and not list(tmp_path.rglob("*.tmp"))
    assert ccaco(*command).code == 0


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
        (("flickr8k", "--source", "gone"), ["no such file or folder", "gone"]),
        (("scenes", "--image-size", "16"), ["too small"]),
        (("scenes", "--source", "tests"), ["generated and reads no files"]),
        (("scenes", "--max-rejects", "a few"), ["--max-rejects", "1%"]),
        (("scenes", "--max-rejects", "101%"), ["--max-rejects", "1%"]),
        (("table", "--column", "caption"), ["--column", "OURS=THEIRS"]),
        (("scenes", "--preview", "x.txt"), ["no such kind of picture", ".png"]),
    ],
)
def test_errors_are_one_line(
    ccaco: Callable[..., Any], tmp_path: Path, arguments: tuple[str, ...], words: list[str]
) -> None:
    done = ccaco("prepare", *arguments, "--out", tmp_path / "x")
    assert (done.code, done.out) == (2, "")
    assert done.err.count("\n") == 1
    assert done.err.startswith("ccaco: ")
    assert all(word in done.err for word in words)
    assert not list(tmp_path.iterdir())


def pictures(root: Path, n: int, *, bad: int = 0) -> Path:
    """A folder of one tar shard with n distinct small pictures, some of them broken, and a table beside it."""
    root.mkdir(parents=True)
    with tarfile.open(root / "train-0.tar", "w") as tar:
        for number in range(n):
            picture = io.BytesIO()
            Image.fromarray(np.random.default_rng(number).integers(0, 255, (24, 32, 3), np.uint8)).save(picture, "PNG")
            data = b"broken" if number < bad else picture.getvalue()
            for name, content in ((f"{number}.png", data), (f"{number}.txt", b"a  picture")):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return root


def test_the_last_table_tells_what_to_expect(ccaco: Callable[..., Any], tmp_path: Path) -> None:
    source = pictures(tmp_path / "s", 40, bad=3)
    arguments = ("prepare", "webdataset", "--source", source, "--workers", 0)
    done = ccaco(*arguments, "--out", tmp_path / "strict")
    assert (
        done.code == 2 and "3 of 40 samples rejected (not a picture 3)" in done.err and "--max-rejects 0.08" in done.err
    )
    done = ccaco(
        *arguments,
        "--out",
        tmp_path / "d",
        "--max-rejects",
        "8%",
        "--image-size",
        "12",
        "--preview",
        tmp_path / "look.png",
    )
    (row,) = csv.DictReader(io.StringIO(done.out))
    assert {
        "split": "train",
        "samples": "37",
        "captions": "37",
        "rejects": "3",
        "reasons": "not a picture 3",
    }.items() <= row.items()
    assert {
        "words_max": "2",
        "width_min": "16",
        "height_max": "12",
        "captions_per_group_mean": "1.0",
    }.items() <= row.items()
    assert row["protocol"].startswith("webdataset (")
    assert "3 samples were skipped (not a picture 3); they are listed in" in done.err
    with Image.open(tmp_path / "look.png") as sheet:
        assert sheet.size[0] > 1000
    done = ccaco(*arguments, "--out", tmp_path / "e", "--max-rejects", "0.08", "--format", "markdown")
    assert (
        "| captions per group | words | width | height | reasons | protocol |" in done.out and "| 32 | 24 |" in done.out
    )


def test_columns_and_templates_by_flags(ccaco: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "s" / "dog").mkdir(parents=True)
    for number in range(2):
        Image.new("RGB", (9, 9), (number, 0, 0)).save(tmp_path / "s" / "dog" / f"{number}.png")
    (tmp_path / "s" / "t.csv").write_text(
        "file;text;part;style\ndog/0.png;one;train;x\ndog/0.png;two;train;x\ndog/1.png;three;dev;y\n"
    )
    flags = (
        "--csv-img-key",
        "file",
        "--csv-caption-key",
        "text",
        "--csv-separator",
        ";",
        "--column",
        "split=part",
        "--column",
        "domain=style",
    )
    assert (
        ccaco(
            "prepare", "table", "--source", tmp_path / "s" / "t.csv", *flags, "--workers", 0, "--out", tmp_path / "t"
        ).code
        == 0
    )
    data = shards.open(tmp_path / "t")
    assert data.split("train").captions == ["one", "two"] and data.split("val").domains == ("x", "y")
    done = ccaco(
        "prepare",
        "imagefolder",
        "--source",
        tmp_path / "s",
        "--template",
        "my {}",
        "--workers",
        0,
        "--out",
        tmp_path / "f",
    )
    prepared = shards.open(tmp_path / "f")
    assert done.code == 0 and {text for name in prepared.splits for text in prepared.split(name).captions} == {"my dog"}


def test_leakage_is_reported(ccaco: Callable[..., Any], tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / "s" / split / "dog").mkdir(parents=True)
        Image.new("RGB", (9, 9)).save(tmp_path / "s" / split / "dog" / f"{split}.png")
    done = ccaco("prepare", "imagefolder", "--source", tmp_path / "s", "--workers", 0, "--out", tmp_path / "d")
    assert done.code == 0 and "leakage: 1 media lie in several splits" in done.err
    listed = list(csv.DictReader((tmp_path / "d" / "leakage.csv").read_text("utf-8").splitlines()))
    assert [(row["split"], row["id"]) for row in listed] == [
        ("test", "test/dog/test.png"),
        ("train", "train/dog/train.png"),
    ]


def test_kill_9_and_the_same_command_again(tmp_path: Path) -> None:
    source = pictures(tmp_path / "s", 3500, bad=5)

    def start(out: str) -> subprocess.Popen[bytes]:
        words = ("prepare", "webdataset", "--source", source, "--out", tmp_path / out, "--workers", "2")
        command = [sys.executable, "-m", "ccaco_cli", *map(str, words)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    killed = start("b")
    shard = tmp_path / ".b.partial" / "train-00000.arrow"
    while not shard.with_suffix(".json").exists() and killed.poll() is None:
        time.sleep(0.005)
    killed.kill()
    killed.communicate()
    assert killed.returncode == -9 and not (tmp_path / "b").exists()
    when = shard.stat().st_mtime_ns
    for out in ("a", "b"):
        running = start(out)
        assert running.communicate() and running.returncode == 0
    undisturbed, again = (manifest.open(tmp_path / out, kind="dataset", verify=manifest.FULL) for out in ("a", "b"))
    assert again.sha256 == undisturbed.sha256 and again.files == undisturbed.files
    assert (tmp_path / "b" / "train-00000.arrow").stat().st_mtime_ns == when  # not made again
    assert again.facts["splits"]["train"]["samples"] == 3495 and again.facts["rejects"] == {"not a picture": 5}


def test_next_steps_can_be_pasted_when_a_name_has_spaces(
    ccaco: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ("prepare", "scenes", "--limit", 5, "--image-size", 32, "--workers", 0, "--out", "my scenes")
    assert ccaco(*command).err == "next: ccaco train --dataset 'my scenes'\n"
    assert ccaco(*command).err.endswith("next: --out OTHER, or: rm -r 'my scenes'\n")
