"""What every image tower shares: pictures in as uint8, normalised on the device, a grid of tokens out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as transforms

from ccaco_cli.core.errors import TowerError
from ccaco_cli.core.model.towers.tower import Tower, TowerSpec
from ccaco_cli.core.model.towers.weights import fingerprint, first_line
from ccaco_cli.core.types import Features

Grid = tuple[int, int] | None
Encoding = tuple[Tensor, Tensor | None, Grid]


@dataclass(frozen=True)
class ImagePreprocess:
    """The evaluation transform of an image tower: PIL image -> uint8 [3, H, W]; what follows (mean, std) happens on the device.

    size           (H, W) of the centre crop
    resize         (short side,) before the crop, or (height, width) to squash
    interpolation  nearest | bilinear | bicubic | lanczos | ...
    mean, std      of each channel, for pixels in 0..1
    """

    size: tuple[int, int]
    resize: tuple[int, ...]
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, image: Image.Image) -> Tensor:
        image = transforms.resize(image.convert("RGB"), list(self.resize), InterpolationMode(self.interpolation))
        pixels: Tensor = transforms.pil_to_tensor(transforms.center_crop(image, list(self.size)))
        return pixels


class PictureModule(nn.Module, ABC):
    """Base of image towers: {"pixels": uint8 [B, 3, H, W]} -> Features."""

    mean: Tensor
    std: Tensor

    def __init__(self, picture: ImagePreprocess):
        super().__init__()
        for name, channels in (("mean", picture.mean), ("std", picture.std)):
            self.register_buffer(name, torch.tensor(channels).view(1, 3, 1, 1) * 255, persistent=False)

    @abstractmethod
    def encode(self, pixels: Tensor) -> Encoding:
        """Normalised pixels [B, 3, H, W] -> (tokens [B, N, W], pooled [B, W] or None for their mean, grid of the last tokens)."""

    def forward(self, inputs: dict[str, Tensor]) -> Features:
        pixels = (inputs["pixels"].to(self.mean.dtype) - self.mean) / self.std
        tokens, pooled, _ = self.encode(
            pixels.contiguous(memory_format=torch.channels_last)
        )  # convolutions gain up to threefold
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        return Features(tokens, mask, tokens.mean(1) if pooled is None else pooled)


def map_tokens(maps: Tensor) -> Encoding:
    """A feature map [B, W, h, w] as h*w tokens, row by row."""
    return maps.flatten(2).transpose(1, 2), None, (maps.shape[-2], maps.shape[-1])


def own_pooled(pooled: Tensor | None, tokens: Tensor) -> Tensor | None:
    """A library's pooled vector, or None (their mean is taken then) where it is of another width than the tokens."""
    return pooled if pooled is not None and pooled.shape == (tokens.shape[0], tokens.shape[2]) else None


def picture_tower(
    spec: TowerSpec,
    module: PictureModule,
    picture: ImagePreprocess,
    *,
    pretrained: bool,
    facts: Sequence[object],
    save_assets: Callable[[Path], str],
) -> Tower:
    """Completes an image tower: runs one black picture through it to learn its width, tokens and grid.

    facts   what names the architecture in the fingerprint
    Raises  TowerError: the network takes no pictures of this size
    """
    training = module.training
    module.eval().to(memory_format=torch.channels_last)
    try:
        with torch.no_grad():
            tokens, _, grid = module.encode(torch.zeros(1, 3, *picture.size))
    except (RuntimeError, AssertionError, ValueError) as error:
        size = f"pictures of {picture.size[0]} x {picture.size[1]}"
        raise TowerError(
            f"this tower takes no {size} ({first_line(error)})", where=spec, expected="another size, 0 for its own"
        ) from error
    module.train(training)
    return Tower(
        spec=spec,
        modality="image",
        module=module,
        preprocess=picture,
        width=tokens.shape[2],
        tokens=tokens.shape[1],
        grid=grid,
        pretrained=pretrained,
        fingerprint=fingerprint(module, spec.family, *facts, picture),
        save_assets=save_assets,
    )
