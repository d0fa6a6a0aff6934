from __future__ import annotations

import io
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image
from PIL.ExifTags import GPS, IFD, Base
from PIL.TiffImagePlugin import IFDRational

from ccaco_cli.core.data.media_facts import file_facts, media_facts, with_year

PARIS = {
    GPS.GPSLatitudeRef: "N",
    GPS.GPSLatitude: (48.0, 51.0, 29.6),
    GPS.GPSLongitudeRef: "W",
    GPS.GPSLongitude: (2.0, 17.0, 40.2),
}


def photo(
    tags: dict[int, Any] | None = None,
    details: dict[int, Any] | None = None,
    place: dict[int, Any] | None = None,
    kind: str = "JPEG",
    size: tuple[int, int] = (40, 30),
) -> bytes:
    exif = Image.Exif()
    for tag, value in (tags or {}).items():
        exif[tag] = value
    for group, values in ((IFD.Exif, details), (IFD.GPSInfo, place)):
        for tag, value in (values or {}).items():
            exif.get_ifd(group)[tag] = value
    out = io.BytesIO()
    Image.new("RGB", size, "red").save(out, kind, exif=exif)
    return out.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_photo_of_a_phone(kind: str) -> None:
    tags = {Base.Make: "Apple", Base.Model: "iPhone 12", Base.DateTime: "2022:01:01 00:00:00"}
    data = photo(tags, {Base.DateTimeOriginal: "2021:07:04 12:33:10"}, PARIS, kind)
    facts = media_facts("image", data)
    place = {"latitude": pytest.approx(48.858222, abs=1e-5), "longitude": pytest.approx(-2.2945, abs=1e-5)}
    wanted = {"width": 40, "height": 30, "taken": "2021-07-04T12:33:10", "camera": "Apple iPhone 12"}
    assert facts == wanted | place


def test_width_and_height_are_those_of_the_upright_picture() -> None:
    assert media_facts("image", photo({Base.Orientation: 6})) == {"width": 30, "height": 40}
    assert media_facts("image", photo({Base.Orientation: 3})) == {"width": 40, "height": 30}


@pytest.mark.parametrize(
    "date",
    [
        "0000:00:00 00:00:00",
        "2021:13:41 99:99:99",
        "    :  :     :  :  ",
        "yesterday",
        "1066:10:14 09:00:00",
        "x" * 10**4,
    ],
)
def test_a_garbage_date_is_left_out(date: str) -> None:
    assert "taken" not in media_facts("image", photo({Base.DateTime: date}, {Base.DateTimeOriginal: date}))
    good = {Base.DateTime: "2020:02:29 01:02:03"}
    assert media_facts("image", photo(good, {Base.DateTimeOriginal: date}))["taken"] == "2020-02-29T01:02:03"


@pytest.mark.parametrize(
    ("make", "model", "camera"),
    [
        ("Canon", "Canon EOS 5D", "Canon EOS 5D"),
        ("NIKON CORPORATION", "NIKON D90", "NIKON D90"),
        ("samsung  ", "SM-G991B", "samsung SM-G991B"),
        ("", "X100", "X100"),
        ("Fuji", "", "Fuji"),
        ("A" * 10_000, "X", "X"),
        ("A\x07B", "", None),
        ("", "", None),
    ],
)
def test_cameras(make: str, model: str, camera: str | None) -> None:
    assert media_facts("image", photo({Base.Make: make, Base.Model: model})).get("camera") == camera


@pytest.mark.parametrize(
    "changed",
    [
        {GPS.GPSLatitude: (IFDRational(48, 0), IFDRational(1, 1), IFDRational(0, 0))},
        {GPS.GPSLatitude: (91.0, 0.0, 0.0)},
        {GPS.GPSLatitude: (48.0, 99.0, 0.0)},
        {GPS.GPSLatitude: (48.0,)},
        {GPS.GPSLatitudeRef: "Q"},
        {GPS.GPSLatitude: (0.0, 0.0, 0.0), GPS.GPSLongitude: (0.0, 0.0, 0.0)},
    ],
)
def test_an_odd_place_is_left_out(changed: dict[int, Any]) -> None:
    facts = media_facts("image", photo(place=PARIS | changed))
    assert facts == {"width": 40, "height": 30}
    assert "latitude" in media_facts("image", photo(place=PARIS))


@pytest.mark.parametrize("modality", ["image", "audio", "video", "text", "no such modality"])
def test_garbage_has_no_facts(modality: str) -> None:
    data = photo({Base.Make: "Canon"}, {Base.DateTimeOriginal: "2021:07:04 12:33:10"}, PARIS)
    cut = [data[:n] for n in range(0, len(data), 37)]
    for garbage in (b"", b"not a picture", b"\xff" * 1000, *cut):
        assert media_facts(modality, garbage).keys() <= {
            "width", "height", "taken", "camera", "latitude", "longitude", "duration"
        }  # fmt: skip
    flipped = np.random.default_rng(0)
    for _ in range(200):
        broken = bytearray(data)
        for at in flipped.integers(0, 400, 8):
            broken[at] = flipped.integers(256)
        media_facts(modality, bytes(broken))


def clip(metadata: dict[str, str], kind: str, seconds: float = 1.5) -> bytes:
    out = io.BytesIO()
    with av.open(
        out, "w", format="mp4" if kind == "video" else "wav", options={"movflags": "use_metadata_tags"}
    ) as target:
        target.metadata.update(metadata)
        if kind == "video":
            stream: Any = target.add_stream("libx264", 10)
            stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
            for _ in range(round(seconds * 10)):
                target.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((16, 32, 3), np.uint8), "rgb24")))
        else:
            stream = target.add_stream("pcm_s16le", 8000)
            stream.layout = "mono"
            frame = av.AudioFrame.from_ndarray(np.zeros((1, round(seconds * 8000)), np.int16), "s16", "mono")
            frame.rate, frame.time_base = 8000, Fraction(1, 8000)
            target.mux(stream.encode(frame))
        target.mux(stream.encode(None))
    return out.getvalue()


def test_recordings() -> None:
    tags = {
        "creation_time": "2021-07-04T10:33:10.000000Z",
        "com.apple.quicktime.make": "Apple",
        "com.apple.quicktime.model": "iPhone 12",
        "com.apple.quicktime.location.ISO6709": "+48.8582+002.2945+035.0/",
    }
    facts = media_facts("video", clip(tags, "video"))
    assert facts.pop("duration") == pytest.approx(1.5, abs=0.11)
    assert facts == {
        "width": 32,
        "height": 16,
        "taken": "2021-07-04T10:33:10",
        "camera": "Apple iPhone 12",
        "latitude": 48.8582,
        "longitude": 2.2945,
    }
    assert media_facts("audio", clip({}, "audio")) == {"duration": 1.5}
    unset = clip({"creation_time": "1904-01-01T00:00:00.000000Z"}, "video")
    assert "taken" not in media_facts("video", unset)
    assert media_facts("video", clip(tags, "video")[:-700]).keys() <= facts.keys() | {"duration"}


def test_the_facts_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "2021" / "beach" / "a b.jpg"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"12345")
    os.utime(file, (1_625_394_790.9, 1_625_394_790.9))
    assert file_facts(file, tmp_path, file.stat()) == {
        "path": str(file),
        "folder": "/2021/beach/",
        "size": 5,
        "modified": "2021-07-04T10:33:10",
    }
    assert file_facts(file, file.parent, file.stat())["folder"] == "/"
    odd = os.stat_result((*file.stat()[:8], 10**18, 0))
    assert "modified" not in file_facts(file, tmp_path, odd)
    strange = tmp_path / os.fsdecode(b"caf\xe9") / "x.jpg"
    assert file_facts(strange, tmp_path, file.stat()).keys() == {"size", "modified"}


def test_the_year() -> None:
    assert with_year({"taken": "2019-05-01T00:00:00", "modified": "2021-07-04T10:33:10"})["year"] == 2019
    assert with_year({"modified": "2021-07-04T10:33:10"})["year"] == 2021
    assert with_year({"modified": "2021-07-04T10:33:10", "year": 1999})["year"] == 1999
    assert "year" not in with_year({"size": 1})
