"""A small model and small batches on any device, for the checks of a GPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ccaco_cli.core import config_io
from ccaco_cli.core.config import RunConfig
from ccaco_cli.core.data.loader import Column
from ccaco_cli.core.encoding.samples import sample_column
from ccaco_cli.core.model import aligner as aligners
from ccaco_cli.core.model.aligner import Aligner
from ccaco_cli.core.model.towers.tower import Tower
from ccaco_cli.core.types import PairBatch

SIZE = 64
WORDS = ("red", "blue", "green", "small", "large", "cat", "dog", "bird", "table", "car")


def model(device: Any, **settings: Any) -> tuple[Aligner, dict[str, Tower], RunConfig]:
    """The default model on images of 64 pixels, without dropout, with the same weights at every call."""
    config = config_io.override(RunConfig(), {"model.image.size": SIZE, "loss.cross_batch": 16} | settings)
    torch.manual_seed(0)
    aligner, towers = aligners.build(config.model, config.loss, ("image", "text"))
    for module in aligner.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return aligner.to(device), towers, config


def captions(count: int) -> list[str]:
    """Different captions of two to four words."""
    return [" ".join([WORDS[n % 10], WORDS[n // 10 % 10], *WORDS[: n % 3]]) for n in range(count)]


def pixels(count: int) -> Tensor:
    """[count, 3, 64, 64] uint8."""
    shape = (count, 3, SIZE, SIZE)
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def batch(tower: Tower, count: int) -> PairBatch:
    """A batch of pairs on the CPU; ``tower`` tokenises."""
    tokens = tower.preprocess(captions(count))
    text = {name: tokens[name] for name in ("ids", "mask")}
    rows = torch.arange(count)
    return PairBatch({"pixels": pixels(count)}, text, rows, rows, rows * 0)


def columns(towers: dict[str, Tower], count: int) -> dict[str, Column]:
    """Items to encode, of both modalities."""
    from PIL import Image

    images = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in pixels(count)]
    return {"image": sample_column(towers["image"], images), "text": sample_column(towers["text"], captions(count))}
