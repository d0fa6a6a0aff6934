"""Compares a side of a pretrained dual encoder with the library that published it, when its tower is built.

A model that ``ccaco`` would encode differently from its own library is refused: its zero-shot scores would be wrong,
and nothing would show it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ccaco_cli.core.errors import TowerError
from ccaco_cli.core.model.towers.image_base import ImageModule, ImagePreprocess
from ccaco_cli.core.model.towers.probing import evaluation
from ccaco_cli.core.model.towers.tower import TowerSpec

LIMIT = 1e-4
"""Largest difference of normalised embeddings; float32 results of another batch shape differ by about 1e-6."""
PIXEL_LIMIT = 1e-3
"""Largest difference of normalised pixels; one level of 255 is at least 4e-3."""
SIZES = ((90, 70), (64, 150))
"""(width, height) of the compared pictures."""
TEXTS = ("a dog", "two very long red balls roll over the green hills of a distant land, and never stop. " * 4, "")


def check_pixels(
    spec: TowerSpec, module: ImageModule, preprocess: ImagePreprocess, library: Callable[[Image.Image], Tensor]
) -> list[Tensor]:
    """Compares preprocessing and normalisation with the library's.

    Args:
        library: PIL image -> normalised pixels [3, H, W].
    Returns:
        The library's pixels of each compared picture.
    Raises:
        TowerError: the pixels differ.
    """
    all_expected = []
    for image in map(picture, SIZES):
        expected = library(image)
        pixels = (preprocess(image)[None].float() - module.mean) / module.std
        if pixels[0].shape != expected.shape or _difference(pixels[0], expected) > PIXEL_LIMIT:
            raise _refusal(spec, "image preprocessing")
        all_expected.append(expected)
    return all_expected


def check_image_side(
    spec: TowerSpec,
    module: ImageModule,
    preprocess: ImagePreprocess,
    encode: Callable[[Tensor], Tensor],
    transform: Callable[[Image.Image], Tensor],
) -> None:
    """Compares preprocessing and embeddings of an image tower with the library's.

    Args:
        encode: the library's, [B, 3, H, W] -> [B, E].
        transform: the library's, PIL image -> normalised pixels [3, H, W].
    Raises:
        TowerError: pixels or embeddings differ.
    """
    expected_pixels = check_pixels(spec, module, preprocess, transform)
    with evaluation(module):
        pixels = torch.stack([preprocess(image) for image in map(picture, SIZES)])
        embeddings, expected = module({"pixels": pixels}).pooled, encode(torch.stack(expected_pixels))
    _compare(spec, embeddings, expected, "image tower")


def check_text_side(
    spec: TowerSpec,
    module: nn.Module,
    tokenize: Callable[[list[str]], dict[str, Tensor]],
    encode: Callable[[Sequence[str]], Tensor],
) -> None:
    """Compares the embeddings of a short, an over-long and an empty text with the library's.

    Args:
        encode: the library's, n texts -> [n, E].
    Raises:
        TowerError: they differ.
    """
    with evaluation(module):
        inputs = tokenize(list(TEXTS))
        embeddings, expected = module({"ids": inputs["ids"], "mask": inputs["mask"]}).pooled, encode(TEXTS)
    _compare(spec, embeddings, expected, "text tower")


def _compare(spec: TowerSpec, embeddings: Tensor, expected: Tensor, part: str) -> None:
    same_shape = embeddings.shape == expected.shape
    if not same_shape or _difference(F.normalize(embeddings, dim=-1), F.normalize(expected, dim=-1)) > LIMIT:
        raise _refusal(spec, part)


def _difference(first: Tensor, second: Tensor) -> float:
    return float((first - second).abs().nan_to_num(torch.inf).max())


def picture(size: tuple[int, int]) -> Image.Image:
    """A smooth picture with some contrast at every scale."""
    coarse = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def _refusal(spec: TowerSpec, part: str) -> TowerError:
    modality = part.split()[0]
    return TowerError(
        f"the {part} of this model gives other results here than in its own library",
        where=spec,
        expected="a model that can be reproduced exactly",
        next=f"train heads on it: --{modality}-tower SPEC",
    )


def as_pixels(processor: Any) -> Callable[[Image.Image], Tensor]:
    """The transform of a transformers image processor: PIL image -> normalised pixels [3, H, W]."""

    def transform(image: Image.Image) -> Tensor:
        pixels: Tensor = processor(image, return_tensors="pt")["pixel_values"][0]
        return pixels

    return transform
