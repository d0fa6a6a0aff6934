"""JPEG files of training batches decoded on the GPU, in place of one by one in the processes that load data.

Decoders and resizing differ between GPU and CPU: pixels differ by up to a few levels. So this is an option, and for
training batches only; evaluation and search decode on the CPU.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as transforms

from ccaco_cli.core.data.loader import Array, Column, MediaColumn
from ccaco_cli.core.errors import ConfigError
from ccaco_cli.core.types import PairBatch, move_tensor

ENCODED = "encoded"
"""Key of the bytes of JPEG files in the inputs of a batch; ``decoded`` replaces it."""
INTERPOLATIONS = ("nearest", "bilinear", "bicubic")
"""What torchvision can resize tensors with."""


class JpegColumn(MediaColumn):
    """Images of which JPEG files stay encoded until ``decode_batch``; others are decoded when they are read."""

    def __init__(self, column: MediaColumn):
        super().__init__(column.split, column.modality, column.preprocess)

    def inputs(self, items: Array) -> dict[str, Tensor]:
        """Reads items.

        Returns:
            encoded: uint8, the bytes of all JPEG files, one after another.
            sizes: [B] int64, bytes of each file; 0 = not encoded.
            pixels: uint8 [items that are not encoded, 3, H, W].
        """
        media = self.split.media(self.modality, items)
        encoded = [is_plain_jpeg(data) for data in media]
        files = [np.frombuffer(data, np.uint8) for data, plain in zip(media, encoded, strict=True) if plain]
        pixels = [self.sample(data) for data, plain in zip(media, encoded, strict=True) if not plain]
        sizes = [len(data) if plain else 0 for data, plain in zip(media, encoded, strict=True)]
        height, width = self.preprocess.size  # type: ignore[attr-defined]
        return {
            ENCODED: torch.from_numpy(np.concatenate(files) if files else np.empty(0, np.uint8)),
            "sizes": torch.tensor(sizes),
            "pixels": torch.stack(pixels) if pixels else torch.empty(0, 3, height, width, dtype=torch.uint8),
        }

    def decode_batch(self, inputs: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
        """Decodes the result of ``inputs``: {"pixels": uint8 [B, 3, H, W]} on the device."""
        sizes = inputs["sizes"]
        files = [file for file in inputs[ENCODED].split(sizes.tolist()) if len(file)]  # type: ignore[no-untyped-call]
        order = torch.argsort((sizes == 0).long(), stable=True)  # JPEG files first
        pixels = move_tensor(inputs["pixels"], device)
        if files:
            images = [self.resize(image) for image in decode_files(files, device)]
            pixels = torch.cat([torch.stack(images), pixels])
        return {"pixels": pixels[move_tensor(order.argsort(), device)]}

    def resize(self, image: Tensor) -> Tensor:
        """Resizes and crops a decoded image [3, h, w] as the preprocessing does: uint8 [3, H, W]."""
        preprocess: Any = self.preprocess
        interpolation = InterpolationMode(preprocess.interpolation)
        resized = transforms.resize(image, list(preprocess.resize), interpolation, antialias=True)
        cropped: Tensor = transforms.center_crop(resized, list(preprocess.size))
        return cropped


def is_plain_jpeg(data: bytes) -> bool:
    """Whether a file is a JPEG that needs no rotation and no change of colours: a GPU decodes no others."""
    if not data.startswith(b"\xff\xd8"):
        return False
    try:
        image = Image.open(io.BytesIO(data), formats=("JPEG",))  # reads the header only
        return image.mode in ("RGB", "L") and image.getexif().get(ExifTags.Base.Orientation, 1) == 1
    except Exception:  # Pillow's readers raise many kinds of exceptions; the decoder on the CPU names the fault
        return False


def decode_files(files: list[Tensor], device: torch.device) -> list[Tensor]:
    """Decodes JPEG files to images [3, h, w] uint8 on the device."""
    with warnings.catch_warnings():  # torchvision names TorchCodec as its successor, which is not a dependency here
        warnings.simplefilter("ignore")
        images: list[Tensor] = decode_jpeg(files, ImageReadMode.RGB, device)  # type: ignore[assignment]
    return images


def decoded(batch: PairBatch, columns: tuple[Column, Column], device: torch.device) -> PairBatch:
    """A batch of which the JPEG files are decoded on the device; all other tensors stay where they are.

    Args:
        columns: those that the batch was read from.
    """
    a, b = (
        column.decode_batch(inputs, device) if isinstance(column, JpegColumn) else inputs
        for column, inputs in zip(columns, (batch.a, batch.b), strict=True)
    )
    return replace(batch, a=a, b=b)


def jpeg_columns(columns: Mapping[str, Column], device: torch.device) -> dict[str, Column]:
    """The columns of a training split, with JPEG files decoded on the device.

    Raises:
        ConfigError: the device is no GPU, or no column decodes images that a GPU can resize.
    """
    where = "gpu_decode = true"
    if device.type != "cuda":
        raise ConfigError("only a GPU decodes JPEG files", where=f"{where}, device {device}", expected="--device cuda")
    chosen = {
        name: JpegColumn(column)
        for name, column in columns.items()
        if isinstance(column, MediaColumn) and _can_decode(column)
    }
    if not chosen:
        raise ConfigError(
            "no images are decoded during this training that a GPU could decode",
            where=where,
            expected="an image tower that is trained, with images above 128 pixels",
        )
    return {**columns, **chosen}


def _can_decode(column: MediaColumn) -> bool:
    resizes = getattr(getattr(column, "preprocess", None), "interpolation", "") in INTERPOLATIONS
    return type(column) is MediaColumn and column.modality == "image" and resizes
