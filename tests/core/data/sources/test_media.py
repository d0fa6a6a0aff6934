from __future__ import annotations

import io
import os
import shutil
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ccaco_cli.core.data import shards
from ccaco_cli.core.data.preparation import prepare
from ccaco_cli.core.data.shards import WriteOptions
from ccaco_cli.core.data.sources.media import SOURCE, count_media
from ccaco_cli.core.data.sources.source import SourceOptions
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.manifest import Manifest
from ccaco_cli.core.modalities import MODALITIES
from ccaco_cli.core.workflows.prepare import notes, summary


def draw(root: Path, *names: str) -> None:
    """Pictures of different colours, in the format of their suffix."""
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        out = io.BytesIO()
        image = Image.new("RGB", (12, 9), (number, 99, 0))
        image.putpixel((number % 12, 0), (255, 255, 255))
        image.save(
            out, {".JPG": "JPEG", ".jpg": "JPEG", ".webp": "WEBP", ".tiff": "TIFF"}.get(Path(name).suffix, "PNG")
        )
        (root / name).write_bytes(out.getvalue())


def sound(path: Path, seconds: float = 0.2) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(b"\x00\x40" * round(8000 * seconds))


def prepare_media(source: Path, out: Path, **options: Any) -> Manifest:
    write = WriteOptions(workers=0, max_rejects=options.pop("max_rejects", 0.01))
    return prepare("media", source_path=source, out=out, options=SourceOptions(**options), write=write)


def ids(source: Path, **options: Any) -> list[str]:
    return [record.id for record in SOURCE.read(source, SourceOptions(**options)).records]


def test_photos_at_any_depth_are_one_split_with_the_facts_of_their_files(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    draw(root, "a.jpg", "2021/B.JPG", "2021/beach/c.webp", "2021/beach/deep/er/d.tiff", "train/x/e.png", "no suffix")
    draw(root, ".hidden/f.jpg", "@eaDir/g.jpg", "System Volume Information/h.jpg", "2021/.i.jpg", "$RECYCLE.BIN/j.jpg")
    (root / "notes.txt").write_text("x")
    os.utime(root / "a.jpg", (1_625_394_790, 1_625_394_790))
    data = prepare_media(root, tmp_path / "d")
    assert data.facts["modalities"] == ["image"]
    assert data.facts["splits"] == {"test": {"samples": 5, "groups": 5, "captions": 0, "rejects": 0}}
    split = shards.open_any(tmp_path / "d").split("all")
    assert split.ids == ["a.jpg", "2021/B.JPG", "2021/beach/c.webp", "2021/beach/deep/er/d.tiff", "train/x/e.png"]
    meta = split.meta(0)
    assert meta == {
        "path": str(root / "a.jpg"),
        "folder": "/",
        "size": (root / "a.jpg").stat().st_size,
        "modified": "2021-07-04T10:33:10",
        "year": 2021,
        "width": 12,
        "height": 9,
        "sha256": meta["sha256"],
    }
    assert len(meta["sha256"]) == 64
    assert split.meta(3)["folder"] == "/2021/beach/deep/er/"
    lines = notes(data)
    assert any(line.startswith("files that are no samples were not read: 2 (") for line in lines)
    assert "hidden files and folders were not read: 5" in lines
    (row,) = summary(data)
    assert row.split == "test"


def test_links_are_followed_once_and_never_in_circles(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    draw(root, "a/1.jpg", "b/2.jpg", ".store/3.jpg", ".store/4.jpg")
    draw(tmp_path / "away", "5.jpg")
    (root / "b" / "again.jpg").symlink_to(root / "a" / "1.jpg")
    (root / "c").symlink_to(root / "a")
    (root / "a" / "up").symlink_to(root)
    (root / "a" / "self").symlink_to("self")
    (root / "annex.jpg").symlink_to(root / ".store" / "3.jpg")
    (root / "annex2.jpg").symlink_to(root / ".store" / "3.jpg")
    (root / "z").symlink_to(root / ".store")
    (root / "away").symlink_to(tmp_path / "away")
    assert ids(root) == ["annex.jpg", "away", "a/1.jpg", "b/2.jpg", "z/3.jpg", "z/4.jpg"]
    assert ids(root, media_root=(tmp_path / "away").resolve())[-3:] == ["b/2.jpg", "z/3.jpg", "z/4.jpg"]
    assert "away/5.jpg" in ids(root, media_root=(tmp_path / "away").resolve())
    counts, passed_over = count_media(root, "image")
    assert counts == {"image": 5} and passed_over.links == 4
    (root / "away").unlink()
    data = prepare_media(root, tmp_path / "d")
    assert data.facts["rejects"] == {} and "links to what is read under its own name were not followed: 4" in notes(
        data
    )


@pytest.mark.parametrize(
    ("suffix", "modality"),
    [(".jpg", "image"), (".avif", "image"), (".wav", "audio"), (".opus", "audio"), (".mkv", "video")],
)
def test_the_modality_is_what_the_folder_holds(tmp_path: Path, suffix: str, modality: str) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / f"a{suffix}").touch()
    (tmp_path / "notes.txt").touch()
    read = SOURCE.read(tmp_path, SourceOptions())
    assert read.modalities == (modality,) and [dict(r.media) for r in read.records] == [
        {modality: tmp_path / "x" / f"a{suffix}"}
    ]


def test_every_suffix_belongs_to_one_modality() -> None:
    suffixes = [s for m in MODALITIES.values() for s in (*m.suffixes, *m.unreadable_suffixes)]
    assert len(suffixes) == len(set(suffixes))


def test_several_modalities_are_named_with_the_option_that_chooses(ccaco: Callable[..., Any], tmp_path: Path) -> None:
    root = tmp_path / "my media"
    draw(root, "1.png", "2.png")
    sound(root / "s" / "a.wav")
    command = ("prepare", "media", "--source", root, "--workers", 0, "--out", tmp_path / "d")
    done = ccaco(*command)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert "files of several modalities (image 2, audio 1)" in done.err
    assert done.err.endswith(f"next: ccaco prepare media --source '{root}' --modality image\n")
    done = ccaco(*command, "--modality", "audio", "--preview", tmp_path / "p.png")
    assert done.code == 0 and (tmp_path / "p.png").exists(), done.err
    data = shards.open_any(tmp_path / "d")
    assert data.modalities == ("audio",) and data.split("test").ids == ["s/a.wav"]
    meta = data.split("test").meta(0)
    assert meta["duration"] == 0.2 and meta["folder"] == "/s/" and meta["audio"]["rate"] == 8000
    assert done.err.endswith(f"next: ccaco embed --model SPEC --dataset {tmp_path / 'd'} --index d.idx\n")
    assert "no samples of test" not in done.err and "no samples of val" not in done.err


@pytest.mark.parametrize(
    ("options", "names", "words"),
    [
        (
            {},
            ("notes.txt", "x/y.pdf"),
            r"no images, sounds or videos in this folder \(it holds .pdf 1, .txt 1|.txt 1, .pdf 1\)",
        ),
        ({}, (), r"no images, sounds or videos in this folder \(it holds no files\)"),
        (
            {"modality": "video"},
            ("a.jpg",),
            r"no video files in this folder \(it holds image 1\).*next: ccaco prepare media",
        ),
        ({"modality": "imgae"}, ("a.jpg",), r"no such modality of files.*image, audio, video.*did you mean image"),
        ({"modality": "text"}, ("a.jpg",), "no such modality of files"),
    ],
)
def test_refusals(tmp_path: Path, options: Any, names: tuple[str, ...], words: str) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=words):
        SOURCE.read(tmp_path, SourceOptions(**options))


def test_undecodable_files_are_rejects(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    draw(root, "1.jpg", "2.jpg")
    (root / "broken.jpg").write_bytes((root / "1.jpg").read_bytes()[:-200])
    (root / "text.png").write_text("x")
    (root / "phone.heic").write_bytes(b"x")
    (root / "gone.jpg").symlink_to("nowhere")
    (root / os.fsdecode(b"caf\xe9.jpg")).write_bytes((root / "1.jpg").read_bytes())
    with pytest.raises(DataError, match=r"5 of 7 samples rejected.*--max-rejects 0.72"):
        prepare_media(root, tmp_path / "d")
    data = prepare_media(root, tmp_path / "d", max_rejects=0.72)
    assert data.facts["rejects"] == {
        "broken picture": 1,
        "missing file": 1,
        "name is not UTF-8": 1,
        "no decoder for this kind of file": 1,
        "not a picture": 1,
    }
    assert shards.open_any(tmp_path / "d").split("test").ids == ["1.jpg", "2.jpg"]


def test_no_shares_of_a_split_that_is_not_there(ccaco: Callable[..., Any], tmp_path: Path) -> None:
    draw(tmp_path / "s", "1.jpg")
    done = ccaco("prepare", "media", "--source", tmp_path / "s", "--val", "10%", "--out", tmp_path / "d")
    assert (done.code, done.err.count("\n")) == (2, 1) and "no split 'train' to take val from" in done.err


@pytest.mark.skipif("CCACO_REAL_DATA" not in os.environ, reason="CCACO_REAL_DATA is not set: no real photos to read")
def test_real_photos_as_a_bare_folder(tmp_path: Path) -> None:
    photos = sorted((Path(os.environ["CCACO_REAL_DATA"]) / "flickr8k" / "Images").glob("*.jpg"))[:200]
    (tmp_path / "s" / "b").mkdir(parents=True)
    for number, photo in enumerate(photos):
        shutil.copy2(photo, tmp_path / "s" / ("b" if number % 2 else "") / photo.name)
    data = prepare_media(tmp_path / "s", tmp_path / "d")
    assert data.facts["splits"]["test"]["samples"] == 200 and not data.facts["rejects"]
    split = shards.open_any(tmp_path / "d").split("all")
    for row, meta in enumerate(split.metas(range(len(split)))):
        assert Path(meta["path"]).read_bytes() == split.media("image", [row])[0]
        with Image.open(meta["path"]) as photo:
            assert photo.size == (meta["width"], meta["height"])
