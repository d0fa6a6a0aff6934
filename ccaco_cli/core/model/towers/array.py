"""Towers of arrays: vectors (``mlp``), sets of points in any order (``set``), and rows in order (``sequence``).

The width of the arrays and the mean and standard deviation of each column are settings of the tower, which the training
split gives (``data.arrays.measure``): a run and an index hold them, and a query is normalised as the training was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ccaco_cli.core.config import TowerConfig
from ccaco_cli.core.errors import DataError, TowerError
from ccaco_cli.core.model.attention import masked_mean
from ccaco_cli.core.model.towers.pooling import Pooling
from ccaco_cli.core.model.towers.temporal import HEADS, TemporalTransformer
from ccaco_cli.core.model.towers.tower import Tower, TowerSpec
from ccaco_cli.core.model.towers.weights import RANDOM, fingerprint, nearest
from ccaco_cli.core.types import Features

Array = np.ndarray[Any, Any]
WIDTH, LAYERS, POINT_WIDTH = 128, 2, 64
REGIONS = 24
"""Tokens of a set: points that lie far from each other, each with the points around it."""
FREQUENCIES = 4
"""Octaves of sines and cosines in which the numbers of a point are also given (arXiv:2006.10739)."""
KERNEL = 5
"""Rows that a convolution of ``sequence`` joins; two of them, each with a stride of 2."""
STRIDE = 4


@dataclass(frozen=True)
class ArrayPreprocess:
    """[N, W] float32 -> the same, normalised by column.

    Attributes:
        columns: W.
        vectors: samples have one row; another number is refused.
        mean, std: of each column, or one number for all.
    """

    columns: int
    vectors: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, rows: Array) -> Tensor:
        """Raises DataError: an array of another width, or several rows where the model takes vectors."""
        if rows.shape[1] != self.columns or (self.vectors and len(rows) > 1):
            raise DataError(
                "array of another shape than this model takes",
                where=f"shape {list(rows.shape)}",
                expected=f"[{'1' if self.vectors else 'N'}, {self.columns}]",
            )
        return torch.from_numpy((rows - self._moments[0]) / self._moments[1])

    @cached_property
    def _moments(self) -> tuple[Array, Array]:
        return np.array(self.mean, np.float32), np.array(self.std, np.float32)


class MlpModule(nn.Module):
    """A linear map and a residual MLP of each row alone: {"values" [B, N, W], "mask" [B, N]} -> one token a row."""

    pooled_from: Pooling = "mean"

    def __init__(self, columns: int):
        super().__init__()
        self.project = nn.Linear(columns, WIDTH)
        self.mlp = nn.Sequential(
            nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH)
        )

    def forward(self, inputs: dict[str, Tensor]) -> Features:
        mask = inputs["mask"]
        projected = self.project(inputs["values"].to(self.project.weight.dtype))
        tokens = (projected + self.mlp(projected)) * mask.unsqueeze(-1)
        return Features(tokens, mask, masked_mean(tokens, mask))


class SetModule(nn.Module):
    """A set of points in any order (after PointNet, arXiv:1612.00593, and PointNet++, arXiv:1706.02413).

    An MLP encodes each point, and the maximum over a region is the token of the region. Regions are the points that lie
    nearest to each of a few points, which are chosen one after the other, each as far as possible from those before it.
    Distances count all columns, so that parts of different colour fall into different regions. A transformer without
    positions relates the regions; the pooled vector is their maximum, as in PointNet.
    """

    pooled_from: Pooling = "model"

    def __init__(self, columns: int):
        super().__init__()
        inputs = 2 * columns + 2 * FREQUENCIES * columns
        self.points = nn.Sequential(
            nn.Linear(inputs, POINT_WIDTH),
            nn.LayerNorm(POINT_WIDTH),
            nn.GELU(),
            nn.Linear(POINT_WIDTH, POINT_WIDTH),
            nn.GELU(),
        )
        self.project = nn.Linear(POINT_WIDTH, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 2 * WIDTH, 0.0, "gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

    def forward(self, inputs: dict[str, Tensor]) -> Features:
        values, mask, dtype = inputs["values"].float(), inputs["mask"], self.project.weight.dtype
        centre = farthest_points(values, mask, min(REGIONS, values.shape[1]))
        distance = torch.cdist(values, centre)
        region = distance.argmin(-1)
        offset = values - centre.gather(1, region.unsqueeze(-1).expand_as(values))
        octaves = [function(values * 2.0**power) for power in range(FREQUENCIES) for function in (torch.sin, torch.cos)]
        points = self.points(torch.cat([values, offset, *octaves], -1).to(dtype))
        # padding counts in a region of its own, which is left out
        region = torch.where(mask, region, centre.shape[1]).unsqueeze(-1).expand_as(points)
        empty = points.new_full((len(points), centre.shape[1] + 1, POINT_WIDTH), -torch.inf)
        maxima = empty.scatter_reduce(1, region, points, "amax")[:, :-1]
        real = maxima[..., 0].isfinite()
        tokens = self.project(maxima.masked_fill(~real.unsqueeze(-1), 0.0))
        tokens = self.encoder(tokens, src_key_padding_mask=~real) * real.unsqueeze(-1)
        return Features(tokens, real, tokens.masked_fill(~real.unsqueeze(-1), -torch.inf).amax(1))


def farthest_points(values: Tensor, mask: Tensor, count: int) -> Tensor:
    """Points that lie far from each other (farthest point sampling, arXiv:1706.02413); their order in the set does not
    matter, since the first is the one that lies farthest from the mean.

    Args:
        values: [B, N, W] float32.
        mask: [B, N] bool, True = real.
        count: points to choose; where a sample has fewer, some are repeated.
    Returns:
        [B, count, W].
    """
    with torch.no_grad():
        last = masked_mean(values, mask)
        nearest_chosen = torch.full(mask.shape, torch.inf, device=values.device).masked_fill(~mask, -1.0)
        chosen = []
        for number in range(count):
            distance = (values - last.unsqueeze(1)).square().sum(-1)
            nearest_chosen = torch.where(mask, torch.minimum(nearest_chosen, distance), nearest_chosen)
            last = values[torch.arange(len(values), device=values.device), nearest_chosen.argmax(1)]
            chosen.append(last)
            if number == 0:  # the distance from the mean is forgotten: the mean is no point of the set
                nearest_chosen = torch.full_like(nearest_chosen, torch.inf).masked_fill(~mask, -1.0)
        return torch.stack(chosen, 1)


class SequenceModule(nn.Module):
    """Rows in order, such as a series of sensors: two strided convolutions, and a transformer over time."""

    pooled_from: Pooling = "mean"

    def __init__(self, columns: int):
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv1d(inputs, WIDTH, KERNEL, 2, KERNEL // 2) for inputs in (columns, WIDTH)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in self.convolutions)
        self.temporal = TemporalTransformer(WIDTH, LAYERS)

    def forward(self, inputs: dict[str, Tensor]) -> Features:
        mask, states = inputs["mask"], inputs["values"].to(self.norms[0].weight.dtype)  # type: ignore[arg-type]
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            mask = mask[:, ::2]
            # padding is zero after every layer, so that it has no effect on the end of a sample
            states = nn.functional.gelu(norm(convolution(states.transpose(1, 2)).transpose(1, 2)))
            states = states * mask.unsqueeze(-1)
        tokens = self.temporal(states, mask)
        return Features(tokens, mask, masked_mean(tokens, mask))


@dataclass(frozen=True)
class ArrayFamily:
    """One architecture: its module, and the tokens of a sample of so many rows."""

    module: Callable[[int], nn.Module]
    tokens: Callable[[int], int]


ARCHITECTURES: Mapping[str, ArrayFamily] = {
    "mlp": ArrayFamily(MlpModule, lambda rows: rows),
    "set": ArrayFamily(SetModule, lambda rows: min(rows, REGIONS)),
    "sequence": ArrayFamily(SequenceModule, lambda rows: -(-rows // STRIDE)),
}


def build(spec: TowerSpec, config: TowerConfig, modality: str = "array") -> Tower:
    """Builds ``array:mlp``, ``array:set`` or ``array:sequence``; ``tiny`` is ``mlp`` for vectors, else ``set``.

    Raises:
        TowerError: another name, weights, or a width that is not known.
    """
    name = ("mlp" if config.rows == 1 else "set") if spec.family == "tiny" and not spec.name else spec.name
    if name not in ARCHITECTURES or spec.weights not in ("", RANDOM):
        known = [f"array:{known}" for known in ARCHITECTURES]
        raise TowerError("unknown array tower", where=spec, expected=nearest(f"array:{name}", known))
    key = f"model.{modality}"
    if not config.columns:
        raise TowerError(
            "the width of the arrays is not known",
            where=f"{key}.columns = 0, {spec}",
            expected="a data set with a split train, or the width by --set",
            next=f"--set {key}.columns=WIDTH",
        )
    for moment in ("mean", "std"):
        if len(getattr(config, moment)) not in (1, config.columns):
            raise TowerError(
                f"the {moment} of {len(getattr(config, moment))} columns for arrays of {config.columns}",
                where=f"{key}.{moment}",
                expected="one number for each column, or one for all",
            )
    rows = max(config.rows, 1) if name == "mlp" and config.rows == 1 else max(config.rows, PROBE_ROWS[1])
    preprocess = ArrayPreprocess(config.columns, config.rows == 1, config.mean, config.std)
    module = ARCHITECTURES[name].module(config.columns)
    return Tower(
        spec=spec,
        modality=modality,
        module=module,
        preprocess=preprocess,
        width=WIDTH,
        tokens=ARCHITECTURES[name].tokens(rows),
        grid=None,
        pooled_from=module.pooled_from,  # type: ignore[arg-type]
        pretrained=False,
        fingerprint=fingerprint(module, name, preprocess),
        save_assets=lambda folder: str(TowerSpec(spec.family, spec.name, "")),
        probe_samples=partial(_probe_samples, preprocess),
    )


PROBE_ROWS = (7, 40)
"""Rows of the two samples on which a tower is checked when it is built; vectors have one."""


def _probe_samples(preprocess: ArrayPreprocess) -> list[Array]:
    generator = np.random.default_rng(0)
    counts = (1, 1) if preprocess.vectors else PROBE_ROWS
    return [
        (generator.normal(size=(count, preprocess.columns)) * preprocess.std + preprocess.mean).astype(np.float32)
        for count in counts
    ]
