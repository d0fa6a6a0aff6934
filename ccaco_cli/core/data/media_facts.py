"""What a medium and its file say of themselves: size, date, camera, place and duration.

An odd value (a date of zeros, a rational with denominator 0, a text of megabytes) is left out; nothing here raises.

This module imports little, because every worker process of ``prepare`` loads it.
"""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.ExifTags import GPS, IFD, Base

from ccaco_cli.core import modalities

MAX_TEXT = 100
"""Characters of the longest camera name; a longer one is damaged."""
FIRST_YEAR = 1826
"""Year of the first photograph: earlier dates are not those of a recording."""
UNSET_DATES = ("1904-01-01", "1970-01-01")
"""Days that a recorder writes when its clock was never set: the epochs of QuickTime and of Unix."""
_LOCATION = re.compile(r"([+-]\d{1,3}(?:\.\d+)?)([+-]\d{1,3}(?:\.\d+)?)")
_UPRIGHT_SWAPS = (5, 6, 7, 8)
"""EXIF orientations that exchange width and height."""


def media_facts(modality: str, data: bytes) -> dict[str, Any]:
    """The facts that are stored within an encoded medium, as JSON types.

    Args:
        modality: an entry of ``MODALITIES``.
        data: an encoded file.
    Returns:
        Those that are known of: ``width``, ``height`` (pixels, upright), ``taken`` (ISO text, local time of the
        recording), ``camera``, ``latitude``, ``longitude`` (degrees), ``duration`` (seconds). {} = none.
    """
    read = modalities.facts_of(modality)
    facts: Mapping[str, Any] = {}
    with suppress(Exception):  # decoders raise many kinds of errors for a damaged file, which the check reports
        facts = read(data)
    return {name: value for name, value in facts.items() if value is not None}


def file_facts(path: Path, root: Path, stat: os.stat_result) -> dict[str, Any]:
    """The facts of a file: ``path`` (absolute), ``folder`` (below ``root``, "/" at the top), ``size``, ``modified``.

    Args:
        path: absolute, below ``root``.
        stat: of the file, taken before it was read.
    Returns:
        Size in bytes, modified as ISO text in UTC. A path that is not UTF-8 is left out.
    """
    facts: dict[str, Any] = {"path": os.path.abspath(path), "size": stat.st_size}
    with suppress(ValueError):
        parts = path.relative_to(root).parts[:-1]
        facts["folder"] = f"/{'/'.join(parts)}/" if parts else "/"
    with suppress(OverflowError, OSError, ValueError):
        facts["modified"] = _iso(datetime.fromtimestamp(stat.st_mtime, UTC))
    return {name: value for name, value in facts.items() if not isinstance(value, str) or _is_utf8(value)}


def with_year(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts and ``year``: of ``taken``, or else of ``modified``; a year that is there already stays."""
    date = facts.get("taken") or facts.get("modified")
    year = {"year": int(date[:4])} if isinstance(date, str) and date[:4].isdecimal() else {}
    return {**year, **facts}


def image_facts(data: bytes) -> dict[str, Any]:
    """``media_facts`` of an image, of which only the header is read."""
    from ccaco_cli.core.data.checks import FORMATS, lenient  # which imports this module

    with lenient(), Image.open(io.BytesIO(data), formats=FORMATS) as image:
        width, height = image.size
        tags: Mapping[int, Any] = {}
        details: Mapping[int, Any] = {}
        place: Mapping[int, Any] = {}
        with suppress(Exception):  # Pillow raises many kinds of errors for a damaged EXIF block
            exif = tags = image.getexif()
            with suppress(Exception):
                details = exif.get_ifd(IFD.Exif)
            with suppress(Exception):
                place = exif.get_ifd(IFD.GPSInfo)
        if tags.get(Base.Orientation) in _UPRIGHT_SWAPS:
            width, height = height, width
        dates = (
            details.get(Base.DateTimeOriginal),
            details.get(Base.DateTimeDigitized),
            tags.get(Base.DateTime),
        )
        return {
            "width": width,
            "height": height,
            "taken": next(filter(None, map(_exif_date, dates)), None),
            "camera": _camera(tags.get(Base.Make), tags.get(Base.Model)),
            **_place(
                _degrees(place.get(GPS.GPSLatitude), place.get(GPS.GPSLatitudeRef), "NS"),
                _degrees(place.get(GPS.GPSLongitude), place.get(GPS.GPSLongitudeRef), "EW"),
            ),
        }


def audio_facts(data: bytes) -> dict[str, Any]:
    """``media_facts`` of a sound file, of which only the header is read."""
    with _container(data) as container:
        return _recording(container, container.streams.audio)


def video_facts(data: bytes) -> dict[str, Any]:
    """``media_facts`` of a video file, of which the first frame is decoded for its rotation."""
    with _container(data) as container:
        streams = container.streams.video
        facts = _recording(container, streams)
        with suppress(Exception):
            frame = next(container.decode(streams[0]))
            size = (frame.width, frame.height)
            facts |= dict(zip(("width", "height"), size[::-1] if frame.rotation % 180 else size, strict=True))
        return facts


@contextmanager
def _container(data: bytes) -> Iterator[Any]:
    import av  # FFmpeg, which images do not need

    from ccaco_cli.core.data import clips

    whitelist = {"format_whitelist": clips.FORMATS}
    with av.open(io.BytesIO(data), options=whitelist, metadata_errors="replace") as container:
        yield container


def _recording(container: Any, streams: Sequence[Any]) -> dict[str, Any]:
    tags = {key.lower(): value for key, value in container.metadata.items()}
    stream = streams[0] if streams else None
    seconds = container.duration / 1e6 if container.duration else None
    if seconds is None and stream is not None and stream.duration:
        seconds = float(stream.duration * stream.time_base)
    location = tags.get("com.apple.quicktime.location.iso6709") or tags.get("location") or ""
    match = _LOCATION.match(location)
    return {
        "duration": round(seconds, 3) if seconds is not None and 0 < seconds < math.inf else None,
        "taken": _clip_date(tags.get("com.apple.quicktime.creationdate")) or _clip_date(tags.get("creation_time")),
        "camera": _camera(
            tags.get("com.apple.quicktime.make") or tags.get("com.android.manufacturer"),
            tags.get("com.apple.quicktime.model") or tags.get("com.android.model"),
        ),
        **(_place(float(match[1]), float(match[2])) if match else {}),
    }


def _text(value: Any) -> str:
    """A short printable text; "" = it is none."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        return ""
    text = " ".join(value.replace("\0", " ").split())
    return text if text.isprintable() and _is_utf8(text) else ""


def _is_utf8(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def _camera(make: Any, model: Any) -> str | None:
    """``Canon`` and ``Canon EOS 5D`` -> ``Canon EOS 5D``; ``Apple`` and ``iPhone 12`` -> ``Apple iPhone 12``."""
    maker, name = _text(make), _text(model)
    if maker and name.lower().startswith(maker.lower().split()[0]):
        maker = ""
    return f"{maker} {name}".strip() or None


def _iso(date: datetime) -> str:
    return date.replace(tzinfo=None, microsecond=0).isoformat()


def _exif_date(value: Any) -> str | None:
    """``2021:07:04 12:33:10`` -> ``2021-07-04T12:33:10``."""
    with suppress(ValueError):
        date = datetime.strptime(_text(value)[:19], "%Y:%m:%d %H:%M:%S")
        return _iso(date) if date.year >= FIRST_YEAR else None
    return None


def _clip_date(value: Any) -> str | None:
    """The date of a container's tag: the local time where it names an offset, else UTC."""
    with suppress(ValueError):
        date = _iso(datetime.fromisoformat(_text(value)))
        return date if int(date[:4]) >= FIRST_YEAR and not date.startswith(UNSET_DATES) else None
    return None


def _degrees(value: Any, reference: Any, signs: str) -> float:
    """Degrees, minutes and seconds as one number; NaN = not known."""
    letter = _text(reference)[:1].upper()
    if not letter or letter not in signs:
        return math.nan
    try:
        degrees, minutes, seconds = (float(part) for part in value)
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        return math.nan
    if not (0 <= degrees <= 180 and 0 <= minutes < 61 and 0 <= seconds < 61):
        return math.nan
    total = degrees + minutes / 60 + seconds / 3600
    return -total if letter == signs[1] else total


def _place(latitude: float, longitude: float) -> dict[str, float]:
    """Both coordinates, or {}: (0, 0) lies in the sea, and is what cameras without a fix write."""
    if not (abs(latitude) <= 90 and abs(longitude) <= 180) or (latitude, longitude) == (0.0, 0.0):
        return {}
    return {"latitude": round(latitude, 6), "longitude": round(longitude, 6)}
