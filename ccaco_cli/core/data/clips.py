"""Video and audio clips, decoded from encoded bytes by PyAV (FFmpeg's libraries).

Unusual files are handled in one way everywhere. Several channels are mixed to mono. Any sample rate is resampled. The
rotation in a video's metadata is applied. A clip that is shorter than the requested time is used as it is (``loader``
pads and masks it). A silent clip is used like any other, and counted. A missing track is an error, and ``prepare``
lists the sample among the rejects.
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

# an explicit list, because FFmpeg also reads playlists, which name further files and addresses
FORMATS = (
    ""
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,h264,flv,asf,wav,w64,ogg,mp3,flac,aac,ac3,aiff,au,caf,amr"
)
SILENCE = 1e-4
"""Peak amplitude (full scale = 1) below which a track counts as silent (-80 dB)."""
MAX_SECONDS = 3600.0
"""Longer clips are rejected: a file of a few kilobytes can declare a length of years."""
BITEXACT = {"flags": "+bitexact"}
"""Options of every encoder: no version numbers in the bytes."""
H264 = BITEXACT | {"preset": "ultrafast", "x264-params": "threads=1:asm=0"}
"""Equal frames give equal bytes. With its assembly code x264 gave different bytes in one run of ten."""
TIME_BASE = Fraction(1, 90_000)
"""Seconds per tick in re-encoded videos: fine enough for every frame rate."""
_MISSING_TRACK = {"audio": "no sound track", "video": "no picture track"}

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Clip:
    """One clip, decoded on demand (a ``types.Recording``).

    Attributes:
        data: an encoded file with a sound track, a picture track, or both.
    """

    data: bytes = field(repr=False)

    def samples(self, rate: int, seconds: float = MAX_SECONDS) -> Array:
        """Decodes the first ``seconds`` of the sound track.

        Returns:
            [n] float32, mono, about -1..1, at ``rate`` Hz.
        Raises:
            DataError: "not a recording" | "no sound track" | "broken recording" | "empty sound track".
        """
        max_samples = round(rate * seconds)
        with _track(self.data, "audio") as (container, stream):
            chunks, count = [], 0
            for chunk in _resampled(container, stream, rate):
                chunks.append(chunk)
                count += len(chunk)
                if count >= max_samples:
                    break
        if not count:
            raise DataError("empty sound track")
        waveform: Array = np.nan_to_num(np.concatenate(chunks)[:max_samples], posinf=1.0, neginf=-1.0)
        return waveform

    def frames(self, rate: float, seconds: float = MAX_SECONDS) -> Iterator[Image.Image]:
        """Decodes the frames shown at 0, 1/rate, 2/rate ... s of the first ``seconds`` of the picture track.

        A frame is shown until the next one. So a video with a lower frame rate yields some frames twice, and one with
        a higher rate skips some.

        Yields:
            PIL images, RGB.
        Raises:
            DataError: "not a recording" | "no picture track" | "broken recording" | "empty picture track".
        """
        max_frames, count, current, end = max(1, round(rate * seconds)), 0, None, 0.0
        with _track(self.data, "video") as (container, stream):
            for time, frame in _timed(container, stream):
                # 1 ms of tolerance: a video at exactly this rate yields each of its frames once
                while current is not None and count < max_frames and count / rate < time - 1e-3:
                    yield _upright(current)
                    count += 1
                if count == max_frames:
                    return
                current, end = frame, time + _frame_seconds(stream)
            if current is None:
                raise DataError("empty picture track")
            while count < max_frames and (count == 0 or count / rate < end - 1e-3):
                yield _upright(current)
                count += 1


def waveform_picture(data: bytes, side: int) -> Image.Image:
    """Draws the waveform of the first ten seconds of a clip, ``side`` pixels wide and half as high."""
    amplitude = np.abs(Clip(data).samples(8000, 10.0))
    peaks = np.array([part.max(initial=0.0) for part in np.array_split(amplitude, side)])
    peaks = peaks / max(float(amplitude.max()), SILENCE)
    rows = np.abs(np.linspace(-1, 1, side // 2))[:, None]
    return Image.fromarray(np.where(rows <= peaks, 60, 250).astype(np.uint8)).convert("RGB")


def middle_frame(data: bytes, side: int = 0) -> Image.Image:
    """The frame in the middle of the first ten seconds of a clip, at its own size (``side`` is not used)."""
    frames = list(Clip(data).frames(2.0, 10.0))
    return frames[len(frames) // 2]


@dataclass(frozen=True, slots=True)
class CheckedClip:
    """A clip that passed ``check``.

    Attributes:
        data: the bytes to store.
        size: (width, height) of the picture track in pixels, or None.
        facts: seconds; of audio also rate (Hz), channels, silent; of video also fps, frames.
    """

    data: bytes
    size: tuple[int, int] | None
    facts: dict[str, Any]


def check(modality: str, data: bytes, short_side: int | None = None) -> CheckedClip:
    """Decodes a complete track once.

    As the audio of a video file, only its sound track is stored (copied, not re-encoded).

    Args:
        modality: audio | video.
        short_side: pixels above which a video is re-encoded at a smaller size (H.264, without sound); None = keep it.
    Raises:
        DataError: as ``Clip``; "too long".
    """
    return _check_audio(data) if modality == "audio" else _check_video(data, short_side)


def _check_audio(data: bytes) -> CheckedClip:
    with _track(data, "audio") as (container, stream):
        rate, channels, count, peak = stream.rate, stream.channels, 0, 0.0
        for chunk in _resampled(container, stream, rate):
            count += len(chunk)
            _refuse_length(count / rate)
            peak = float(np.maximum(peak, np.abs(chunk).max(initial=0.0)))  # keeps a NaN
        is_video = any(not _is_cover(stream) for stream in container.streams.video)
    if not count:
        raise DataError("empty sound track")
    if not np.isfinite(peak):
        raise DataError("broken recording", where="samples that are not finite")
    facts = {"seconds": round(count / rate, 3), "rate": rate, "channels": channels, "silent": peak < SILENCE}
    return CheckedClip(_sound_track(data) if is_video else data, None, facts)


def _check_video(data: bytes, short_side: int | None) -> CheckedClip:
    count, end, size = 0, 0.0, None
    with _track(data, "video") as (container, stream):
        for time, frame in _timed(container, stream):
            count, end = count + 1, time + _frame_seconds(stream)
            _refuse_length(end)
            size = size or (frame.width, frame.height)
    if size is None:
        raise DataError("empty picture track")
    if short_side is not None and min(size) > short_side:
        data, size = _shrink(data, short_side)
    return CheckedClip(data, size, {"seconds": round(end, 3), "fps": round(count / end, 3), "frames": count})


def _shrink(data: bytes, short_side: int) -> tuple[bytes, tuple[int, int]]:
    """Re-encodes the picture track at a smaller size, rotation applied, timestamps kept.

    Returns:
        MP4 bytes, and (width, height), which are even because H.264 requires it.
    """
    out, encoder = io.BytesIO(), None
    with (
        _track(data, "video") as (container, stream),
        av.open(out, "w", format="mp4", options={"fflags": "+bitexact"}) as target,
    ):
        for time, frame in _timed(container, stream):
            image = _upright(frame)
            if encoder is None:
                scale = short_side / min(image.size)
                encoder = target.add_stream(
                    "libx264", stream.average_rate or stream.guessed_rate or 25, options=H264 | {"crf": "18"}
                )
                encoder.width, encoder.height = (max(2, 2 * round(side * scale / 2)) for side in image.size)
                encoder.pix_fmt, encoder.codec_context.time_base = "yuv420p", TIME_BASE
            image = image.resize((encoder.width, encoder.height), Image.Resampling.BICUBIC)
            resized = av.VideoFrame.from_ndarray(np.asarray(image), "rgb24")
            resized.pts, resized.time_base = round(time / TIME_BASE), TIME_BASE
            target.mux(encoder.encode(resized))
        assert encoder is not None  # the caller has counted the frames
        target.mux(encoder.encode(None))
    return out.getvalue(), (encoder.width, encoder.height)


def _refuse_length(seconds: float) -> None:
    if seconds > MAX_SECONDS:
        raise DataError("too long", expected=f"at most {MAX_SECONDS:.0f} s")


def _sound_track(data: bytes) -> bytes:
    """The sound track of a video as a separate file; equal input gives equal bytes."""
    out = io.BytesIO()
    with _track(data, "audio") as (container, stream):
        # MP4 stores the encoder's delay in an edit list; Matroska cannot
        kind = "mp4" if "mp4" in container.format.name else "matroska"
        with av.open(out, "w", format=kind, options={"fflags": "+bitexact"}) as target:
            target_stream = target.add_stream_from_template(stream)
            for packet in container.demux(stream):
                if packet.dts is not None:
                    packet.stream = target_stream
                    target.mux(packet)
    return out.getvalue()


def _is_cover(stream: Any) -> bool:
    """True for a cover image inside a sound file."""
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


@contextmanager
def _track(data: bytes, kind: str) -> Iterator[tuple[InputContainer, Any]]:
    """Opens a clip and its first track of a kind; FFmpeg's errors become DataErrors."""
    try:
        container: Any = av.open(io.BytesIO(data), options={"format_whitelist": FORMATS}, metadata_errors="replace")
    except (av.FFmpegError, ValueError, OSError) as error:
        raise DataError("not a recording", where=_message(error), expected="a video or sound file") from None
    with container:
        streams = [s for s in container.streams if s.type == kind and not (kind == "video" and _is_cover(s))]
        if not streams:
            raise DataError(_MISSING_TRACK[kind], expected=f"a recording with {kind}")
        try:
            streams[0].thread_type = "AUTO"
            yield container, streams[0]
        except (av.FFmpegError, ValueError, OSError) as error:
            raise DataError(
                "broken recording", where=_message(error), expected="a file that decodes to its end"
            ) from None


def _message(error: Exception) -> str:
    return f"{type(error).__name__}: {getattr(error, 'strerror', None) or error}"


def _resampled(container: InputContainer, stream: Any, rate: int) -> Iterator[Array]:
    """Mono float32 samples, chunk by chunk."""
    resampler = av.AudioResampler(format="flt", layout="mono", rate=rate)
    for frame in chain(container.decode(stream), [None]):
        if frame is not None:
            frame.pts = None  # gaps in the timestamps are not silence
        for out in resampler.resample(frame):
            yield out.to_ndarray()[0]


def _timed(container: InputContainer, stream: Any) -> Iterator[tuple[float, Any]]:
    """Yields (seconds since the first frame, frame); without timestamps, the nominal frame rate is used."""
    first = None
    for number, frame in enumerate(container.decode(stream)):
        time = float(frame.time) if frame.time is not None else number / float(stream.average_rate or 25)
        first = time if first is None else first
        yield max(0.0, time - first), frame


def _upright(frame: Any) -> Image.Image:
    """RGB image with the rotation of the video's metadata applied."""
    image: Image.Image = frame.to_image()
    return image.rotate(frame.rotation, expand=True) if frame.rotation else image


def _frame_seconds(stream: Any) -> float:
    """Nominal seconds per frame."""
    return 1 / float(stream.average_rate or stream.guessed_rate or 25)
