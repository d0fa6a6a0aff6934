from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from ccaco_cli.core.config import TowerConfig
from ccaco_cli.core.errors import TowerError
from ccaco_cli.core.model.towers import build
from ccaco_cli.core.model.towers.tower import Tower


def build_tower(tiles: str) -> Tower:
    torch.manual_seed(0)
    tower = build(TowerConfig("tiny", size=32, tiles=tiles), "image")
    tower.module.eval()
    return tower


def test_tiles_are_seen_each_by_itself_behind_an_overview() -> None:
    single_tile, tower = build_tower(""), build_tower("2x3")
    pixels = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    features = tower.module({"pixels": pixels})
    assert tower.grid == (4, 6) and tower.tokens == 4 + 24 and features.tokens.shape == (2, 28, tower.width)
    grid = features.tokens[:, 4:].view(2, 4, 6, -1)
    for row in range(2):
        for column in range(3):
            tile = pixels[:, :, 32 * row : 32 * row + 32, 32 * column : 32 * column + 32]
            wanted = single_tile.module({"pixels": tile}).tokens.view(2, 2, 2, -1)
            assert torch.allclose(grid[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2], wanted, atol=1e-5)
    small = torch.nn.functional.adaptive_avg_pool2d(pixels.float(), (32, 32))
    overview = single_tile.module({"pixels": small})
    assert torch.allclose(features.tokens[:, :4], overview.tokens, atol=1e-5)
    assert torch.allclose(features.pooled, overview.pooled, atol=1e-5)


def test_pictures_are_made_as_large_as_the_tiles() -> None:
    picture = Image.new("RGB", (200, 100), "red")
    assert build_tower("2x3").preprocess(picture).shape == (3, 64, 96)
    assert build_tower("2x2").preprocess(picture).shape == (3, 64, 64)
    assert build_tower("").fingerprint != build_tower("2x2").fingerprint != build_tower("4x1").fingerprint
    assert build_tower("2x2").save_assets(Path("nowhere")) == "tiny"


def test_checkpointing_gives_the_same_gradients() -> None:
    pixels = {"pixels": torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)}
    grads = []
    for enable in (False, True):
        tower = build_tower("2x2")
        tower.module.set_grad_checkpointing(enable)  # type: ignore[operator]
        tower.module(pixels).tokens.square().sum().backward()
        grads.append([p.grad for p in tower.module.parameters() if p.grad is not None])
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize(("modality", "tiles"), [("image", "2"), ("image", "0x2"), ("text", "2x2")])
def test_what_cannot_be_tiled_is_refused(modality: str, tiles: str) -> None:
    with pytest.raises(TowerError, match="tiles"):
        build(TowerConfig("tiny", tiles=tiles), modality)
