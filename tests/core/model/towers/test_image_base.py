"""What image towers share: the transform, normalisation on the device, tokens of a map."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ccaco_cli.core.errors import TowerError
from ccaco_cli.core.model.towers.image_base import (
    ImageEncoding,
    ImageModule,
    ImagePreprocess,
    feature_map_tokens,
    image_tower,
    pooled_if_token_width,
)
from ccaco_cli.core.model.towers.tower import TowerSpec

PICTURE = ImagePreprocess((8, 8), (8,), "bicubic", (0.5, 0.25, 0.1), (0.5, 0.2, 0.1))


class Pass(ImageModule):
    def encode(self, pixels: Tensor) -> ImageEncoding:
        if pixels.shape[2] > 16:
            raise RuntimeError("too large")
        return feature_map_tokens(pixels)


def test_transform_crops_the_middle_of_the_short_side() -> None:
    stripes = Image.fromarray(np.repeat(np.arange(24, dtype=np.uint8)[None, :, None] * 10, 8, 0).repeat(3, 2))
    pixels = pickle.loads(pickle.dumps(PICTURE))(stripes)
    assert pixels.dtype == torch.uint8
    assert torch.equal(pixels[0, 0], torch.arange(8, 16, dtype=torch.uint8) * 10)
    squashed = ImagePreprocess((8, 8), (8, 8), "bicubic", (0.0,) * 3, (1.0,) * 3)(stripes)
    assert squashed[0, 0, 0] < 30 and squashed[0, 0, -1] > 200


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "LA"])
def test_transform_takes_every_mode(mode: str) -> None:
    assert PICTURE(Image.new("RGB", (20, 9), "red").convert(mode)).shape == (3, 8, 8)


def test_pixels_are_normalised_as_torchvision_does() -> None:
    from torchvision.transforms.functional import normalize

    pixels = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    features = Pass(PICTURE)({"pixels": pixels})
    wanted = normalize(pixels / 255, PICTURE.mean, PICTURE.std).flatten(2).transpose(1, 2)
    torch.testing.assert_close(features.tokens, wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(features.pooled, wanted.mean(1), atol=1e-5, rtol=1e-5)
    assert features.mask.all() and features.mask.shape == (2, 64)


def test_map_tokens_run_row_by_row() -> None:
    maps = torch.arange(12.0).view(1, 2, 2, 3)
    tokens, pooled, grid = feature_map_tokens(maps)
    assert grid == (2, 3) and pooled is None
    assert tokens[0, :, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert tokens[0, 4].tolist() == [4, 10]


def test_a_pooled_vector_of_another_width_is_not_taken() -> None:
    tokens = torch.zeros(2, 5, 7)
    assert pooled_if_token_width(torch.zeros(2, 6), tokens) is None
    assert pooled_if_token_width(None, tokens) is None
    assert pooled_if_token_width(tokens[:, 0], tokens) is not None


def test_tower_is_measured_and_left_in_its_mode() -> None:
    module = Pass(PICTURE).train()
    tower = image_tower(TowerSpec("x", "y", ""), module, PICTURE, pretrained=False, facts=(), save_assets=str)
    assert (tower.width, tower.tokens, tower.grid, module.training) == (3, 64, (8, 8), True)
    assert "mean" not in module.state_dict()
    wide = ImagePreprocess((32, 32), (32,), "bicubic", PICTURE.mean, PICTURE.std)
    with pytest.raises(TowerError, match=r"32 x 32 \(too large\)"):
        image_tower(TowerSpec("x", "y", ""), module, wide, pretrained=False, facts=(), save_assets=str)
