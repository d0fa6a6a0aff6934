"""Pictures of a training batch, changed at random on their device, so that a tower that learns sees none of them twice."""

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


def _wanted(config: TowerConfig) -> bool:
    return (config.crop, config.grayscale) != (1.0, 0.0)


def check(config: ModelConfig) -> None:
    """Raises ConfigError: settings that cannot be, of anything but pictures, or of a tower that sees its pictures once."""
    for modality in MODALITIES:
        tower = config.tower(modality)
        if _wanted(tower) and modality != "image":
            raise ConfigError(
                "only pictures are changed in training",
                where=f"model.{modality}",
                expected="crop = 1 and grayscale = 0",
            )
        if _wanted(tower) and tower.lock:
            raise ConfigError(
                "a locked tower sees each picture once",
                where="model.image",
                expected="crop = 1 and grayscale = 0, or no --lock-image",
            )


def pixels(given: Tensor, config: TowerConfig, seeds: Tensor) -> Tensor:
    """Pictures uint8 [B, 3, H, W] -> the same shape, each changed as its seed [B] says. None is flipped: captions say left and right."""
    crop = v2.RandomResizedCrop(given.shape[-2:], (config.crop, 1.0), interpolation=v2.InterpolationMode.BICUBIC)
    change = v2.Compose([crop] * (config.crop < 1) + [v2.RandomGrayscale(config.grayscale)])
    changed = []
    with torch.random.fork_rng(devices=[]):
        for picture, seed in zip(given, seeds.tolist(), strict=True):
            torch.default_generator.manual_seed(seed)
            changed.append(change(picture))
    return torch.stack(changed)


def augment(
    batch: PairBatch, config: ModelConfig, modalities: tuple[str, str], generator: torch.Generator
) -> PairBatch:
    """A batch with its pictures changed; the draw is of the global batch, whatever the number of processes."""
    if "image" not in modalities or not _wanted(config.image):
        return batch
    side = "a" if modalities[0] == "image" else "b"
    inputs = getattr(batch, side)
    rows = len(inputs["pixels"])
    with paired_rows(len(batch.rows)):
        seeds = torch.randint(2**62, [rows * distributed.world()], generator=generator, device=generator.device).cpu()[
            global_rows(rows)
        ]
    return replace(batch, **{side: inputs | {"pixels": pixels(inputs["pixels"], config.image, seeds)}})
