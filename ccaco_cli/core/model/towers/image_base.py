"""What every image tower shares: uint8 pixels as input, normalisation on the device, a grid of tokens as output."""

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
from torchvision.transforms.v2 import functional as tensor_transforms

from ccaco_cli.core.errors import TowerError
from ccaco_cli.core.model.towers.dual_encoders import LogitScale
from ccaco_cli.core.model.towers.pooling import Pooling
from ccaco_cli.core.model.towers.tower import JointSpace, Tower, TowerSpec
from ccaco_cli.core.model.towers.weights import fingerprint, first_line
from ccaco_cli.core.types import Features

Grid = tuple[int, int] | None
ImageEncoding = tuple[Tensor, Tensor | None, Grid]
"""(tokens [B, N, W], pooled [B, W] or None = their mean, (height, width) of the grid of the last tokens)."""


@dataclass(frozen=True)
class ImagePreprocess:
    """The evaluation transform of an image tower: PIL image -> uint8 [3, H, W]. Normalisation follows on the device.

    Attributes:
        size: (H, W) of the centre crop.
        resize: (short side,) before the crop, or (height, width) to squash.
        interpolation: nearest | bilinear | bicubic | lanczos | ...
        mean, std: of each channel, for pixels in 0..1.
        exact: as the library of a pretrained model does it: JPEG files are decoded at full size, not scaled.
        resize_tensor: resize the uint8 tensor (transformers' image processors), not the PIL image; the results differ
            by a level.
        crop_down: of two middle positions the crop takes the upper and left one (transformers), not the even one.
    """

    size: tuple[int, int]
    resize: tuple[int, ...]
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    exact: bool = False
    resize_tensor: bool = False
    crop_down: bool = False

    def __call__(self, image: Image.Image) -> Tensor:
        image = image.convert("RGB")
        interpolation = InterpolationMode(self.interpolation)
        if self.resize_tensor:
            return self._crop(
                tensor_transforms.resize(transforms.pil_to_tensor(image), list(self.resize), interpolation)
            )
        return self._crop(transforms.pil_to_tensor(transforms.resize(image, list(self.resize), interpolation)))

    def _crop(self, pixels: Tensor) -> Tensor:
        if not self.crop_down:
            return transforms.center_crop(pixels, list(self.size))  # type: ignore[no-any-return]
        top, left = ((side - final) // 2 for side, final in zip(pixels.shape[1:], self.size, strict=True))
        return transforms.crop(pixels, top, left, *self.size)  # type: ignore[no-any-return]


class ImageModule(nn.Module, ABC):
    """Base class of image towers: {"pixels": uint8 [B, 3, H, W]} -> Features.

    Attributes:
        pooled_from: how the pooled vector of ``encode`` follows from the tokens, where it returns one.
    """

    pooled_from: Pooling = "model"
    mean: Tensor
    std: Tensor

    def __init__(self, preprocess: ImagePreprocess):
        super().__init__()
        for name, channels in (("mean", preprocess.mean), ("std", preprocess.std)):
            self.register_buffer(name, torch.tensor(channels).view(1, 3, 1, 1) * 255, persistent=False)

    @abstractmethod
    def encode(self, pixels: Tensor) -> ImageEncoding:
        """Encodes normalised pixels [B, 3, H, W]."""

    def forward(self, inputs: dict[str, Tensor]) -> Features:
        pixels = (inputs["pixels"].to(self.mean.dtype) - self.mean) / self.std
        # convolutions are up to three times as fast with channels last
        tokens, pooled, _ = self.encode(pixels.contiguous(memory_format=torch.channels_last))
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        return Features(tokens, mask, tokens.mean(1) if pooled is None else pooled)


def feature_map_tokens(feature_map: Tensor) -> ImageEncoding:
    """A feature map [B, W, h, w] as h * w tokens, row by row."""
    return feature_map.flatten(2).transpose(1, 2), None, (feature_map.shape[-2], feature_map.shape[-1])


def pooled_if_token_width(pooled: Tensor | None, tokens: Tensor) -> Tensor | None:
    """Returns a library's pooled vector [B, W], or None (then the mean is used) if its width is another one."""
    return pooled if pooled is not None and pooled.shape == (tokens.shape[0], tokens.shape[2]) else None


def image_tower(
    spec: TowerSpec,
    module: ImageModule,
    preprocess: ImagePreprocess,
    *,
    pretrained: bool,
    facts: Sequence[object],
    save_assets: Callable[[Path], str],
    scale: LogitScale | None = None,
) -> Tower:
    """Completes an image tower: encodes one black image to learn its width, tokens and grid.

    Args:
        module: its method ``set_grad_checkpointing``, where it has one, is the capability of the tower.
        facts: what names the architecture in the fingerprint.
        scale: of a pretrained dual encoder whose projection the module applies; None = it applies none.
    Raises:
        TowerError: the network takes no images of this size.
    """
    training = module.training
    module.eval().to(memory_format=torch.channels_last)
    try:
        with torch.no_grad():
            tokens, pooled, grid = module.encode(torch.zeros(1, 3, *preprocess.size))
    except (RuntimeError, AssertionError, ValueError) as error:
        size = f"pictures of {preprocess.size[0]} x {preprocess.size[1]}"
        raise TowerError(
            f"this tower takes no {size} ({first_line(error)})", where=spec, expected="another size, 0 for its own"
        ) from error
    module.train(training)
    space = None if scale is None or pooled is None else JointSpace(pooled.shape[1], *scale)
    return Tower(
        spec=spec,
        modality="image",
        module=module,
        preprocess=preprocess,
        width=tokens.shape[2],
        tokens=tokens.shape[1],
        grid=grid,
        pretrained=pretrained,
        fingerprint=fingerprint(module, spec.family, *facts, preprocess, space),
        space=space,
        save_assets=save_assets,
        input_size=preprocess.size,
        pooled_from="mean" if pooled is None else module.pooled_from,
        set_grad_checkpointing=getattr(module, "set_grad_checkpointing", None),
    )
