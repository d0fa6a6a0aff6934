"""Samples as Python users have them (paths, bytes, PIL images, arrays) -> samples as ``encode_samples`` takes them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ccaco_cli.core.data.arrays import as_rows
from ccaco_cli.core.data.checks import upright_rgb
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.modalities import MODALITIES

Array = np.ndarray[Any, Any]


def as_samples(modality: str, samples: Any) -> list[Any]:
    """A list of samples as ``encode_samples`` takes them: texts, paths, bytes, PIL images or recordings.

    Args:
        samples: a list (or other iterable) of samples, or one sample alone, in any form that ``Model`` describes.
    Raises:
        DataError: a sample of another form.
    """
    entry = MODALITIES[modality]
    alone = isinstance(samples, str | Path | bytes | Image.Image | tuple)
    if isinstance(samples, np.ndarray) and samples.dtype.kind != "U" and samples.ndim <= entry.sample_axes:
        alone = True
    return [entry.convert(sample) for sample in ([samples] if alone else samples)]


def as_text(sample: Any) -> str:
    """A str -> a text."""
    if isinstance(sample, str):
        return str(sample)
    raise _unknown_form("text", sample, "a str")


def as_image(sample: Any) -> Any:
    """A path, bytes, a PIL image, or an array [H, W, 3] or [H, W] uint8 -> an image."""
    if isinstance(sample, str | Path):
        return Path(sample)
    if isinstance(sample, bytes):
        return sample
    if (
        isinstance(sample, np.ndarray)
        and sample.dtype == np.uint8
        and (sample.ndim == 2 or sample.shape[2:] in ((3,), (4,)))
    ):
        sample = Image.fromarray(sample)
    if isinstance(sample, Image.Image):
        return upright_rgb(sample)
    raise _unknown_form("image", sample, "a path, bytes, a PIL image, or an array [H, W, 3] or [H, W] uint8")


def as_audio(sample: Any) -> Any:
    """A path, bytes, or (array [n] or [channels, n] of floats, samples per second) -> a recording."""
    if isinstance(sample, str | Path):
        return Path(sample)
    if isinstance(sample, bytes):
        return sample
    if isinstance(sample, tuple) and len(sample) == 2:
        waveform, rate = np.asarray(sample[0]), sample[1]
        if waveform.ndim in (1, 2) and waveform.size and np.issubdtype(waveform.dtype, np.floating) and int(rate) > 0:
            mono = waveform if waveform.ndim == 1 else waveform.mean(0)
            return _wav(mono.astype(np.float32), int(rate))
    raise _unknown_form(
        "audio", sample, "a path, bytes, or (array [n] or [channels, n] of floats in -1..1, samples per second)"
    )


def as_video(sample: Any) -> Any:
    """A path, bytes, or (array [T, H, W, 3] uint8, frames per second) -> a recording."""
    if isinstance(sample, str | Path):
        return Path(sample)
    if isinstance(sample, bytes):
        return sample
    if isinstance(sample, tuple) and len(sample) == 2:
        frames, rate = np.asarray(sample[0]), float(sample[1])
        if frames.ndim == 4 and frames.shape[-1] == 3 and frames.dtype == np.uint8 and len(frames) and rate > 0:
            return FrameSequence(frames, rate)
    raise _unknown_form("video", sample, "a path, bytes, or (array [T, H, W, 3] uint8, frames per second)")


def as_array(sample: Any) -> Any:
    """A path, bytes, or a NumPy array or lists of numbers [N, W] or [W] -> a sample of arrays."""
    if isinstance(sample, str | Path):
        return Path(sample)
    if isinstance(sample, bytes):
        return sample
    return as_rows(np.asarray(sample))


def _unknown_form(modality: str, sample: Any, expected: str) -> DataError:
    shape = f" of shape {list(sample.shape)} and type {sample.dtype}" if isinstance(sample, np.ndarray) else ""
    return DataError(f"this is no {modality}", where=f"{type(sample).__name__}{shape}", expected=expected)


def _wav(waveform: Array, rate: int) -> bytes:
    """A WAV file of [n] floats, so that arrays are resampled by the same decoder as files."""
    from scipy.io import wavfile

    buffer = io.BytesIO()
    wavfile.write(buffer, rate, waveform)
    return buffer.getvalue()


@dataclass(frozen=True)
class FrameSequence:
    """A video in memory, without sound (``types.Recording``).

    Attributes:
        pixels: [T, H, W, 3] uint8.
        frame_rate: frames per second.
    """

    pixels: Array
    frame_rate: float

    def samples(self, rate: int, seconds: float) -> Any:
        """Raises DataError: there is no sound track."""
        raise DataError(
            "no sound track", where="an array of frames", expected="audio samples, or a video file with sound"
        )

    def frames(self, rate: float, seconds: float) -> Iterator[Image.Image]:
        """The frames shown at 0, 1/rate, 2/rate ... s of the first ``seconds``; PIL images, RGB."""
        length = len(self.pixels) / self.frame_rate
        for number in range(max(1, round(rate * seconds))):
            time = number / rate
            if number and time >= length - 1e-3:  # 1 ms of tolerance, as for files
                return
            yield Image.fromarray(self.pixels[min(int((time + 1e-3) * self.frame_rate), len(self.pixels) - 1)])
