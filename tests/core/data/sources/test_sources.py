from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ccaco_cli.core.data.sources import SOURCES


def test_every_entry_is_a_source_of_that_name() -> None:
    assert {"scenes", "scenes-styles", "coco", "flickr8k", "flickr30k", "emoji-styles", "imagefolder", "table"} <= set(
        SOURCES
    )
    assert {"webdataset", "hub", "sugarcrepe"} <= set(SOURCES)
    for name, source in SOURCES.items():
        assert source.name == name and source.expects
        assert len(source.modalities) == (0 if name == "media" else 2), "media takes what the folder holds"
    embedded = {name for name, source in SOURCES.items() if source.embedded}
    assert embedded == {"scenes", "scenes-styles", "bounces", "shapes"}
    with pytest.raises(KeyError):
        SOURCES["flickr"]


def test_naming_sources_imports_none_of_them() -> None:
    code = (
        "import sys; from ccaco_cli.core.data.sources import SOURCES; print(len(list(SOURCES)), 'coco' "
        "in SOURCES, sorted(sys.modules))"
    )
    report = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": ":".join(sys.path)}
    ).stdout
    assert report.startswith(f"{len(SOURCES)} True")
    assert not any(
        f"'{name}'" in report
        for name in ("numpy", "PIL", "pyarrow", "torch", "datasets", "ccaco_cli.core.data.sources.coco")
    )


PLACES = ("no source", "gone", "empty folder", "photos", "notes", "empty file", "photo.jpg", "broken.json")


def place(root: Path, kind: str) -> Path | None:
    """What a user may name as ``--source`` by mistake."""
    path = root / kind
    if kind in ("empty folder", "photos", "notes"):
        path.mkdir()
    if kind == "photos":
        Image.new("RGB", (9, 9)).save(path / "a.jpg")
    elif kind == "notes":
        (path / "a.txt").write_text("a")
    elif kind == "photo.jpg":
        Image.new("RGB", (9, 9)).save(path)
    elif kind in ("empty file", "broken.json"):
        path.write_text("" if kind == "empty file" else "{")
    return None if kind == "no source" else path


@pytest.mark.parametrize("kind", PLACES)
@pytest.mark.parametrize("name", [name for name in SOURCES if not SOURCES[name].embedded])
def test_the_next_step_of_an_error_is_another_command_than_the_one_typed(
    ccaco: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    source = place(tmp_path, kind)
    typed = ["prepare", name, *(["--source", str(source)] if source else [])]
    if (name, kind) == ("media", "photos"):
        return
    done = ccaco(*typed, "--workers", 0, "--out", tmp_path / "out")
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1), done.err
    step = done.err.rstrip("\n").partition("; next: ")[2]
    if not step.startswith("ccaco "):
        return  # an edit, or an option to add
    words = shlex.split(step)[1:]
    same = ["prepare", name, "--source"]
    assert words != typed
    assert source is None or words[:3] != same or "--modality" in words, "the same command, with a path to fill in"
    if words[:2] == ["prepare", "--list"] or {"PATH", "FOLDER", "FILE.csv"} & {*words}:
        return
    again = ccaco(*words, "--workers", 0, "--out", tmp_path / "out")
    assert again.code == 0, f"{step} does not work: {again.err}"


def test_a_flat_folder_of_photos_leads_to_prepare_media(ccaco: Callable[..., Any], tmp_path: Path) -> None:
    source = place(tmp_path, "photos")
    for name in ("imagefolder", "audiofolder", "table", "webdataset"):
        done = ccaco("prepare", name, "--source", source, "--out", tmp_path / "out")
        assert done.err.endswith(f"next: ccaco prepare media --source {source}\n"), done.err


def test_a_path_with_a_typing_error_names_the_one_beside_it(ccaco: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "my photos").mkdir()
    done = ccaco("prepare", "media", "--source", tmp_path / "my phtos", "--out", tmp_path / "out")
    assert done.err.endswith(f"next: ccaco prepare media --source '{tmp_path / 'my photos'}'\n")
