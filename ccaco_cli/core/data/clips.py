"""Recordings: video and sound out of encoded bytes, by PyAV (FFmpeg's libraries).

What happens to odd ones, everywhere: several channels are mixed down to one; any sample rate is resampled; a film that says it lies is
turned; a recording that is shorter than asked is used as it is (``loader`` pads and masks); a silent one is a recording like others, and is
counted; one without the track that is asked for is an error, and ``prepare`` lists it among the rejects.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import chain
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from PIL import Image

from ccaco_cli.core.errors import DataError

# named, because FFmpeg also reads playlists, which name further files and addresses
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,h264,flv,asf,wav,w64,ogg,mp3,flac,aac,ac3,aiff,au,caf,amr"
SILENCE = 1e-4
"""Highest sample, of 1, of a track that counts as silent (-80 dB)."""
MAX_SECONDS = 3600.0
"""Longer recordings are rejected: these are clips, and a few kilobytes can say that they last for years."""
EXACT = {"flags": "+bitexact"}
"""Of every encoder: no versions in the bytes."""
H264 = EXACT | {"preset": "ultrafast", "x264-params": "threads=1:asm=0"}
"""Equal pictures, equal bytes: with its hand-written assembly x264 gave unequal ones, in one run of ten."""
CLOCK = Fraction(1, 90_000)
"""Seconds of a tick in films that are written anew: fine enough for every rate of pictures."""
_TRACKS = {"audio": "no sound track", "video": "no picture track"}

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Clip:
    """One recording, decoded when asked for (``types.Recording``).

    data  an encoded file with a sound track, a picture track, or both
    """

    data: bytes = field(repr=False)

    def samples(self, rate: int, seconds: float = MAX_SECONDS) -> Array:
        """The first ``seconds`` of the sound track: float32 [n], mono, within about -1..1, at ``rate`` Hz.

        Raises  DataError: "not a recording" | "no sound track" | "broken recording" | "empty sound track"
        """
        most = round(rate * seconds)
        with _track(self.data, "audio") as (container, stream):
            chunks, have = [], 0
            for chunk in _resampled(container, stream, rate):
                chunks.append(chunk)
                have += len(chunk)
                if have >= most:
                    break
        if not have:
            raise DataError("empty sound track")
        found: Array = np.nan_to_num(np.concatenate(chunks)[:most], posinf=1.0, neginf=-1.0)
        return found

    def frames(self, rate: float, seconds: float = MAX_SECONDS) -> Iterator[Image.Image]:
        """The pictures seen at 0, 1/rate, 2/rate ... s of the first ``seconds`` of the picture track: PIL images, RGB.

        A picture stays until the next one comes, so a slower film shows some twice, and a faster one leaves some out.

        Raises  DataError: "not a recording" | "no picture track" | "broken recording" | "empty picture track"
        """
        most, given, shown, end = max(1, round(rate * seconds)), 0, None, 0.0
        with _track(self.data, "video") as (container, stream):
            for time, frame in _timed(container, stream):
                # rounding: a film at exactly this rate gives each of its pictures once
                while shown is not None and given < most and given / rate < time - 1e-3:
                    yield _upright(shown)
                    given += 1
                if given == most:
                    return
                shown, end = frame, time + _nominal(stream)
            if shown is None:
                raise DataError("empty picture track")
            while given < most and (given == 0 or given / rate < end - 1e-3):
                yield _upright(shown)
                given += 1

    def waves(self, side: int) -> Image.Image:
        """The outline of the first ten seconds of the sound, ``side`` pixels wide and half as high, for thumbnails."""
        sound = np.abs(self.samples(8000, 10.0))
        loud = np.array([part.max(initial=0.0) for part in np.array_split(sound, side)]) / max(
            float(sound.max()), SILENCE
        )
        rows = np.abs(np.linspace(-1, 1, side // 2))[:, None]
        return Image.fromarray(np.where(rows <= loud, 60, 250).astype(np.uint8)).convert("RGB")

    def poster(self) -> Image.Image:
        """The picture in the middle of the first ten seconds, for thumbnails."""
        pictures = list(self.frames(2.0, 10.0))
        return pictures[len(pictures) // 2]


@dataclass(frozen=True, slots=True)
class Checked:
    """What ``check`` found.

    data   the bytes to keep
    size   (width, height) of the picture track in pixels, or None
    facts  of the track: seconds; sound: rate (Hz), channels, silent; pictures: fps, frames
    """

    data: bytes
    size: tuple[int, int] | None
    facts: dict[str, Any]


def check(modality: str, data: bytes, short_side: int | None = None) -> Checked:
    """Decodes a whole track once. Of a film, only the sound track is kept as its audio: copied, not encoded anew.

    modality    audio | video
    short_side  pixels above which the pictures of a film are made smaller and encoded anew (H.264, without sound); None keeps the film
    Raises      DataError, as ``Clip``; "too long"
    """
    return _check_audio(data) if modality == "audio" else _check_video(data, short_side)


def _check_audio(data: bytes) -> Checked:
    with _track(data, "audio") as (container, stream):
        rate, channels, count, peak = stream.rate, stream.channels, 0, 0.0
        for chunk in _resampled(container, stream, rate):
            count += len(chunk)
            _refuse_length(count / rate)
            peak = float(np.maximum(peak, np.abs(chunk).max(initial=0.0)))  # keeps a NaN
        film = any(not _is_cover(other) for other in container.streams.video)
    if not count:
        raise DataError("empty sound track")
    if not np.isfinite(peak):
        raise DataError("broken recording", where="samples that are not finite")
    facts = {"seconds": round(count / rate, 3), "rate": rate, "channels": channels, "silent": peak < SILENCE}
    return Checked(_sound_of(data) if film else data, None, facts)


def _check_video(data: bytes, short_side: int | None) -> Checked:
    count, end, size = 0, 0.0, None
    with _track(data, "video") as (container, stream):
        for time, frame in _timed(container, stream):
            count, end = count + 1, time + _nominal(stream)
            _refuse_length(end)
            size = size or (frame.width, frame.height)
    if size is None:
        raise DataError("empty picture track")
    if short_side is not None and min(size) > short_side:
        data, size = _shrink(data, short_side)
    return Checked(data, size, {"seconds": round(end, 3), "fps": round(count / end, 3), "frames": count})


def _shrink(data: bytes, short_side: int) -> tuple[bytes, tuple[int, int]]:
    """The picture track alone at a smaller size, upright, every picture at its own time; and (width, height), even for H.264."""
    out, film = io.BytesIO(), None
    with (
        _track(data, "video") as (container, stream),
        av.open(out, "w", format="mp4", options={"fflags": "+bitexact"}) as smaller,
    ):
        for time, frame in _timed(container, stream):
            image = _upright(frame)
            if film is None:
                scale = short_side / min(image.size)
                film = smaller.add_stream(
                    "libx264", stream.average_rate or stream.guessed_rate or 25, options=H264 | {"crf": "18"}
                )
                film.width, film.height = (max(2, 2 * round(side * scale / 2)) for side in image.size)
                film.pix_fmt, film.codec_context.time_base = "yuv420p", CLOCK
            image = image.resize((film.width, film.height), Image.Resampling.BICUBIC)
            picture = av.VideoFrame.from_ndarray(np.asarray(image), "rgb24")
            picture.pts, picture.time_base = round(time / CLOCK), CLOCK
            smaller.mux(film.encode(picture))
        assert film is not None  # the caller has counted the pictures
        smaller.mux(film.encode(None))
    return out.getvalue(), (film.width, film.height)


def _refuse_length(seconds: float) -> None:
    if seconds > MAX_SECONDS:
        raise DataError("too long", expected=f"at most {MAX_SECONDS:.0f} s")


def _sound_of(data: bytes) -> bytes:
    """The sound track of a film as a file of its own; the same bytes every time."""
    out = io.BytesIO()
    with _track(data, "audio") as (container, stream):
        # MP4 keeps the encoder's delay in an edit list, which Matroska has no place for
        kind = "mp4" if "mp4" in container.format.name else "matroska"
        with av.open(out, "w", format=kind, options={"fflags": "+bitexact"}) as copy:
            copied = copy.add_stream_from_template(stream)
            for packet in container.demux(stream):
                if packet.dts is not None:
                    packet.stream = copied
                    copy.mux(packet)
    return out.getvalue()


def _is_cover(stream: Any) -> bool:
    """A still picture in a sound file."""
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


@contextmanager
def _track(data: bytes, kind: str) -> Iterator[tuple[InputContainer, Any]]:
    """An opened recording and its first track of a kind; what FFmpeg stumbles over becomes a DataError."""
    try:
        container: Any = av.open(io.BytesIO(data), options={"format_whitelist": FORMATS}, metadata_errors="replace")
    except (av.FFmpegError, ValueError, OSError) as error:
        raise DataError("not a recording", where=_said(error), expected="a video or sound file") from None
    with container:
        streams = [s for s in container.streams if s.type == kind and not (kind == "video" and _is_cover(s))]
        if not streams:
            raise DataError(_TRACKS[kind], expected=f"a recording with {kind}")
        try:
            streams[0].thread_type = "AUTO"
            yield container, streams[0]
        except (av.FFmpegError, ValueError, OSError) as error:
            raise DataError("broken recording", where=_said(error), expected="a file that decodes to its end") from None


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {getattr(error, 'strerror', None) or error}"


def _resampled(container: InputContainer, stream: Any, rate: int) -> Iterator[Array]:
    """Mono float32 samples, chunk by chunk."""
    resampler = av.AudioResampler(format="flt", layout="mono", rate=rate)
    for frame in chain(container.decode(stream), [None]):
        if frame is not None:
            frame.pts = None  # gaps and jumps of a broken clock are no silence
        for out in resampler.resample(frame):
            yield out.to_ndarray()[0]


def _timed(container: InputContainer, stream: Any) -> Iterator[tuple[float, Any]]:
    """(seconds since the first picture, picture); a film without a clock runs at its nominal rate."""
    first = None
    for number, frame in enumerate(container.decode(stream)):
        time = float(frame.time) if frame.time is not None else number / float(stream.average_rate or 25)
        first = time if first is None else first
        yield max(0.0, time - first), frame


def _upright(frame: Any) -> Image.Image:
    """RGB, turned as the film says: telephones held upright write their frames lying."""
    image: Image.Image = frame.to_image()
    return image.rotate(frame.rotation, expand=True) if frame.rotation else image


def _nominal(stream: Any) -> float:
    """Seconds that one picture stays."""
    return 1 / float(stream.average_rate or stream.guessed_rate or 25)
