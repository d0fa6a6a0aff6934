"""The model: one tower and head a modality, a shared space, and the cross branch. It never computes a loss."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ccaco_cli.core import distributed
from ccaco_cli.core.config import LossConfig, ModelConfig, TowerConfig
from ccaco_cli.core.errors import ConfigError
from ccaco_cli.core.model import matching, towers
from ccaco_cli.core.model.attention import masked_mean
from ccaco_cli.core.model.fusion import mlp
from ccaco_cli.core.model.layout import LINE, Layout
from ccaco_cli.core.model.towers.length_bucketing import by_length
from ccaco_cli.core.model.towers.tower import ClipWindow, Tower
from ccaco_cli.core.model.wholebatch import Dropout, InputDropout
from ccaco_cli.core.types import Crossed, Embedding, Features, LocalTokens


class Center(nn.Module):
    """Subtracts the running mean token (SCIENCE, finding 2): momentum 0.9 in training, the stored mean in evaluation."""

    MOMENTUM = 0.9
    mean: Tensor
    seen: Tensor

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("seen", torch.tensor(False))

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """tokens [B, N, W], mask [B, N] -> [B, N, W]."""
        if self.training:
            with torch.no_grad():
                real = tokens[mask].float()  # of all processes, as if there were one
                now = distributed.all_reduce_sum(real.sum(0)) / distributed.all_reduce_sum(
                    real.new_tensor(float(len(real)))
                )
                self.mean.copy_(torch.where(self.seen, self.mean.lerp(now, 1 - self.MOMENTUM), now))
                self.seen.fill_(True)
        return tokens - self.mean.to(tokens.dtype)


class AttentionPool(nn.Module):
    """One learned query over the tokens."""

    def __init__(self, width: int):
        super().__init__()
        self.query = nn.Linear(width, 1)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """tokens [B, N, W], mask [B, N] -> [B, W]."""
        weight = self.query(tokens).squeeze(-1).float().masked_fill(~mask, -torch.inf).softmax(-1)
        pooled: Tensor = (weight.unsqueeze(-1).to(tokens.dtype) * tokens).sum(1)
        return pooled


POOLS = ("mean", "max", "cls", "attention")
VALUES_AT_ONCE = 1 << 19
"""As many token values as stay in a core's cache with what is made of them on the way."""


def _single(t: Tensor) -> Tensor:
    """What a cache of tokens holds as float16 -> float32."""
    return t.float() if t.dtype == torch.float16 else t


class Head(nn.Module):
    """From what was pooled to one global vector: a projection and a residual MLP."""

    def __init__(self, given: int, width: int, dropout: float):
        super().__init__()
        self.project = nn.Linear(given, width)
        self.norm = nn.LayerNorm(width)
        self.mlp = mlp(width, dropout, dropout_of=Dropout)

    def forward(self, pooled: Tensor) -> Tensor:
        """[B, W] -> [B, D], before normalisation."""
        g: Tensor = self.project(pooled)
        return g + self.mlp(self.norm(g))  # type: ignore[no-any-return]


class Side(nn.Module):
    """One modality: its tower, pooling, and a head for each global vector."""

    def __init__(self, tower: Tower, config: TowerConfig, width: int, vectors: int):
        super().__init__()
        if config.pool not in POOLS:
            raise ConfigError(
                "unknown pooling", where=f"model.{tower.modality}.pool = {config.pool!r}", expected=" | ".join(POOLS)
            )
        if config.center not in ("auto", "on", "off"):
            raise ConfigError(
                "unknown centring",
                where=f"model.{tower.modality}.center = {config.center!r}",
                expected="auto | on | off",
            )
        self.tower, self.config = tower.module, config
        if config.lock:
            self.tower.requires_grad_(False)
        centred = config.center == "on" or (config.center == "auto" and not tower.pretrained)
        self.center = Center(tower.width) if centred else None
        self.attention_pool = AttentionPool(tower.width) if config.pool == "attention" else None
        self.input_dropout = InputDropout(config.input_dropout)
        self.heads = nn.ModuleList(Head(tower.width, width, config.head_dropout) for _ in range(vectors))

    def train(self, mode: bool = True) -> Side:
        super().train(mode)
        if self.config.lock:  # a frozen tower also keeps its batch statistics and drops nothing
            self.tower.eval()
        return self

    def features(self, inputs: Any) -> Features:
        """Inputs of the tower, or Features read from a cache (float16, and left so) -> Features, tokens centred when the config says so."""
        if isinstance(inputs, Features):
            found = inputs
        else:
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.lock):
                found = by_length(self.tower, inputs) if "lengths" in inputs else self.tower(inputs)
        return (
            found
            if self.center is None
            else Features(self.center(_single(found.tokens), found.mask), found.mask, found.pooled)
        )

    def pool(self, features: Features) -> Tensor:
        """Features -> [B, W]. Tokens of a tower that is locked are taken a few rows at a time in training on a CPU, from their draw of
        dropout to their sum in its cache: equal numbers in a sixth of the time."""
        if self.config.pool == "cls":
            pooled: Tensor = self.input_dropout(_single(features.pooled))
            return pooled
        tokens, mask = features.tokens, features.mask
        if not self.training or tokens.requires_grad or tokens.device.type != "cpu" or distributed.world() > 1:
            return self._pooled(tokens, mask)
        rows = max(1, VALUES_AT_ONCE // tokens.shape[1:].numel() // 8) * 8  # eights, for the draw is one of int64
        return torch.cat([self._pooled(*part) for part in zip(tokens.split(rows), mask.split(rows), strict=True)])  # type: ignore[no-untyped-call]

    def _pooled(self, tokens: Tensor, mask: Tensor) -> Tensor:
        tokens = self.input_dropout(_single(tokens))
        if self.config.pool == "max":
            return tokens.masked_fill(~mask.unsqueeze(-1), -torch.inf).amax(1)
        pooled: Tensor = masked_mean(tokens, mask) if self.attention_pool is None else self.attention_pool(tokens, mask)
        return pooled

    def head(self, pooled: Tensor) -> Tensor:
        """[B, W] -> [B, E], all global vectors side by side, before normalisation."""
        return torch.cat([head(pooled) for head in self.heads], 1)

    def project(self, tokens: Tensor) -> Tensor:
        """[R, N, W] -> [R, N, D]: tokens as the cross branch sees them where both halves share, by the first head."""
        projected: Tensor = self.heads[0].project(tokens)  # type: ignore[operator]
        return projected


class Aligner(nn.Module):
    """Two sides and a matcher.

    modalities  (a, b), as the data set's manifest names them: ("image", "text"), ("video", "audio") ...
    sides       modality -> Side
    """

    def __init__(self, built: Mapping[str, Tower], config: ModelConfig, loss: LossConfig):
        super().__init__()
        self.modalities: tuple[str, str] = tuple(built)  # type: ignore[assignment]
        self.config = config
        self.sides = nn.ModuleDict(
            {m: Side(tower, config.tower(m), config.width, config.vectors) for m, tower in built.items()}
        )
        self.matcher = matching.build(config.width, config.fusion, tuple(_layout(tower) for tower in built.values()))  # type: ignore[arg-type]
        if not config.fusion.share:
            self.cross_projection = nn.ModuleDict(
                {m: nn.Linear(tower.width, config.width) for m, tower in built.items()}
            )
        self.log_scale = nn.Parameter(torch.tensor(-math.log(loss.temperature)), requires_grad=loss.learn_temperature)
        self.max_scale = loss.max_scale

    def set_grad_checkpointing(self) -> None:
        """Recomputes activations of the cross branch and of towers that learn. Raises ConfigError: a tower that cannot."""
        self.matcher.checkpointing = True
        for modality, side in self.sides.items():
            if side.config.lock:  # type: ignore[union-attr]
                continue
            if not hasattr(side.tower, "set_grad_checkpointing"):
                spec = self.config.tower(modality).spec
                raise ConfigError(
                    "this tower has no gradient checkpointing",
                    where=spec,
                    expected="--lock-image or --lock-text, or another tower",
                )
            side.tower.set_grad_checkpointing(True)  # type: ignore[operator,union-attr]

    def compile_towers(self) -> None:
        """Towers that learn run as code that torch makes for them in their first steps (``torch.compile``); names of weights stay."""
        for side in self.sides.values():
            if not side.config.lock:  # type: ignore[union-attr]
                side.tower.compile()  # type: ignore[operator,union-attr]

    def logit_scale(self) -> Tensor:
        """1 / temperature, clamped: scalar that multiplies cosines."""
        return self.log_scale.exp().clamp(max=self.max_scale)

    def encode(self, modality: str, inputs: Any) -> tuple[Embedding, Features]:
        """Runs the tower and the global half.

        Args:
            inputs: what the tower takes, or Features from a token cache.
        Returns:
            The global vectors, and the tower's tokens [B, N, W], centred when the config says so: ``local_tokens`` prepares them
            for the cross branch.
        """
        side = self.sides[modality]
        features = side.features(inputs)  # type: ignore[operator]
        pooled = side.head(side.pool(features))  # type: ignore[operator]
        vectors = self.config.vectors
        each = F.normalize(pooled.float().unflatten(1, (vectors, -1)), dim=-1)
        return Embedding(each.flatten(1) / vectors**0.5, pooled), features

    def local_tokens(self, modality: str, features: Features) -> LocalTokens:
        """Prepares tokens for ``cross``: [R, N, W] -> [R, N, D] (what an index stores)."""
        shared = self.config.fusion.share
        given = _single(features.tokens)
        tokens = self.sides[modality].project(given) if shared else self.cross_projection[modality](given.detach())  # type: ignore[operator]
        return LocalTokens(self.matcher.local(self.modalities.index(modality), tokens, features.mask), features.mask)

    def cross(self, a: LocalTokens, b: LocalTokens, index: Tensor | None = None, *, attention: bool = False) -> Crossed:
        """The local half: pairs of prepared samples (``local_tokens``) -> Crossed; ``index`` [M, 2], or None for all pairs."""
        crossed: Crossed = self.matcher(a, b, index, attention=attention)
        return crossed


def _layout(tower: Tower) -> Layout:
    return LINE if tower.grid is None else Layout(tower.tokens - tower.grid[0] * tower.grid[1], tower.grid)


def build(config: ModelConfig, loss: LossConfig, modalities: tuple[str, str]) -> tuple[Aligner, dict[str, Tower]]:
    """An aligner and its towers (for preprocessing), built once from the config."""
    built = {m: _tower(config.tower(m), m) for m in modalities}
    return Aligner(built, config, loss), built


def _tower(config: TowerConfig, modality: str) -> Tower:
    window = ClipWindow(config.size, config.seconds, config.rate, config.normalisation)
    return towers.build(
        config.spec,
        modality,
        size=config.size,
        context_length=config.context_length,
        tiles=config.tiles,
        positions=config.positions,
        states=config.states,
        window=window,
    )
