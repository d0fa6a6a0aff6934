"""Large pictures for a tower of its own size: an overview, and tiles at full resolution, one pass each."""

from __future__ import annotations

import re
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ccaco_cli.core.errors import TowerError
from ccaco_cli.core.model.towers.pictures import ImagePreprocess
from ccaco_cli.core.model.towers.tower import Tower
from ccaco_cli.core.model.towers.weights import fingerprint
from ccaco_cli.core.types import Features

AT_ONCE = 16
"""Tiles of a pass, all pictures of the batch together: the tower's activations of so many are held at a time."""


class TiledModule(nn.Module):
    """{"pixels": uint8 [B, 3, rows * h, columns * w]} -> Features: the tokens of the whole picture made small, then those of all tiles as
    one grid, row by row (the picture and its crops, as in LLaVA-NeXT's AnyRes); pooled is the overview's.

    With gradient checkpointing a pass is recomputed when its gradient is due (batch norms then see it twice).
    """

    def __init__(self, tower: nn.Module, size: tuple[int, int], tiles: tuple[int, int], grid: tuple[int, int]):
        super().__init__()
        self.tower, self.size, self.tiles, self.grid = tower, size, tiles, grid
        self.checkpointing = False

    def forward(self, inputs: dict[str, Tensor]) -> Features:
        pixels, (height, width), (rows, columns) = inputs["pixels"], self.size, self.tiles
        batch = len(pixels)
        overview = self.tower({"pixels": F.adaptive_avg_pool2d(pixels.float(), self.size)})
        cut = pixels.view(batch, 3, rows, height, columns, width).permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
        found = torch.cat([self._cells(part) for part in torch.split(cut, AT_ONCE)])  # [B * tiles, cells, W]
        cells = found.view(batch, rows, columns, *self.grid, -1).transpose(2, 3).reshape(batch, -1, found.shape[-1])
        tokens = torch.cat([overview.tokens, cells], 1)
        return Features(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device), overview.pooled)

    def _cells(self, pixels: Tensor) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            again: Tensor = checkpoint(self._pass, pixels, use_reentrant=False)
            return again
        return self._pass(pixels)

    def _pass(self, pixels: Tensor) -> Tensor:
        tokens: Tensor = self.tower({"pixels": pixels}).tokens
        return tokens[:, -self.grid[0] * self.grid[1] :]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.checkpointing = enable


def tiled(tower: Tower, tiles: str) -> Tower:
    """The tower over ``tiles`` (ROWSxCOLUMNS) squares of its own size; "" = as it is. Raises TowerError: not readable, or no grid."""
    if not tiles:
        return tower
    if not (read := re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", tiles)):
        raise TowerError("cannot read tiles", where=f"tiles = {tiles!r}", expected="ROWSxCOLUMNS, like 8x8")
    if tower.grid is None or not isinstance(tower.preprocess, ImagePreprocess):
        raise TowerError(
            "a tower without a grid of patches sees no tiles", where=tower.spec, expected="an image tower with a grid"
        )
    rows, columns = int(read[1]), int(read[2])
    height, width = tower.preprocess.size
    size = rows * height, columns * width
    # a square picture is cropped as the tower does it; another shape is squashed into, so that nothing is lost
    resize = tuple(rows * side for side in tower.preprocess.resize) if rows == columns else size
    picture = replace(tower.preprocess, size=size, resize=resize)
    grid = rows * tower.grid[0], columns * tower.grid[1]
    module = TiledModule(tower.module, (height, width), (rows, columns), tower.grid)
    return replace(
        tower,
        module=module,
        preprocess=picture,
        tokens=tower.tokens + grid[0] * grid[1],
        grid=grid,
        fingerprint=fingerprint(nn.Module(), tower.fingerprint, tiles),
    )
