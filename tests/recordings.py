"""Small real recordings for tests, written by FFmpeg's encoders."""

from __future__ import annotations

import io
from fractions import Fraction
from typing import Any

import av
import numpy as np

CODECS = {"wav": "pcm_s16le", "flac": "flac", "mp3": "libmp3lame", "opus": "libopus", "adts": "aac"}


def tone(seconds: float, rate: int, hertz: float = 500.0, channels: int = 1, loud: float = 0.5) -> Any:
    """float32 [channels, n]."""
    time = np.arange(round(seconds * rate)) / rate
    return np.repeat(loud * np.sin(2 * np.pi * hertz * time)[None], channels, 0).astype(np.float32)


def sound(samples: Any, rate: int, kind: str = "wav") -> bytes:
    """A sound file of float samples [channels, n]."""
    out = io.BytesIO()
    with av.open(out, "w", format="ogg" if kind == "opus" else kind) as file:
        _mux_sound(file, _sound_track(file, CODECS[kind], samples, rate), samples, rate)
    return out.getvalue()


def film(
    seconds: float = 1.0, fps: int = 8, side: int = 32, samples: Any = None, rate: int = 16_000, stripe: bool = False
) -> bytes:
    """An MP4 whose frame k is grey 10 * k + 20 (``stripe``: its left quarter white), with audio [channels, n]."""
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as file:
        stream = file.add_stream("libx264", fps, options={"preset": "ultrafast", "qp": "0"})
        stream.width = stream.height = side
        stream.pix_fmt = "yuv444p"
        track = None if samples is None else _sound_track(file, "aac", samples, rate)
        for number in range(round(seconds * fps)):
            pixels = np.full((side, side, 3), (10 * number + 20) % 250, np.uint8)
            pixels[:, : side // 4 if stripe else 0] = 255
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        file.mux(stream.encode(None))
        if track is not None:
            _mux_sound(file, track, samples, rate)
    return out.getvalue()


def _sound_track(file: Any, codec: str, samples: Any, rate: int) -> Any:
    return file.add_stream(codec, rate, layout=_layout(samples))


def _layout(samples: Any) -> str:
    return "mono" if len(samples) == 1 else "stereo"


def _mux_sound(file: Any, stream: Any, samples: Any, rate: int) -> None:
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples, np.float32), "fltp", _layout(samples))
    frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
    resampler = av.AudioResampler(format=stream.codec_context.format, layout=_layout(samples), rate=rate)
    for part in (*resampler.resample(frame), *resampler.resample(None)):
        file.mux(stream.encode(part))
    file.mux(stream.encode(None))
