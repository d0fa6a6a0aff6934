"""Checks each sample before it enters a data set.

Media are decoded once, captions are cleaned, and paths must stay inside the source folder.

This module imports little, because every worker process of ``prepare`` loads it.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import unicodedata
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

from ccaco_cli.core import modalities
from ccaco_cli.core.data import media_facts
from ccaco_cli.core.data.caption_languages import LANGUAGES, language_of_each, language_runs
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.text_input import normal_form
from ccaco_cli.core.types import Media, PairRecord

# an explicit list, because Pillow would also try formats that start other programs (EPS calls Ghostscript)
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
MAX_FILE_BYTES = 1 << 30  # Arrow's binary columns hold 2 GiB per shard
JPEG_QUALITY = 90
Measures = Mapping[str, float]
CheckedBytes = tuple[bytes, Measures, dict[str, Any]]
"""(bytes to store, measures for the statistics of ``prepare``, facts for ``meta[modality]``)."""
SPLIT_NAME = re.compile(r"[A-Za-z0-9]\w*", re.ASCII)
OUTSIDE = "outside the source folder"
"""Reason of a reject whose file lies in no folder that the user named."""
MISSING = "missing file"
UNLIKELY = "unlikely pair"
"""Reason of a reject that a model takes for no true pair (``prepare --keep-above``): wanted, so that it is no loss."""
RANGE = "range"
"""Fact of an image of one channel of more than 8 bits: the values that became black and white."""
PHASH = "phash"
"""Fact of an image that is no part of its ``meta``: its perceptual hash."""
_NAMES = ("id", "group", "domain", "label", "family")


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules of ``check``.

    Attributes:
        root: real path of the source folder; files outside it are rejected. None = media are generated, not read.
        media_root: real path of a second folder that files may lie in (``--image-root``).
        modalities: of the data set: two, or one.
        image_size: short side in pixels above which images and videos are re-encoded; None = keep the original bytes.
        unpaired: domains whose records may have no captions.
        media_facts: store size, date, camera and place of media.
        file_facts: store path, folder, size, date and SHA-256 of files.
        hash_images: compute the perceptual hash of images.
    """

    root: str | None
    modalities: tuple[str, ...]
    image_size: int | None = None
    unpaired: frozenset[str] = frozenset()
    media_root: str | None = None
    media_facts: bool = False
    file_facts: bool = False
    hash_images: bool = False

    @property
    def folders(self) -> tuple[str, ...]:
        """The folders that files may lie in; () = anywhere."""
        return () if self.root is None else tuple(folder for folder in (self.root, self.media_root) if folder)


@dataclass(frozen=True, slots=True)
class Passed:
    """A record that passed.

    Attributes:
        row: the columns of the shard.
        measures: sizes and lengths of the stored media, such as ``width`` and ``height`` in pixels.
        sha1: hex digest of the first medium's original bytes; "" = the pair has no media.
        phash: perceptual hash of the first image, 16 hex digits; "" = not computed, or an image without contrast.
        cleaned: number of captions whose white space or normal form was changed.
        dropped: number of empty captions, which are left out.
    """

    row: dict[str, Any]
    measures: Measures
    sha1: str
    cleaned: int
    dropped: int
    phash: str = ""


@dataclass(frozen=True, slots=True)
class Rejected:
    """A record that did not pass: one line of ``rejects.csv``."""

    id: str
    split: str
    reason: str
    where: str


@contextmanager
def lenient() -> Iterator[None]:
    """Silences warnings about files that still decode, and makes "too many pixels" an error.

    Warning filters belong to the whole process. Code that decodes in threads enters this context once around all
    threads.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def decode_image(data: bytes, short_side: int = 0) -> Image.Image:
    """Decodes an image: first frame, EXIF rotation applied, transparency on white, RGB of 8 bits.

    One channel of more bits, such as a depth map, is scaled to 8 (``scaled_to_8_bits``), and its range stands in
    ``info[RANGE]``.

    Args:
        data: an encoded file (JPEG, PNG, WebP, GIF, BMP, TIFF, PPM, AVIF).
        short_side: sufficient short side in pixels. A JPEG may then be decoded at 1/2, 1/4 or 1/8 of its size, which is
            several times faster. 0 = full size.
    Returns:
        PIL image, mode RGB, fully loaded.
    Raises:
        DataError: "not a picture" | "broken picture" (also truncated) | "too many pixels" (Pillow's decompression
            bomb limit).
    """
    try:
        with lenient():
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            if short_side:
                image.draft("RGB", (short_side, short_side))
            image.load()
            return upright_rgb(image)
    except UnidentifiedImageError:
        raise DataError("not a picture", expected=f"a file of {', '.join(FORMATS)}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise DataError("too many pixels", expected=f"at most {Image.MAX_IMAGE_PIXELS}") from None
    except Exception as error:  # Pillow's readers raise many kinds of exceptions for a broken file
        raise DataError(
            "broken picture", where=f"{type(error).__name__}: {error}", expected="a picture that decodes to its end"
        ) from None


def upright_rgb(image: Image.Image) -> Image.Image:
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception:
        image.load()  # an unreadable EXIF block does not affect the pixels
    if image.mode.startswith(("I", "F")):
        return scaled_to_8_bits(image)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def scaled_to_8_bits(image: Image.Image) -> Image.Image:
    """An image of one channel of 16 or 32 bits, integers or floats, as RGB: a depth map or a scan has few of the values
    that it could have, so its 1st to 99th percentile become 0 to 255.

    Pixels that are 0 or not finite have no measurement: they do not count, and become black. Where all others are
    equal, 65,535 is the white of integers. The range is in ``info[RANGE]`` of the result.
    """
    import numpy as np

    values = np.asarray(image).astype(np.float64)
    measured = np.isfinite(values) & (values != 0)
    low, high = np.percentile(values[measured], (1, 99)) if measured.any() else (0.0, 0.0)
    if low == high:
        low, high = 0.0, 65_535.0 if image.mode.startswith("I") else max(float(high), 1.0)
    scaled = ((np.where(measured, values, low) - low) * (255 / (high - low))).clip(0, 255).astype(np.uint8)
    rgb = Image.fromarray(np.where(measured, scaled, 0).astype(np.uint8)).convert("RGB")
    rgb.info[RANGE] = (float(low), float(high))
    return rgb


def shrink(image: Image.Image, short_side: int) -> tuple[bytes, tuple[int, int]]:
    """JPEG (quality 90) of an RGB image with its short side reduced to ``short_side`` pixels, and its (width, height).

    A smaller image keeps its size.
    """
    scale = min(1.0, short_side / min(image.size))
    width, height = (max(1, round(side * scale)) for side in image.size)
    out = io.BytesIO()
    image.resize((width, height), Image.Resampling.BICUBIC).save(out, "JPEG", quality=JPEG_QUALITY)
    return out.getvalue(), (width, height)


def clean_caption(text: str) -> str:
    """Replaces each run of white space by one space, strips the ends, drops unpaired surrogates, in normal form C."""
    return normal_form(" ".join(text.encode("utf-8", "ignore").decode().split()))


def check_all(records: Sequence[PairRecord], rules: Rules) -> list[Passed | Rejected]:
    """``check`` of each record, in order: one task of the process pool."""
    return [check(record, rules) for record in records]


def check(record: PairRecord, rules: Rules) -> Passed | Rejected:
    """Reads the media of one record, decodes them once, and cleans its captions.

    Never raises because of a file's content. The reason of a reject is one of a few fixed phrases, so that they can
    be counted.
    """
    if not SPLIT_NAME.fullmatch(record.split):
        return Rejected(_printable(record.id), "", "bad split name", _printable(record.split))
    cleaned = [clean_caption(text) for text in record.captions]
    captions = [text for text in cleaned if text]
    row: dict[str, Any] = {name: getattr(record, name) for name in _NAMES} | {"captions": captions}
    meta = dict(record.meta)
    if LANGUAGES in meta and len(captions) < len(cleaned):
        codes = zip(language_of_each(meta[LANGUAGES]), cleaned, strict=True)
        meta[LANGUAGES] = language_runs(code for code, text in codes if text)
    measures: dict[str, float] = {}
    sha1 = phash = ""
    try:
        if record.problem:
            raise DataError(record.problem, where=record.detail or None)
        for name in _NAMES:
            if not row[name].isascii() and _printable(row[name]) != row[name]:
                raise DataError("name is not UTF-8", where=row[name])
        if "text" in rules.modalities and not captions and record.domain not in rules.unpaired:
            raise DataError("no caption")
        for modality in (m for m in rules.modalities if m != "text"):
            if modality not in record.media:
                raise DataError(f"no {modality}")
            described = _file_facts(record.media[modality], rules)
            data = read_media(record.media[modality], rules.folders)
            sha1 = sha1 or hashlib.sha1(data, usedforsecurity=False).hexdigest()
            checked: CheckedBytes = modalities.check_of(modality)(data, rules)
            row[modality], media_measures, facts = checked
            measures |= media_measures
            phash = phash or facts.pop(PHASH, "")
            meta |= {modality: facts} if facts else {}
            if described:
                described |= {"sha256": hashlib.sha256(data).hexdigest()}
            if rules.media_facts:
                described |= media_facts.media_facts(modality, data)
            meta = media_facts.with_year({**described, **meta}) if described else meta
    except DataError as error:
        return Rejected(_printable(record.id), record.split, error.what, _location(record, rules, error))
    row["meta"] = json.dumps(meta, sort_keys=True)
    changed = sum(text != "" and text != before for text, before in zip(cleaned, record.captions, strict=True))
    return Passed(row, measures, sha1, cleaned=changed, dropped=len(cleaned) - len(captions), phash=phash)


def _file_facts(media: Media, rules: Rules) -> dict[str, Any]:
    """``media_facts.file_facts`` of a sample that is a file; {} = it is none, or they are not wanted."""
    if not rules.file_facts or not isinstance(media, Path):
        return {}
    folder = next((folder for folder in rules.folders if media.is_relative_to(folder)), str(media.parent))
    try:
        return media_facts.file_facts(media, Path(folder), media.stat())
    except (OSError, ValueError):  # ``read_media`` says why the file cannot be read
        return {}


def check_image(data: bytes, rules: Rules) -> CheckedBytes:
    """Decodes an image, and re-encodes one that is larger than ``rules.image_size``."""
    image = decode_image(data)
    size = image.size
    if rules.image_size is not None and min(size) > rules.image_size:
        data, size = shrink(image, rules.image_size)
    measures: dict[str, float] = dict(zip(("width", "height"), size, strict=True))
    facts: dict[str, Any] = {}
    if RANGE in image.info:
        facts[RANGE] = list(image.info[RANGE])
        measures |= dict(zip(("range_low", "range_high"), image.info[RANGE], strict=True))
    if rules.hash_images:
        from ccaco_cli.core.data.hash_duplicates import perceptual_hash  # imports NumPy

        facts[PHASH] = perceptual_hash(image)
    return data, measures, facts


def check_audio(data: bytes, rules: Rules) -> CheckedBytes:
    """Decodes a sound track; of a video file only the sound track is stored."""
    return _check_clip("audio", data, rules)


def check_video(data: bytes, rules: Rules) -> CheckedBytes:
    """Decodes a picture track, and re-encodes one that is larger than ``rules.image_size``."""
    return _check_clip("video", data, rules)


def _check_clip(modality: str, data: bytes, rules: Rules) -> CheckedBytes:
    from ccaco_cli.core.data import clips  # imports FFmpeg, which images do not need

    checked = clips.check(modality, data, rules.image_size)
    measures: dict[str, float] = {f"{modality}_seconds": checked.facts["seconds"]}
    measures |= {"silent": float(checked.facts["silent"])} if "silent" in checked.facts else {}
    measures |= dict(zip(("width", "height"), checked.size, strict=True)) if checked.size else {}
    return checked.data, measures, checked.facts


def is_within(path: str, folders: Iterable[str]) -> bool:
    """True when a real path is one of these real folders, or lies below one."""
    return any(os.path.commonpath([path, folder]) == folder for folder in folders)


def read_media(media: Media, folders: tuple[str, ...]) -> bytes:
    """The bytes of one medium.

    Raises DataError: missing, outside ``folders`` (if there are any), not a file, too large, unreadable or empty.
    """
    try:
        if isinstance(media, Path):
            real = os.path.realpath(_in_stored_form(media))
            if folders and not is_within(real, folders):
                raise DataError(OUTSIDE)
            if not os.path.exists(real):
                raise DataError(MISSING)
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


def _in_stored_form(path: Path) -> Path:
    """A path as its file is stored: some systems write "é" in a name as "e" and an accent, and captions name it "é"."""
    if path.name.isascii() or path.exists():
        return path
    forms = (path.with_name(unicodedata.normalize(form, path.name)) for form in ("NFC", "NFD"))
    return next((form for form in forms if form.exists()), path)


def _location(record: PairRecord, rules: Rules, error: DataError) -> str:
    """The record's files as the source names them (without the machine's folders), and the decoder's message."""
    files = []
    for path in (media for media in record.media.values() if isinstance(media, Path)):
        folder = next((folder for folder in rules.folders or ("",) if path.is_relative_to(folder)), None)
        files.append(path.as_posix() if folder is None else path.relative_to(folder).as_posix())
    message = [str(error.where)] if error.where is not None else []
    return _printable("; ".join([*dict.fromkeys(files), *message]))


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
