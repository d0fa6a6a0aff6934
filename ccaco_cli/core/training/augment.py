"""Random augmentation of the images of a training batch, on their device. For image towers that are trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from ccaco_cli.core import distributed
from ccaco_cli.core.config import ModelConfig, TowerConfig
from ccaco_cli.core.errors import ConfigError
from ccaco_cli.core.modalities import MODALITIES
from ccaco_cli.core.model.global_batch import global_rows, paired_rows
from ccaco_cli.core.types import PairBatch, move_tensor

BICUBIC = -0.5
"""The parameter of the bicubic kernel of PIL, and of torch with antialiasing (Keys, 1981)."""


def _augments(config: TowerConfig) -> bool:
    return (config.crop, config.grayscale) != (1.0, 0.0)


def check(config: ModelConfig) -> None:
    """Raises ConfigError: augmentation of another modality, or of a locked tower, whose outputs are cached."""
    for modality in MODALITIES:
        tower = config.tower(modality)
        if _augments(tower) and modality != "image":
            raise ConfigError(
                "only images are augmented",
                where=f"model.{modality}",
                expected="crop = 1 and grayscale = 0",
            )
        if _augments(tower) and tower.lock:
            raise ConfigError(
                "a locked tower encodes each image only once",
                where="model.image",
                expected="crop = 1 and grayscale = 0, or no --lock-image",
            )


def augment_pixels(pixels: Tensor, config: TowerConfig, seeds: Tensor) -> Tensor:
    """Random crops and grayscale. Images are never flipped, since captions mention left and right.

    The same seeds crop the same parts on every device. A GPU resizes all images at once; its pixels differ from those
    of a CPU by two levels at most.

    Args:
        pixels: [B, 3, H, W] uint8.
        config: ``crop`` and ``grayscale`` of the image tower.
        seeds: [B] int64, one per image.
    Returns:
        [B, 3, H, W] uint8.
    """
    crop = v2.RandomResizedCrop(pixels.shape[-2:], (config.crop, 1.0), interpolation=v2.InterpolationMode.BICUBIC)
    boxes, gray = _draw(crop, config, seeds)
    if pixels.device.type == "cpu":
        return torch.stack([_augmented(*drawn, crop) for drawn in zip(pixels, boxes, gray, strict=True)])
    cropped = resized_crops(pixels, boxes) if config.crop < 1 else pixels
    is_gray = move_tensor(torch.tensor(gray), pixels.device)[:, None, None, None]
    return torch.where(is_gray, functional.rgb_to_grayscale(cropped, num_output_channels=3), cropped)


def _draw(crop: v2.RandomResizedCrop, config: TowerConfig, seeds: Tensor) -> tuple[list[dict[str, Any]], list[bool]]:
    """Draws the box of each image (empty = no crop), and whether it loses its colours."""
    image = torch.empty(3, *crop.size, dtype=torch.uint8, device="meta")  # only its size is read
    boxes, gray = [], []
    with torch.random.fork_rng(devices=[]):
        for seed in seeds.tolist():
            torch.default_generator.manual_seed(seed)
            boxes.append(crop.make_params([image]) if config.crop < 1 else {})
            gray.append(bool(torch.rand(1) < config.grayscale))
    return boxes, gray


def _augmented(pixels: Tensor, box: dict[str, Any], gray: bool, crop: v2.RandomResizedCrop) -> Tensor:
    """One image [3, H, W] uint8; an empty box = no crop."""
    cropped: Tensor = crop.transform(pixels, box) if box else pixels
    return functional.rgb_to_grayscale(cropped, num_output_channels=3) if gray else cropped


def resized_crops(pixels: Tensor, boxes: Sequence[Mapping[str, int]]) -> Tensor:
    """Resizes a part of each image to the size of the images: bicubic, with antialiasing, in two products per image.

    Args:
        pixels: [B, 3, H, W] uint8.
        boxes: top, left, height and width of the part of each image, in pixels.
    Returns:
        [B, 3, H, W] uint8.
    """
    numbers = [[box["top"], box["height"], box["left"], box["width"]] for box in boxes]
    top, height, left, width = move_tensor(torch.tensor(numbers, dtype=torch.float32), pixels.device).unbind(1)
    rows, columns = _resize_weights(top, height, pixels.shape[-2]), _resize_weights(left, width, pixels.shape[-1])
    with torch.autocast(pixels.device.type, enabled=False):
        # whole levels between the two directions, as on a CPU
        wide = (pixels.float() @ columns[:, None].transpose(-1, -2)).round().clamp(0, 255)
        resized = (rows[:, None] @ wide).round().clamp(0, 255)
    return resized.to(torch.uint8)


def _resize_weights(start: Tensor, length: Tensor, size: int) -> Tensor:
    """The share of each pixel of a line in each pixel of its resized part: [B, new pixels, pixels].

    A part is never longer than the line, so it is only enlarged, and antialiasing changes nothing.

    Args:
        start, length: [B] first pixel and number of pixels of the part.
        size: pixels of the line, and of the resized part.
    """
    number = torch.arange(size, device=start.device, dtype=torch.float32)
    center = (number + 0.5) * (length[:, None] / size)  # of each new pixel, from the start of the part
    place = number + 0.5 - start[:, None]  # of each pixel
    distance = (place[:, None] - center[:, :, None]).abs()
    near = (BICUBIC + 2) * distance**3 - (BICUBIC + 3) * distance**2 + 1
    far = BICUBIC * (distance**3 - 5 * distance**2 + 8 * distance - 4)
    weight = torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))
    inside = (place > 0) & (place < length[:, None])
    weight = weight * inside[:, None]
    return weight / weight.sum(-1, keepdim=True)


def augment(
    batch: PairBatch, config: ModelConfig, modalities: tuple[str, str], generator: torch.Generator
) -> PairBatch:
    """A batch with augmented images.

    Seeds are drawn for the global batch, so they do not depend on the number of processes.
    """
    if "image" not in modalities or not _augments(config.tower("image")):
        return batch
    side = "a" if modalities[0] == "image" else "b"
    inputs = getattr(batch, side)
    rows = len(inputs["pixels"])
    with paired_rows(len(batch.rows)):
        local_rows = global_rows(rows)
    seeds = torch.randint(2**62, [rows * distributed.world()], generator=generator, device=generator.device)
    pixels = augment_pixels(inputs["pixels"], config.tower("image"), seeds[local_rows])
    return replace(batch, **{side: inputs | {"pixels": pixels}})
