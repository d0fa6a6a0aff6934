"""What a sample must pass before it enters a data set: media are read and decoded once, captions cleaned, paths kept inside the source.

Imports little, for every worker process of ``prepare`` loads it.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

from ccaco_cli.core.errors import DataError
from ccaco_cli.core.types import Media, PairRecord

# named, because Pillow would also try formats that start other programs (EPS calls Ghostscript)
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
MAX_FILE_BYTES = 1 << 30  # Arrow's binary columns hold 2 GiB a shard
JPEG_QUALITY = 90
Measures = Mapping[str, float]
SPLIT_NAME = re.compile(r"[A-Za-z0-9]\w*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Rules:
    """What ``check`` holds a record to.

    root        real path of the source's folder, which every path of a record starts with: files outside it are rejected;
                None when media are made, not read
    modalities  the two of the data set
    image_size  pixels of the short side above which a picture or a film is re-encoded; None keeps all as they are
    unpaired    domains whose records may be without captions
    """

    root: str | None
    modalities: tuple[str, str]
    image_size: int | None = None
    unpaired: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Passed:
    """A record that came through: ``row`` as the shards have it, and what the manifest counts.

    measures what can be measured of its media as stored: ``width`` and ``height`` in pixels (names of several media do not clash)
    sha1     of the first media's original bytes, in hex ("" when the pair has none)
    cleaned  captions whose blanks were mended
    dropped  captions that were empty
    """

    row: dict[str, Any]
    measures: Measures
    sha1: str
    cleaned: int
    dropped: int


@dataclass(frozen=True, slots=True)
class Rejected:
    """A record that did not, as a line of ``rejects.csv``."""

    id: str
    split: str
    reason: str
    where: str


@contextmanager
def lenient() -> Iterator[None]:
    """No warnings of oddities in a file that still decodes, and an error for too many pixels.

    Warnings are set for a whole process: who decodes in threads holds this around all of them, or the last to leave leaves its own behind.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def decode_image(data: bytes, least: int = 0) -> Image.Image:
    """The picture as everyone sees it: first frame, turned as its EXIF says, transparency on white, 16 bits scaled to 8, RGB.

    data     an encoded file (JPEG, PNG, WebP, GIF, BMP, TIFF, PPM, AVIF)
    least    a short side in pixels that is enough: a JPEG may then be decoded at half, a quarter or an eighth of its size, which the
             decoder does in a fraction of the time; 0 = the size that it has
    Returns  PIL image, mode RGB, fully loaded
    Raises   DataError: "not a picture" | "broken picture" (truncated too) | "too many pixels" (Pillow's decompression bomb limit)
    """
    try:
        with lenient():
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            if least:
                image.draft("RGB", (least, least))
            image.load()
            return _upright_rgb(image)
    except UnidentifiedImageError:
        raise DataError("not a picture", expected=f"a file of {', '.join(FORMATS)}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise DataError("too many pixels", expected=f"at most {Image.MAX_IMAGE_PIXELS}") from None
    except Exception as error:  # Pillow's readers raise whatever a broken file makes them stumble over
        raise DataError(
            "broken picture", where=f"{type(error).__name__}: {error}", expected="a picture that decodes to its end"
        ) from None


def _upright_rgb(image: Image.Image) -> Image.Image:
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception:
        image.load()  # an unreadable EXIF block is no fault of the pixels
    if image.mode.startswith("I"):
        import numpy as np

        return Image.fromarray((np.asarray(image).clip(0, 65535) // 256).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels have no range to scale by")
    if image.has_transparency_data:
        seen = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen).convert("RGB")
    return image.convert("RGB")


def shrink(image: Image.Image, short_side: int) -> tuple[bytes, tuple[int, int]]:
    """JPEG (quality 90) of an RGB picture and its (width, height): the short side brought down to ``short_side`` pixels, never enlarged."""
    scale = min(1.0, short_side / min(image.size))
    width, height = (max(1, round(side * scale)) for side in image.size)
    out = io.BytesIO()
    image.resize((width, height), Image.Resampling.BICUBIC).save(out, "JPEG", quality=JPEG_QUALITY)
    return out.getvalue(), (width, height)


def clean_caption(text: str) -> str:
    """Every run of blanks, tabs and line ends is one space, none at the ends; halves of surrogate pairs are dropped."""
    return " ".join(text.encode("utf-8", "ignore").decode().split())


def check_all(records: Sequence[PairRecord], rules: Rules) -> list[Passed | Rejected]:
    """``check`` of each, in order: one task of the process pool."""
    return [check(record, rules) for record in records]


def check(record: PairRecord, rules: Rules) -> Passed | Rejected:
    """Reads the media of one record, decodes them once, and cleans its captions. Never raises for what a file holds.

    The reason of a reject is one of a few fixed phrases, so that they can be counted.
    """
    if not SPLIT_NAME.fullmatch(record.split):
        return Rejected(_printable(record.id), "", "bad split name", _printable(record.split))
    cleaned = [clean_caption(text) for text in record.captions]
    captions = [text for text in cleaned if text]
    row: dict[str, Any] = {name: getattr(record, name) for name in ("id", "group", "domain", "label", "family")}
    row["captions"], meta = captions, dict(record.meta)
    measures: dict[str, float] = {}
    sha1 = ""
    try:
        for name in ("id", "group", "domain", "label", "family"):
            if not row[name].isascii() and _printable(row[name]) != row[name]:
                raise DataError("name is not UTF-8", where=row[name])
        if "text" in rules.modalities and not captions and record.domain not in rules.unpaired:
            raise DataError("no caption")
        for modality in rules.modalities:
            if modality == "text":
                continue
            if modality not in record.media:
                raise DataError(f"no {modality}")
            data = _bytes_of(record.media[modality], rules.root)
            sha1 = sha1 or hashlib.sha1(data, usedforsecurity=False).hexdigest()
            row[modality], found, facts = _CHECKS.get(modality, _as_it_is)(data, rules)
            measures |= found
            meta |= {modality: facts} if facts else {}
    except DataError as error:
        return Rejected(_printable(record.id), record.split, error.what, _place(record, rules.root, error))
    row["meta"] = json.dumps(meta, sort_keys=True)
    mended = sum(text != "" and text != before for text, before in zip(cleaned, record.captions, strict=True))
    return Passed(row, measures, sha1, cleaned=mended, dropped=len(cleaned) - len(captions))


def _check_image(data: bytes, rules: Rules) -> _Found:
    image = decode_image(data)
    kept, size = data, image.size
    if rules.image_size is not None and min(size) > rules.image_size:
        kept, size = shrink(image, rules.image_size)
    return kept, dict(zip(("width", "height"), size, strict=True)), {}


def _check_clip(data: bytes, rules: Rules, *, modality: str) -> _Found:
    from ccaco_cli.core.data import clips  # brings FFmpeg along, which pictures do without

    found = clips.check(modality, data, rules.image_size)
    measures: dict[str, float] = {f"{modality}_seconds": found.facts["seconds"]}
    measures |= {"silent": float(found.facts["silent"])} if "silent" in found.facts else {}
    measures |= dict(zip(("width", "height"), found.size, strict=True)) if found.size else {}
    return found.data, measures, found.facts


def _as_it_is(data: bytes, rules: Rules) -> _Found:
    return data, {}, {}


_Found = tuple[bytes, Measures, dict[str, Any]]
_CHECKS: Mapping[str, Callable[[bytes, Rules], _Found]] = {
    "image": _check_image,
    "audio": partial(_check_clip, modality="audio"),
    "video": partial(_check_clip, modality="video"),
}
"""Modality -> what its bytes must pass; gives the bytes to keep, what was measured of them (told by ``prepare`` for every split), and facts
that go to ``meta[modality]``."""


def _bytes_of(media: Media, root: str | None) -> bytes:
    try:
        if isinstance(media, Path):
            real = os.path.realpath(media)
            if root is not None and os.path.commonpath([real, root]) != root:
                raise DataError("outside the source folder")
            if not os.path.exists(real):
                raise DataError("missing file")
            if not os.path.isfile(real):
                raise DataError("not a file")
            if os.path.getsize(real) > MAX_FILE_BYTES:
                raise DataError("file too large", expected=f"at most {MAX_FILE_BYTES} bytes")
            data = Path(real).read_bytes()
        else:
            data = media if isinstance(media, bytes) else media()
    except (OSError, ValueError) as error:
        raise DataError("unreadable file", where=getattr(error, "strerror", None) or error) from None
    if not data:
        raise DataError("empty file")
    return data


def _place(record: PairRecord, root: str | None, error: DataError) -> str:
    """Which file (as the source names it, the machine's folders left out), and what the decoder said."""
    paths = [media for media in record.media.values() if isinstance(media, Path)]
    files = []
    for path in paths:
        try:
            files.append(path.relative_to(root or "").as_posix())
        except ValueError:
            files.append(path.as_posix())
    return _printable("; ".join([*dict.fromkeys(files), *([str(error.where)] if error.where is not None else [])]))


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
