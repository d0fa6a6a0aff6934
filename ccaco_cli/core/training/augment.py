"""Random augmentation of the images of a training batch, on their device. For image towers that are trained."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torchvision.transforms import v2

from ccaco_cli.core import distributed
from ccaco_cli.core.config import ModelConfig, TowerConfig
from ccaco_cli.core.errors import ConfigError
from ccaco_cli.core.modalities import MODALITIES
from ccaco_cli.core.model.global_batch import global_rows, paired_rows
from ccaco_cli.core.types import PairBatch


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

    Args:
        pixels: [B, 3, H, W] uint8.
        config: ``crop`` and ``grayscale`` of the image tower.
        seeds: [B] int64, one per image.
    Returns:
        [B, 3, H, W] uint8.
    """
    crop = v2.RandomResizedCrop(pixels.shape[-2:], (config.crop, 1.0), interpolation=v2.InterpolationMode.BICUBIC)
    transform = v2.Compose([crop] * (config.crop < 1) + [v2.RandomGrayscale(config.grayscale)])
    augmented = []
    with torch.random.fork_rng(devices=[]):
        for image, seed in zip(pixels, seeds.tolist(), strict=True):
            torch.default_generator.manual_seed(seed)
            augmented.append(transform(image))
    return torch.stack(augmented)


def augment(
    batch: PairBatch, config: ModelConfig, modalities: tuple[str, str], generator: torch.Generator
) -> PairBatch:
    """A batch with augmented images.

    Seeds are drawn for the global batch, so they do not depend on the number of processes.
    """
    if "image" not in modalities or not _augments(config.image):
        return batch
    side = "a" if modalities[0] == "image" else "b"
    inputs = getattr(batch, side)
    rows = len(inputs["pixels"])
    with paired_rows(len(batch.rows)):
        local_rows = global_rows(rows)
    seeds = torch.randint(2**62, [rows * distributed.world()], generator=generator, device=generator.device)
    pixels = augment_pixels(inputs["pixels"], config.image, seeds[local_rows])
    return replace(batch, **{side: inputs | {"pixels": pixels}})
