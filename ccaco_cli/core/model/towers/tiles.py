"""Large images for a tower of fixed input size: an overview, and tiles at full resolution, one pass each."""

from __future__ import annotations

import re
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ccaco_cli.core.errors import TowerError
from ccaco_cli.core.model.towers.image_base import ImagePreprocess
from ccaco_cli.core.model.towers.tower import Tower
from ccaco_cli.core.model.towers.weights import fingerprint
from ccaco_cli.core.types import Features

TILES_PER_PASS = 16
"""Tiles of one pass through the tower, over all images of the batch; it limits the memory of activations."""


class TiledModule(nn.Module):
    """{"pixels": uint8 [B, 3, rows * h, columns * w]} -> Features.

    Tokens are those of the downscaled image, then those of all tiles as one grid, row by row (as in LLaVA-NeXT's
    AnyRes); pooled is the overview's. With gradient checkpointing a pass is recomputed in the backward pass (batch
    norms then update twice).

    Args:
        tower: module of an image tower.
        size: (h, w), the input size of the tower.
        tiles: (rows, columns) of the image.
        grid: (height, width) of the tower's patch grid.
    """

    def __init__(self, tower: nn.Module, size: tuple[int, int], tiles: tuple[int, int], grid: tuple[int, int]):
        super().__init__()
        self.tower, self.size, self.tiles, self.grid = tower, size, tiles, grid
        self.checkpointing = False

    def forward(self, inputs: dict[str, Tensor]) -> Features:
        pixels, (height, width), (rows, columns) = inputs["pixels"], self.size, self.tiles
        batch = len(pixels)
        overview = self.tower({"pixels": F.adaptive_avg_pool2d(pixels.float(), self.size)})
        tile_pixels = pixels.view(batch, 3, rows, height, columns, width).permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
        patches = torch.cat([self._encode_tiles(part) for part in torch.split(tile_pixels, TILES_PER_PASS)])
        # [B * tiles, patches of a tile, W] -> one grid over all tiles of an image
        patches = patches.view(batch, rows, columns, *self.grid, -1).transpose(2, 3)
        tokens = torch.cat([overview.tokens, patches.reshape(batch, -1, patches.shape[-1])], 1)
        return Features(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device), overview.pooled)

    def _encode_tiles(self, pixels: Tensor) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            patches: Tensor = checkpoint(self._patches, pixels, use_reentrant=False)
            return patches
        return self._patches(pixels)

    def _patches(self, pixels: Tensor) -> Tensor:
        tokens: Tensor = self.tower({"pixels": pixels}).tokens
        return tokens[:, -self.grid[0] * self.grid[1] :]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.checkpointing = enable


def with_tiles(tower: Tower, tiles: str) -> Tower:
    """Builds a tower over ``tiles`` (ROWSxCOLUMNS) squares of the tower's own input size; "" = the tower as it is.

    Raises:
        TowerError: ``tiles`` cannot be read, or the tower has no patch grid.
    """
    if not tiles:
        return tower
    if not (match := re.fullmatch(r"([1-9]\d{0,2})x([1-9]\d{0,2})", tiles)):
        raise TowerError(
            "cannot read tiles", where=f"tiles = {tiles!r}", expected="ROWSxCOLUMNS, like 8x8, at most 999x999"
        )
    if tower.grid is None or not isinstance(tower.preprocess, ImagePreprocess):
        raise TowerError(
            "a tower without a grid of patches has no tiles", where=tower.spec, expected="an image tower with a grid"
        )
    rows, columns = int(match[1]), int(match[2])
    height, width = tower.preprocess.size
    size = rows * height, columns * width
    # a square image is cropped as the tower does it; another shape is squashed, so that nothing is lost
    resize = tuple(rows * side for side in tower.preprocess.resize) if rows == columns else size
    grid = rows * tower.grid[0], columns * tower.grid[1]
    module = TiledModule(tower.module, (height, width), (rows, columns), tower.grid)
    return replace(
        tower,
        module=module,
        preprocess=replace(tower.preprocess, size=size, resize=resize),
        tokens=tower.tokens + grid[0] * grid[1],
        grid=grid,
        fingerprint=fingerprint(nn.Module(), tower.fingerprint, tiles),
        input_size=size,
        set_grad_checkpointing=module.set_grad_checkpointing,
        pooled_from="model",  # the overview's
    )
