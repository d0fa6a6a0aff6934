from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ccaco_cli.core import modalities
from ccaco_cli.core.data import checks, clips
from ccaco_cli.core.data.preparation import prepare
from ccaco_cli.core.data.shards import WriteOptions
from ccaco_cli.core.data.sources.media_files import (
    CLOSED,
    LINKED_TWICE,
    UNREADABLE,
    PassedOver,
    count_files,
    locate,
    media_below,
)
from ccaco_cli.core.data.sources.source import SourceOptions
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.manifest import Manifest
from ccaco_cli.core.modalities import MODALITIES
from ccaco_cli.core.workflows.prepare import notes

IMAGE = MODALITIES["image"]


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def listed(root: Path, *links_to: Path) -> dict[str, str]:
    return {f.path.relative_to(root).as_posix(): f.problem for f in media_below(root, IMAGE, links_to=links_to)}


def draw(path: Path, kind: str, colour: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 7), (colour, 0, 5)).save(path, kind)


def counted(data: Manifest) -> int:
    splits = data.facts["splits"].values()
    return sum(split["samples"] + split["rejects"] for split in splits)


def test_every_file_is_a_sample_a_reject_or_counted(tmp_path: Path) -> None:
    touch(tmp_path, "dog/a.jpg", "dog/a.JFIF", "dog/a.png", "dog/b.heic", "dog/c.CR2", "dog/notes.txt", "dog/x.TXT")
    touch(tmp_path, "dog/README", ".git/x.jpg", "dog/.a.jpg", "Thumbs.db", "__MACOSX/dog/a.jpg")
    assert listed(tmp_path) == {
        "dog/a.JFIF": "",
        "dog/a.jpg": "",
        "dog/a.png": "",  # differs from the others only in its suffix
        "dog/b.heic": UNREADABLE,
        "dog/c.CR2": UNREADABLE,
    }
    samples, passed_over = count_files(tmp_path, IMAGE)
    assert samples == 5 and passed_over == PassedOver({".txt": 2, "": 1}, hidden=4)  # type: ignore[arg-type]
    assert str(passed_over) == ".txt 2, no suffix 1" and str(PassedOver()) == "no files"
    assert PassedOver().facts() == {}


def test_links_are_followed_inside_the_folder_and_never_in_circles(tmp_path: Path) -> None:
    root = tmp_path / "root"
    touch(root, "all/dog/1.jpg", "all/cat/2.jpg")
    touch(tmp_path, "away/3.jpg")
    (root / "train").mkdir()
    (root / "train" / "dog").symlink_to(root / "all" / "dog")
    (root / "train" / "hound").symlink_to(root / "all" / "dog")
    (root / "all" / "up").symlink_to(root)
    (root / "all" / "self").symlink_to("self")
    (root / "away").symlink_to(tmp_path / "away")
    (root / "all" / "cat" / "4.jpg").symlink_to(root / "all" / "dog" / "1.jpg")
    expected = {
        "away": checks.OUTSIDE,
        "all/up": LINKED_TWICE,
        "all/cat/2.jpg": "",
        "all/cat/4.jpg": "",
        "all/dog/1.jpg": "",
        "train/hound": LINKED_TWICE,
        "train/dog/1.jpg": "",
    }
    assert listed(root) == expected
    del expected["away"]
    assert listed(root, tmp_path / "away") == expected | {"away/3.jpg": ""}


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="permissions do not bind this user")
def test_a_folder_that_cannot_be_listed_is_a_reject(tmp_path: Path) -> None:
    touch(tmp_path, "dog/1.jpg")
    (tmp_path / "dog").chmod(0)
    assert listed(tmp_path) == {"dog": CLOSED}
    (tmp_path / "dog").chmod(0o700)


def test_listed_files_lie_below_the_named_folder_or_beside_the_list(tmp_path: Path) -> None:
    touch(tmp_path, "media/a.jpg", "list/a.jpg", "list/b.jpg")
    folder, media = tmp_path / "list", tmp_path / "media"
    assert locate("a.jpg", folder, None) == folder / "a.jpg"
    assert locate("a.jpg", folder, media) == media / "a.jpg"
    assert locate("b.jpg", folder, media) == folder / "b.jpg"
    assert locate("gone.jpg", folder, media) == media / "gone.jpg"
    assert locate("/x/a.jpg", folder, media) == Path("/x/a.jpg")
    assert locate("nul\0.jpg", folder, media) == media / "nul\0.jpg"


def test_the_suffixes_are_those_of_the_decoders() -> None:
    import av

    Image.init()
    readable = {suffix for suffix, kind in Image.registered_extensions().items() if kind in checks.FORMATS}
    assert readable <= set(IMAGE.suffixes), "what Pillow reads is read"
    assert set(IMAGE.suffixes) - readable == {".mpo"}, "a JPEG with several pictures"
    assert not set(IMAGE.suffixes) & set(IMAGE.unreadable_suffixes)
    of_clips = {*MODALITIES["audio"].suffixes, *MODALITIES["video"].suffixes}
    pictures_and_texts = {".avif", ".heic", ".heif", ".mks", ".ism", ".isma", ".ismv", ".psp"}
    for name in clips.FORMATS.split(","):
        if name in av.formats_available:
            suffixes = {f".{suffix}" for suffix in av.ContainerFormat(name, "r").extensions}
            assert suffixes - pictures_and_texts <= of_clips, name
    assert modalities.blank_separated(" .a\n .b ") == (".a", ".b")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "PPM", "BMP", "GIF", "AVIF", "MPO"])
def test_pictures_of_every_suffix_are_read(tmp_path: Path, kind: str) -> None:
    suffixes = {
        "JPEG": (".jfif", ".jpe", ".JPEG"),
        "PNG": (".apng",),
        "TIFF": (".tif", ".tiff"),
        "PPM": (".pnm", ".ppm"),
        "BMP": (".bmp",),
        "GIF": (".gif",),
        "AVIF": (".avif", ".avifs"),
        "MPO": (".mpo",),
    }[kind]
    for number, suffix in enumerate(suffixes):
        draw(tmp_path / "s" / "train" / "dog" / f"{number}{suffix}", kind, 40 * number)
    data = prepare("imagefolder", source_path=tmp_path / "s", out=tmp_path / "d", write=WriteOptions(workers=0))
    assert data.facts["splits"]["train"]["samples"] == len(suffixes) and data.facts["source"].keys() == {"template"}


def test_samples_and_rejects_add_up_and_the_notes_count_the_others(tmp_path: Path) -> None:
    for number in range(3):
        draw(tmp_path / "s" / "train" / "dog" / f"{number}.jpg", "JPEG", number)
    touch(tmp_path / "s", "train/dog/x.heic", "train/dog/y.txt", "train/dog/.z.jpg")
    data = prepare(
        "imagefolder", source_path=tmp_path / "s", out=tmp_path / "d", write=WriteOptions(workers=0, max_rejects=0.5)
    )
    assert counted(data) == 4 and data.facts["rejects"] == {UNREADABLE: 1}
    assert "train/dog/x.heic" in (tmp_path / "d" / "rejects.csv").read_text()
    assert notes(data)[:2] == [
        "files that are no samples were not read: 1 (.txt 1)",
        "hidden files and folders were not read: 1",
    ]


@pytest.mark.parametrize("layout", ["table csv", "table jsonl", "flickr8k", "coco"])
def test_lists_that_are_not_utf8_are_named_in_the_manifest_and_the_notes(tmp_path: Path, layout: str) -> None:
    folder = tmp_path / "s"
    (folder / "train2017").mkdir(parents=True)
    draw(folder / "train2017" / "0.jpg", "JPEG", 0)
    draw(folder / "0.jpg", "JPEG", 0)
    image = {"filename": "0.jpg", "filepath": "train2017", "split": "train", "sentences": [{"raw": "caf\xe9"}]}
    source, file, content = {
        "table csv": ("table", "t.csv", "filepath,title\n0.jpg,caf\xe9\n"),
        "table jsonl": ("table", "t.jsonl", '{"filepath": "0.jpg", "title": "caf\xe9"}\n'),
        "flickr8k": ("flickr8k", "dataset_flickr8k.json", json.dumps({"images": [image]}, ensure_ascii=False)),
        "coco": ("coco", "dataset_coco.json", json.dumps({"images": [image]}, ensure_ascii=False)),
    }[layout]
    path = folder / file if source == "table" else folder
    for number, encoding in enumerate(("utf-8", "cp1252")):
        (folder / file).write_text(content, encoding)
        data = prepare(source, source_path=path, out=tmp_path / f"d{number}", write=WriteOptions(workers=0))
        assumed = {} if encoding == "utf-8" else {file: "Windows-1252"}
        assert data.facts["source"].get("assumed_encodings", {}) == assumed
        named = [
            line for line in notes(data) if f"{file} is not UTF-8: its other bytes were read as Windows-1252" in line
        ]
        assert len(named) == len(assumed)


def test_quotes_read_as_characters_are_named_in_the_notes(tmp_path: Path) -> None:
    draw(tmp_path / "0.jpg", "JPEG", 0)
    (tmp_path / "t.tsv").write_text('filepath\ttitle\n0.jpg\t"Hello there\n')
    data = prepare("table", source_path=tmp_path / "t.tsv", out=tmp_path / "d", write=WriteOptions(workers=0))
    assert counted(data) == 1
    assert "the quotes of the table do not add up: they were read as ordinary characters, one row a line" in notes(data)


@pytest.mark.parametrize(("source", "suffix"), [("imagefolder", ".foo"), ("audiofolder", ".foo"), ("imagefolder", "")])
def test_a_folder_of_unknown_files_names_them(tmp_path: Path, source: str, suffix: str) -> None:
    touch(tmp_path / "s", f"dog/1{suffix}", f"dog/2{suffix}")
    with pytest.raises(DataError, match=rf"it holds {suffix or 'no suffix'} 2\)"):
        prepare(source, source_path=tmp_path / "s", out=tmp_path / "d")


def layouts(root: Path, photos: Path) -> dict[str, Path]:
    """Lists in several layouts, whose two photos lie in another folder."""
    for number in range(2):
        for place in ("", "train2017"):
            draw(photos / place / f"{number}.jpg", "JPEG", 99 * number)
    root.mkdir()
    (root / "t.csv").write_text("filepath,title\n0.jpg,zero\n1.jpg,one\n")
    (root / "absolute.csv").write_text(f"filepath,title\n{photos}/0.jpg,zero\n{photos}/1.jpg,one\n")
    (root / "linked.csv").write_text("filepath,title\nlink/0.jpg,zero\nlink/1.jpg,one\n")
    (root / "link").symlink_to(photos)
    (root / "blip.json").write_text('[{"image": "0.jpg", "caption": "zero"}, {"image": "1.jpg", "caption": ["one"]}]')
    images = ", ".join(
        f'{{"filename": "{n}.jpg", "split": "train", "sentences": [{{"raw": "{n}"}}]}}' for n in range(2)
    )
    (root / "dataset_flickr8k.json").write_text(f'{{"images": [{images}]}}')
    (root / "annotations").mkdir()
    (root / "annotations" / "captions_train2017.json").write_text(
        '{"images": [{"id": 0, "file_name": "0.jpg"}, {"id": 1, "file_name": "1.jpg"}], "annotations": '
        '[{"image_id": 0, "caption": "zero"}, {"image_id": 1, "caption": "one"}]}'
    )
    return {
        "table:t.csv": root / "t.csv",
        "table:absolute.csv": root / "absolute.csv",
        "table:linked.csv": root / "linked.csv",
        "table:blip.json": root / "blip.json",
        "flickr8k:": root / "dataset_flickr8k.json",
        "coco:": root,
    }


@pytest.mark.parametrize(
    "name", ["table:t.csv", "table:absolute.csv", "table:linked.csv", "table:blip.json", "flickr8k:", "coco:"]
)
def test_files_elsewhere_are_read_from_the_folder_that_the_next_step_names(tmp_path: Path, name: str) -> None:
    photos = tmp_path / "my photos"
    source = layouts(tmp_path / "s", photos)[name]
    arguments: dict[str, Any] = {"source_path": source, "out": tmp_path / "d", "write": WriteOptions(workers=0)}
    with pytest.raises(DataError, match="2 of 2 samples rejected") as error:
        prepare(name.partition(":")[0], **arguments)
    if name in ("table:absolute.csv", "table:linked.csv"):
        assert str(error.value.next).startswith(f"--image-root '{photos.resolve()}', or ")
    else:
        assert str(error.value.next).startswith("--image-root FOLDER_OF_THE_FILES, or ")
    data = prepare(name.partition(":")[0], **arguments, options=SourceOptions(media_root=photos))
    assert counted(data) == 2 and not data.facts["rejects"]
    assert data.config["media_root"] == str(photos.resolve())


def test_absolute_paths_have_the_ids_of_relative_ones(tmp_path: Path) -> None:
    layouts(tmp_path / "s", tmp_path / "photos")
    prepared = [
        prepare(
            "table",
            source_path=tmp_path / "s" / f"{name}.csv",
            out=tmp_path / name,
            options=SourceOptions(media_root=tmp_path / "photos"),
            write=WriteOptions(workers=0),
        )
        for name in ("t", "absolute")
    ]
    assert prepared[0].files == prepared[1].files


def test_paths_that_leave_both_folders_stay_refused(tmp_path: Path) -> None:
    draw(tmp_path / "secret.jpg", "JPEG")
    draw(tmp_path / "photos" / "a.jpg", "JPEG", 9)
    (tmp_path / "photos" / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "t.csv").write_text(
        f"filepath,title\na.jpg,a\n../secret.jpg,b\nlink.jpg,c\n{tmp_path}/secret.jpg,d\n/etc/hostname,e\n"
    )
    data = prepare(
        "table",
        source_path=tmp_path / "s" / "t.csv",
        out=tmp_path / "d",
        options=SourceOptions(media_root=tmp_path / "photos"),
        write=WriteOptions(workers=0, max_rejects=0.9),
    )
    assert data.facts["rejects"] == {checks.OUTSIDE: 4} and counted(data) == 5
    with pytest.raises(DataError, match="no such folder: --image-root"):
        prepare(
            "table",
            source_path=tmp_path / "s/t.csv",
            out=tmp_path / "e",
            options=SourceOptions(media_root=Path("gone")),
        )


def test_linked_folders_outside_are_read_when_they_are_named(tmp_path: Path) -> None:
    draw(tmp_path / "away" / "1.jpg", "JPEG")
    (tmp_path / "s" / "train").mkdir(parents=True)
    (tmp_path / "s" / "train" / "dog").symlink_to(tmp_path / "away")
    arguments: dict[str, Any] = {"source_path": tmp_path / "s", "write": WriteOptions(workers=0)}
    with pytest.raises(DataError) as error:
        prepare("imagefolder", out=tmp_path / "d", **arguments)
    assert error.value.next == f"--image-root {tmp_path.resolve()}, or correct them"
    data = prepare("imagefolder", out=tmp_path / "d", options=SourceOptions(media_root=tmp_path / "away"), **arguments)
    assert data.facts["splits"]["train"]["samples"] == 1
