"""JPEG files of training batches that a GPU decodes; torchvision's decoder on the CPU stands for that of the GPU."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ccaco_cli.core.data import gpu_decoding
from ccaco_cli.core.data.gpu_decoding import JpegColumn, decoded, is_plain_jpeg, jpeg_columns
from ccaco_cli.core.data.loader import MediaColumn, PixelColumn
from ccaco_cli.core.errors import ConfigError
from ccaco_cli.core.model.towers.image_base import ImagePreprocess
from ccaco_cli.core.types import PairBatch

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
LEVELS = 6
"""Largest difference of a pixel between both ways."""


def picture(seed: int, size: tuple[int, int] = (60, 48)) -> Image.Image:
    """A smooth image."""
    noise = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def file(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return file(picture(5), exif=exif, quality=95)


FILES = [
    file(picture(0), quality=95),
    file(picture(1), "PNG"),
    file(picture(2, (48, 64)), quality=95),
    rotated(),
    file(picture(3).convert("L"), quality=95),
    file(picture(4).convert("CMYK"), quality=95),
]


def column(interpolation: str = "bicubic") -> MediaColumn:
    split: Any = SimpleNamespace(media=lambda modality, items: [FILES[i] for i in items])
    preprocess = ImagePreprocess((24, 24), (24,), interpolation, (0.5,) * 3, (0.5,) * 3)
    media_column = MediaColumn.__new__(MediaColumn)
    media_column.split, media_column.modality, media_column.preprocess = split, "image", preprocess
    return media_column


@pytest.fixture
def jpeg_column(monkeypatch: pytest.MonkeyPatch) -> JpegColumn:
    jpeg = JpegColumn.__new__(JpegColumn)
    vars(jpeg).update(vars(column()))
    return jpeg


def test_a_gpu_decodes_plain_jpegs_only() -> None:
    assert [is_plain_jpeg(data) for data in FILES] == [True, False, True, False, True, False]
    assert not is_plain_jpeg(b"\xff\xd8 damaged")
    assert not is_plain_jpeg(b"")


@pytest.mark.parametrize("items", [[0, 1, 2, 3, 4, 5], [1, 3], [0, 2], [4]], ids=str)
def test_pixels_are_those_of_the_cpu_but_for_a_few_levels(jpeg_column: JpegColumn, items: list[int]) -> None:
    chosen = np.array(items)
    expected = column().inputs(chosen)["pixels"]
    inputs = jpeg_column.inputs(chosen)
    assert int(inputs["sizes"].sum()) == len(inputs["encoded"])
    pixels = jpeg_column.decode_batch(inputs, CPU)["pixels"]
    assert pixels.dtype == torch.uint8 and pixels.shape == expected.shape
    assert int((pixels.int() - expected.int()).abs().max()) <= LEVELS
    for row, item in enumerate(items):
        if not is_plain_jpeg(FILES[item]):
            assert torch.equal(pixels[row], expected[row])


def test_a_batch_is_decoded_before_it_is_copied(jpeg_column: JpegColumn) -> None:
    rows = torch.arange(3)
    inputs = jpeg_column.inputs(np.arange(3))
    batch = PairBatch(inputs, {"ids": rows[:, None]}, rows, rows, rows)
    result = decoded(batch, (jpeg_column, column()), CPU)
    assert set(result.a) == {"pixels"} and result.b is batch.b
    assert decoded(batch, (column(), column()), CPU).a is inputs


def test_files_travel_to_the_decoder_on_the_cpu(jpeg_column: JpegColumn, monkeypatch: pytest.MonkeyPatch) -> None:
    devices: list[Any] = []

    def decode_jpeg(files: Any, mode: Any, device: Any) -> Any:
        devices.extend([device, *(data.device for data in files)])
        return [torch.zeros(3, 30, 30, dtype=torch.uint8) for _ in files]

    monkeypatch.setattr(gpu_decoding, "decode_jpeg", decode_jpeg)
    monkeypatch.setattr(gpu_decoding, "move_tensor", lambda tensor, device: tensor)
    jpeg_column.decode_batch(jpeg_column.inputs(np.arange(3)), GPU)
    assert devices == [GPU, CPU, CPU]


def test_it_is_refused_where_nothing_can_be_decoded_on_a_gpu() -> None:
    images, text = column(), SimpleNamespace()
    with pytest.raises(ConfigError, match=r"only a GPU decodes .* device cpu"):
        jpeg_columns({"image": images}, CPU)
    for other in (PixelColumn.__new__(PixelColumn), column("lanczos")):
        with pytest.raises(ConfigError, match="no images are decoded"):
            jpeg_columns({"image": other, "text": text}, GPU)  # type: ignore[dict-item]
