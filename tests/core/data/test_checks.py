from __future__ import annotations

import io
import json
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ccaco_cli.core.data.checks import Passed, Rejected, Rules, check, clean_caption, decode_image, read_media
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.types import Media, PairRecord
from tests.recordings import film, tone


def encode(image: Image.Image, kind: str = "PNG", **more: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **more)
    return out.getvalue()


def record(media: Media, *captions: str, id: str = "x", split: str = "train") -> PairRecord:
    return PairRecord(id, id, split, {"image": media}, captions or ("a thing",))


RULES = Rules(None, ("image", "text"))


def colour(data: bytes) -> tuple[int, ...]:
    image = decode_image(data)
    assert image.mode == "RGB"
    return tuple(np.asarray(image)[0, 0].tolist())


def test_every_mode_becomes_the_rgb_that_is_seen() -> None:
    red = Image.new("RGB", (4, 4), (255, 0, 0))
    assert colour(encode(red.convert("P"))) == (255, 0, 0)
    assert colour(encode(Image.new("L", (4, 4), 100))) == (100, 100, 100)
    assert colour(encode(Image.new("1", (4, 4), 1))) == (255, 255, 255)
    assert colour(encode(Image.new("LA", (4, 4), (50, 0)))) == (255, 255, 255)
    assert colour(encode(Image.new("RGBA", (4, 4), (255, 0, 0, 0)))) == (255, 255, 255)
    half = colour(encode(Image.new("RGBA", (4, 4), (0, 0, 0, 128))))
    assert half == (127, 127, 127)
    cmyk = colour(encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"))
    assert cmyk[0] > 245 and cmyk[1] < 15 and cmyk[2] < 15


def test_transparent_palette_colour_is_white() -> None:
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([10, 20, 30] + [0] * 765)
    assert colour(encode(palette)) == (10, 20, 30)
    assert colour(encode(palette, transparency=0)) == (255, 255, 255)


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    assert colour(encode(Image.fromarray(np.full((4, 4), 0x7FFF, np.uint16)))) == (127, 127, 127)


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (4, 4), c) for c in ((255, 0, 0), (0, 0, 255))]
    for kind in ("GIF", "WEBP", "PNG"):
        data = encode(
            frames[0], kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WEBP" else {})
        )
        assert colour(data) == (255, 0, 0), kind


def test_exif_rotation_is_applied_and_a_broken_exif_ignored() -> None:
    image = Image.new("RGB", (8, 4), (0, 0, 255))
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_image(encode(image, "JPEG", exif=exif)).size == (4, 8)
    assert decode_image(encode(image, "JPEG", exif=b"Exif\x00\x00rubbish")).size == (8, 4)


def test_bad_pictures_name_their_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    for kind in ("JPEG", "PNG", "WEBP"):
        data = encode(noise, kind)
        with pytest.raises(DataError) as error:
            decode_image(data[: len(data) // 2])
        assert error.value.what == "broken picture", kind
    for data in (b"no picture at all", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"\xff\xd8"):
        with pytest.raises(DataError, match="not a picture"):
            decode_image(data)
    text_bomb = PngInfo()
    text_bomb.add_text("k", "x" * 5_000_000, zip=True)
    with pytest.raises(DataError, match="broken picture"):
        decode_image(encode(noise, pnginfo=text_bomb))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64 - 1)  # Pillow itself only warns up to twice that
    with pytest.raises(DataError, match="too many pixels"):
        decode_image(encode(noise))


def test_original_bytes_stay_unless_the_picture_is_larger_than_the_limit() -> None:
    data = encode(Image.new("RGB", (40, 20)), "JPEG")
    for size in (None, 20, 64):
        checked = check(record(data), Rules(None, ("image", "text"), size))
        assert (
            isinstance(checked, Passed)
            and checked.row["image"] == data
            and checked.measures == {"width": 40, "height": 20}
        )
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = check(record(encode(Image.new("RGB", (40, 20)), "JPEG", exif=exif)), Rules(None, ("image", "text"), 10))
    assert isinstance(turned, Passed) and turned.measures == {"width": 10, "height": 20}
    stored = Image.open(io.BytesIO(turned.row["image"]))
    assert (stored.format, stored.size, decode_image(turned.row["image"]).size) == ("JPEG", (10, 20), (10, 20))


def test_captions() -> None:
    assert clean_caption(" a\tcat \n on\r\na\xa0mat. ") == "a cat on a mat."
    assert clean_caption("half \ud83d pair") == "half pair"
    for caption in ("cafe\u0301 na\u0131\u0308ve", "\u1100\u1161\u11a8 \u304b\u3099", "\u0928\u093c A\u030a"):
        assert clean_caption(caption) == unicodedata.normalize("NFC", caption)
    checked = check(record(encode(Image.new("L", (2, 2))), " one ", "two", "  \n"), RULES)
    assert isinstance(checked, Passed)
    assert (checked.row["captions"], checked.cleaned, checked.dropped) == (["one", "two"], 1, 1)
    empty = check(record(encode(Image.new("L", (2, 2))), " ", ""), RULES)
    assert isinstance(empty, Rejected) and empty.reason == "no caption"


@pytest.mark.parametrize("name", ["caf\u00e9.png", "\uae40\uce58.png", "\u304c\u30d1.png"])
def test_a_file_name_of_another_normal_form_is_that_file(name: str, tmp_path: Path) -> None:
    for form, other in (("NFC", "NFD"), ("NFD", "NFC")):
        stored = tmp_path / form / unicodedata.normalize(form, name)
        stored.parent.mkdir()
        stored.write_bytes(b"pixels")
        assert read_media(stored.with_name(unicodedata.normalize(other, name)), ()) == b"pixels"
    with pytest.raises(DataError, match="missing file"):
        read_media(tmp_path / name, ())


def test_names_that_no_file_can_have() -> None:
    good = encode(Image.new("L", (2, 2)))
    odd = check(record(good, id="caf\udce9.jpg"), RULES)
    assert isinstance(odd, Rejected) and (odd.reason, odd.id) == ("name is not UTF-8", "caf\\udce9.jpg")
    away = check(record(good, split="../x"), RULES)
    assert isinstance(away, Rejected) and (away.reason, away.where) == ("bad split name", "../x")
    no_image = check(PairRecord("x", "x", "train", {}, ["a"]), RULES)
    assert isinstance(no_image, Rejected) and no_image.reason == "no image"


def test_paths_stay_inside_the_source(tmp_path: Path) -> None:
    root, outside = (tmp_path / "root").resolve(), tmp_path / "out.png"
    (root / "a").mkdir(parents=True)
    outside.write_bytes(encode(Image.new("L", (2, 2))))
    (root / "a" / "in.png").write_bytes(outside.read_bytes())
    (root / "link.png").symlink_to(outside)
    (root / "inner.png").symlink_to(root / "a" / "in.png")
    (root / "zero.png").touch()
    os.mkfifo(root / "fifo.png")
    expected = {
        root / "a" / "in.png": None,
        root / "inner.png": None,
        root / "a" / ".." / "a" / "in.png": None,
        root / ".." / "out.png": ("outside the source folder", "../out.png"),
        root / "link.png": ("outside the source folder", "link.png"),
        Path("/etc/hostname"): ("outside the source folder", "/etc/hostname"),
        root / "gone.png": ("missing file", "gone.png"),
        root / "zero.png": ("empty file", "zero.png"),
        root / "a": ("not a file", "a"),
        root / "fifo.png": ("not a file", "fifo.png"),
        root / "nul\0.png": ("unreadable file", "nul\0.png; embedded null byte"),
    }
    for path, reject in expected.items():
        checked = check(record(path), Rules(str(root), ("image", "text")))
        if reject is None:
            assert isinstance(checked, Passed), path
        else:
            assert isinstance(checked, Rejected) and (checked.reason, checked.where) == reject


def test_media_without_a_check_are_kept_as_they_are_and_need_no_caption() -> None:
    pair = PairRecord("x", "x", "train", {"smell": b"v", "taste": lambda: b"a"})
    checked = check(pair, Rules(None, ("smell", "taste")))
    assert isinstance(checked, Passed) and (checked.row["smell"], checked.row["taste"], checked.measures) == (
        b"v",
        b"a",
        {},
    )


def test_both_tracks_of_a_film_are_checked() -> None:
    data = film(samples=tone(1.0, 16_000))
    checked = check(
        PairRecord("x", "x", "train", {"video": data, "audio": data}, meta={"n": 1}), Rules(None, ("video", "audio"))
    )
    assert (
        isinstance(checked, Passed)
        and checked.measures["width"] == 32
        and checked.measures["silent"] == 0
        and checked.row["video"] == data != checked.row["audio"]
    )
    meta = json.loads(checked.row["meta"])
    assert meta["n"] == 1 and meta["video"]["frames"] == 8 and meta["audio"]["silent"] is False
    mute = film()
    lost = check(PairRecord("x", "x", "train", {"video": mute, "audio": mute}), Rules(None, ("video", "audio")))
    assert isinstance(lost, Rejected) and lost.reason == "no sound track"


def test_a_record_without_captions_passes_in_a_domain_that_may_be_unpaired() -> None:
    picture, rules = encode(Image.new("RGB", (4, 4))), Rules(None, ("image", "text"), unpaired=frozenset({"sketch"}))
    for domain, kind in (("sketch", Passed), ("photo", Rejected), ("", Rejected)):
        assert isinstance(check(PairRecord("x", "x", "train", {"image": picture}, (), domain), rules), kind)


def test_a_large_jpeg_is_decoded_smaller_when_less_is_enough() -> None:
    rng = np.random.default_rng(0)
    large = Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8)).resize((1200, 900), Image.Resampling.BICUBIC)
    for kind, wanted in (("JPEG", (300, 225)), ("PNG", (1200, 900))):
        out = io.BytesIO()
        large.save(out, kind)
        full_size, scaled = decode_image(out.getvalue()), decode_image(out.getvalue(), 200)
        assert full_size.size == (1200, 900)
        assert scaled.size == wanted, "never below what was asked for"
        first, second = (
            np.asarray(picture.resize((133, 100), Image.Resampling.BICUBIC), np.float64)
            for picture in (full_size, scaled)
        )
        assert np.abs(first - second).mean() < 1.0, "of 255"


def test_a_record_with_a_problem_is_rejected_for_it() -> None:
    refused = check(PairRecord("x", "x", "train", {}, (), problem="listed more than once"), RULES)
    assert isinstance(refused, Rejected) and (refused.id, refused.reason) == ("x", "listed more than once")
