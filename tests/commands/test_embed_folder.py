"""``ccaco embed --images FOLDER``: what the commands print, and real photos."""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ccaco_cli.core.retrieval.index import Index
from tests.core.library.test_update import picture
from tests.pretrained_models import open_clip_folder

REAL = Path(os.environ.get("CCACO_REAL_DATA", "/nowhere"))


def test_embed_search_update_and_remove(
    ccaco: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    open_clip_folder(tmp_path / "small")
    for number in range(5):
        picture(tmp_path / f"photos/p{number}.png", number)
    shutil.copyfile("photos/p1.png", "photos/p1 copy.png")
    (tmp_path / "photos/bad.jpg").write_bytes(b"x")
    embed = ("embed", "--model", "open_clip:small", "--images", "photos", "--index", "me.idx")
    done = ccaco(*embed, "--device", "cpu")
    assert (done.code, done.out) == (0, ""), done.err
    lines = done.err.splitlines()
    assert lines[0] == "me.idx: 6 image: 6 new"
    assert lines[1] == "1 file is no item (bad.jpg: not a picture): see me.idx/generation-1/image/rejects.csv"
    assert lines[2].startswith("1 group of near-duplicates: see ") or "near-duplicates are not listed" in lines[2]
    assert lines[3].startswith("image: flat, recall@10 1.000 of exact search, ")
    assert lines[-1] == 'next: ccaco retrieve "a few words" --index me.idx'
    assert sorted(p.name for p in tmp_path.iterdir()) == ["me.idx", "photos", "small"]
    hits = ccaco("retrieve", "a dog", "--index", "me.idx", "-k", 3, "--format", "csv")
    assert (hits.code, hits.out.count("\n")) == (0, 4), hits.err
    hits = ccaco("retrieve", "--image", "photos/p3.png", "--index", "me.idx", "-k", 1, "--format", "csv")
    assert [row["id"] for row in csv.DictReader(hits.out.splitlines())] == ["p3.png"], "a picture finds pictures"
    again = ccaco(*embed)
    assert again.err.splitlines()[0] == "me.idx: 6 image: nothing has changed"
    removed = ccaco("embed", "--index", "me.idx", "--remove", "photos/p0.png", "--remove", "p2.png")
    assert removed.err.splitlines()[0] == "me.idx: 4 image: 4 unchanged, 2 removed"
    assert ccaco(*embed).err.splitlines()[0] == "me.idx: 4 image: nothing has changed"
    picture(tmp_path / "photos/new.png", 50)
    done = ccaco("embed", "--images", "photos", "--index", "me.idx", "--device", "cpu")
    assert done.err.splitlines()[0] == "me.idx: 5 image: 1 new, 4 unchanged"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--images", "photos"], "no index is named"),
        (["--images", "photos", "--sounds", "photos", "--index", "a.idx"], "no audio files in this folder: --sounds"),
        (["--images", "photos", "--index", "a.idx"], "a new index needs a model"),
        (["--remove", "x.jpg", "--index", "a.idx"], "no index here: a.idx"),
        (["--images", "photos", "--index", "a.idx", "--model", "gone"], "no run here: gone"),
        (["--images", "nowhere", "--index", "a.idx", "--model", "open_clip:x"], "no such folder: --images"),
        (
            ["--images", "empty", "--index", "a.idx", "--model", "open_clip:x"],
            "no image files in this folder: --images",
        ),
        (
            ["--videos", "photos", "--index", "a.idx", "--model", "open_clip:x"],
            "no video files in this folder: --videos",
        ),
        (["--images", "photos", "--index", "a.idx", "--split", "test"], "no such option: --split"),
        (["--images", "photos", "--index", "a.idx", "--dataset", "flickr8k"], "no such option: --dataset"),
        (["--images", "photos", "--index", "a.idx", "--export", "onnx"], "no such option: --export"),
        (["--images", "photos", "--index", "a.idx", "--model", "open_clip:x", "--index-type", "tree"], "auto | flat"),
        (["--images", "photos", "--index", "a.idx", "--model", "open_clip:x", "--precision", "fp8"], "auto | fp32"),
        (["--remove", "x", "--rebuild", "--index", "a.idx"], "--rebuild forgets"),
    ],
)
def test_errors_are_one_line_and_leave_nothing(
    ccaco: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "photos/p.png", 1)
    (tmp_path / "empty").mkdir()
    done = ccaco("embed", *arguments)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1), done.err
    assert words in done.err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "photos"]


@pytest.mark.skipif(
    not (REAL / "flickr8k/Images").is_dir(), reason="CCACO_REAL_DATA does not name a folder with flickr8k"
)
def test_a_bare_folder_of_real_photos(
    ccaco: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Embed, search, add ten, remove five, search again."""
    monkeypatch.chdir(tmp_path)
    open_clip_folder(tmp_path / "small")
    files = sorted((REAL / "flickr8k/Images").iterdir())[:310]
    for number, file in enumerate(files[:300]):
        target = tmp_path / f"photos/album {number % 3}/{file.name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    embed = ("embed", "--model", "open_clip:small", "--images", "photos", "--index", "me.idx", "--device", "cpu")
    assert ccaco(*embed).err.startswith("me.idx: 300 image: 300 new\n")

    def answers() -> tuple[list[str], dict[str, bytes]]:
        hits = ccaco("retrieve", "two dogs", "--index", "me.idx", "-k", 400, "--format", "csv")
        opened = Index(tmp_path / "me.idx", "full").sides["image"]
        vectors = np.load(opened.folder / "vectors.npy")
        items = opened.items.drop_columns([]).to_pylist()
        rows = {item["id"]: vector.tobytes() + repr(item).encode() for item, vector in zip(items, vectors, strict=True)}
        return [row["id"] for row in csv.DictReader(hits.out.splitlines())], rows

    ranked, rows = answers()
    assert len(ranked) == 300
    for file in files[300:]:
        shutil.copyfile(file, tmp_path / "photos/album 0" / file.name)
    removed = set(ranked[:5])
    for name in removed:
        (tmp_path / "photos" / name).unlink()
    assert ccaco(*embed).err.startswith("me.idx: 305 image: 10 new, 295 unchanged, 5 removed\n")
    ranked_after, rows_after = answers()
    added = {f"album 0/{file.name}" for file in files[300:]}
    assert [name for name in ranked_after if name not in added] == ranked[5:], "the answers that stay keep their order"
    assert rows_after.keys() == rows.keys() - removed | added
    assert all(rows_after[name] == rows[name] for name in rows.keys() - removed), "untouched rows are equal to the byte"
    hits = ccaco("retrieve", "--image", files[305], "--index", "me.idx", "-k", 1, "--format", "csv")
    assert [row["id"] for row in csv.DictReader(hits.out.splitlines())] == [f"album 0/{files[305].name}"]
