from __future__ import annotations

import io
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ccaco_cli.core.data import shards
from ccaco_cli.core.data.preparation import prepare
from ccaco_cli.core.data.shards import WriteOptions
from ccaco_cli.core.data.sources.source import SourceOptions
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.experiments.datasets import locate, needs_prepare

REAL = pytest.mark.skipif(
    "CCACO_REAL_DATA" not in os.environ, reason="CCACO_REAL_DATA is not set: no real photos to read"
)


def noise(mode: str = "RGB", size: tuple[int, int] = (32, 24)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)).convert(mode)


def encoded(image: Image.Image, kind: str, **more: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **more)
    return out.getvalue()


def test_a_folder_of_every_kind_of_bad_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    exif = Image.Exif()
    exif[0x0112] = 8
    jpeg = encoded(noise(), "JPEG")
    good = {
        "plain.jpg": jpeg,
        "cmyk.jpg": encoded(noise("CMYK"), "JPEG"),
        "grey.jpg": encoded(noise("L"), "JPEG"),
        "turned.jpg": encoded(noise(), "JPEG", exif=exif),
        "palette.png": encoded(noise("P"), "PNG"),
        "sixteen.png": encoded(Image.fromarray(np.full((24, 32), 999, np.uint16)), "PNG"),
        "alpha.png": encoded(noise("RGBA"), "PNG"),
        "animated.gif": encoded(noise("P"), "GIF", save_all=True, append_images=[noise("P", (32, 24))]),
        "spaces in name.webp": encoded(noise(), "WEBP"),
    }
    bad = {
        "truncated.jpg": (jpeg[: len(jpeg) // 2], "broken picture"),
        "zero.jpg": (b"", "empty file"),
        "text.jpg": (b"<html>404</html>", "not a picture"),
        "bomb.png": (encoded(Image.new("1", (200, 200)), "PNG"), "too many pixels"),
    }
    root = tmp_path / "source"
    root.mkdir()
    (tmp_path / "outside.jpg").write_bytes(jpeg)
    for name, data in good.items() | {(name, data) for name, (data, _) in bad.items()}:
        (root / name).write_bytes(data)
    (root / "link.jpg").symlink_to(tmp_path / "outside.jpg")
    lines = [f"{name}\t  a  {name} " for name in [*good, *bad]]
    lines += [
        "gone.jpg\ta",
        "../outside.jpg\tb",
        f"{tmp_path / 'outside.jpg'}\tc",
        "link.jpg\td",
        "plain.jpg\t   ",
        "nocaption.jpg\t ",
    ]
    (root / "t.csv").write_text("\n".join(["filepath\ttitle", *lines]))

    prepared = prepare(
        "table", source_path=root / "t.csv", out=tmp_path / "d", write=WriteOptions(workers=0, max_rejects=0.9)
    )
    splits = prepared.facts["splits"].values()
    reasons = Counter(reason for _, reason in bad.values()) + Counter(
        {"missing file": 1, "outside the source folder": 3, "no caption": 1}
    )
    assert prepared.facts["rejects"] == dict(reasons)
    assert sum(s["samples"] for s in splits) == len(good) and sum(s["rejects"] for s in splits) == sum(reasons.values())
    assert prepared.facts["captions"]["dropped"] == 1 and prepared.facts["captions"]["cleaned"] == len(good)
    widths = [part["width"] for part in prepared.facts["inspection"].values() if "width" in part]
    assert min(w["min"] for w in widths) == 24 and max(w["max"] for w in widths) == 32
    opened = shards.open(tmp_path / "d")
    parts = [opened.split(name) for name in opened.splits]
    assert {
        id: media for part in parts for id, media in zip(part.ids, part.media("image", range(len(part))), strict=True)
    } == good
    assert sorted(text for part in parts for text in part.captions) == sorted(f"a {name}" for name in good)
    listed = (tmp_path / "d" / "rejects.csv").read_text()
    assert len(listed.splitlines()) == 1 + sum(reasons.values()) and "../outside.jpg" in listed
    with pytest.raises(DataError, match="9 of 18 samples rejected"):
        prepare("table", source_path=root / "t.csv", out=tmp_path / "e", write=WriteOptions(workers=0))


def test_limit_and_size_are_part_of_what_a_data_set_is(tmp_path: Path) -> None:
    for i in range(30):
        path = tmp_path / "s" / ("train" if i % 2 else "test") / "dog" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(noise(size=(16, 12)), "PNG"))
    data = prepare(
        "imagefolder",
        source_path=tmp_path / "s",
        out=tmp_path / "d",
        options=SourceOptions(limit=4),
        write=WriteOptions(image_size=6, workers=0),
    )
    assert {name: s["samples"] for name, s in data.facts["splits"].items()} == {"train": 4, "test": 4}
    assert (
        data.config["limit"] == 4
        and data.config["image_size"] == 6
        and data.facts["inspection"]["train"]["height"]["max"] == 6
    )
    assert data.facts["leakage"] == 1  # every picture here has the same bytes
    assert str(tmp_path) not in str(data.config) + str(data.facts)


def test_the_same_source_seen_through_a_link_gives_the_same_data_set(tmp_path: Path) -> None:
    (tmp_path / "s" / "dog").mkdir(parents=True)
    (tmp_path / "s" / "dog" / "1.png").write_bytes(encoded(noise(), "PNG"))
    (tmp_path / "link").symlink_to(tmp_path / "s")
    manifests = [
        prepare("imagefolder", source_path=tmp_path / name, out=tmp_path / f"d{name}", write=WriteOptions(workers=0))
        for name in ("s", "link")
    ]
    assert manifests[0].sha256 == manifests[1].sha256


def test_errors_name_the_next_command(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such data set: flicker8k.*next: ccaco prepare flickr8k"):
        prepare("flicker8k", out=tmp_path / "d")
    with pytest.raises(
        DataError, match=r"coco is not part of ccaco.*captions_train2017.json.*ccaco prepare coco --source PATH"
    ):
        prepare("coco", out=tmp_path / "d")
    with pytest.raises(DataError, match="no such file or folder"):
        prepare("coco", source_path=tmp_path / "none", out=tmp_path / "d")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "x").touch()
    with pytest.raises(DataError, match="something else is there already"):
        prepare("coco", out=tmp_path / "d")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d"]


def test_locate(tmp_path: Path) -> None:
    assert locate("scenes", tmp_path) == tmp_path / "scenes" and needs_prepare("scenes", tmp_path)
    with pytest.raises(DataError, match=r"not prepared.*next: ccaco prepare flickr8k --source PATH"):
        locate("flickr8k", tmp_path)
    with pytest.raises(DataError, match=r"no such data set: scnes.*next: ccaco prepare scenes"):
        locate("scnes", tmp_path)
    with pytest.raises(DataError, match="not a prepared data set"):
        locate(str(tmp_path), tmp_path)
    (tmp_path / "s" / "dog").mkdir(parents=True)
    (tmp_path / "s" / "dog" / "1.png").write_bytes(encoded(noise(), "PNG"))
    for name in ("mine", "scenes"):
        prepare("imagefolder", source_path=tmp_path / "s", out=tmp_path / name, write=WriteOptions(workers=0))
        assert locate(name, tmp_path) == tmp_path / name and not needs_prepare(name, tmp_path)
    assert locate(str(tmp_path / "mine"), Path("data")) == tmp_path / "mine"


def test_embedded_scenes_are_prepared_without_a_source(tmp_path: Path) -> None:
    prepared = prepare(
        "scenes", out=tmp_path / "scenes", options=SourceOptions(limit=20, size=32), write=WriteOptions(workers=0)
    )
    data = shards.open(tmp_path / "scenes")
    assert set(data.splits) >= {"train", "val", "test"} and not prepared.facts["rejects"]
    assert all(0 < len(data.split(name)) <= 20 for name in data.splits)


@REAL
def test_real_flickr8k_rows_are_the_same_from_both_layouts(tmp_path: Path) -> None:
    real = Path(os.environ["CCACO_REAL_DATA"]) / "flickr8k"
    manifests = [
        prepare(
            "flickr8k",
            source_path=real / file,
            out=tmp_path / file,
            options=SourceOptions(limit=40),
            write=WriteOptions(image_size=64, workers=0),
        )
        for file in ("dataset_flickr8k.json", "Flickr8k.token.txt")
    ]
    assert manifests[0].files == manifests[1].files
    assert manifests[0].facts["splits"] == {
        s: {"samples": 40, "groups": 40, "captions": 200, "rejects": 0} for s in ("train", "val", "test")
    }


@REAL
def test_real_tiny_coco_keeps_every_photo_and_mends_every_blank(tmp_path: Path) -> None:
    real = Path(os.environ["CCACO_REAL_DATA"]) / "tiny_coco"
    prepared = prepare("coco", source_path=real, out=tmp_path / "d", write=WriteOptions(workers=0))
    assert prepared.facts["rejects"] == {} and sum(s["captions"] for s in prepared.facts["splits"].values()) == 500
    # 52 with blanks at an end, two more with a double blank inside
    assert prepared.facts["captions"]["cleaned"] == 54
    data = shards.open(tmp_path / "d")
    assert all(text == " ".join(text.split()) for name in data.splits for text in data.split(name).captions)
    test = data.split("test")
    assert test.media("image", [0])[0] == (real / test.ids[0]).read_bytes()
