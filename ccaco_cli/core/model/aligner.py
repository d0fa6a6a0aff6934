"""The model: one tower and head for each modality, a shared space, and the cross branch. It never computes a loss."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ccaco_cli.core import distributed, runtime
from ccaco_cli.core.config import LossConfig, ModelConfig, TowerConfig
from ccaco_cli.core.errors import ConfigError
from ccaco_cli.core.modalities import MODALITIES, blank_separated
from ccaco_cli.core.model import matching, towers
from ccaco_cli.core.model.attention import masked_mean
from ccaco_cli.core.model.centering import AttentionPool, Center
from ccaco_cli.core.model.decoder import build_decoder
from ccaco_cli.core.model.global_batch import InputDropout
from ccaco_cli.core.model.heads import Adapter, Head
from ccaco_cli.core.model.layout import LINE, Layout
from ccaco_cli.core.model.required_memory import check_memory
from ccaco_cli.core.model.token_pooling import Grid, as_cached, pooled_grid
from ccaco_cli.core.model.towers.blocks import evaluate_frozen_parts, freeze_first_blocks
from ccaco_cli.core.model.towers.dual_encoders import sharing_loads
from ccaco_cli.core.model.towers.length_bucketing import encode_by_length
from ccaco_cli.core.model.towers.tower import JointSpace, Tower
from ccaco_cli.core.tower_config import ADAPTER, NEW
from ccaco_cli.core.types import LENGTHS, Crossed, Embedding, Features, LocalTokens

POOLS = ("mean", "max", "cls", "attention")
CROSS_BRANCH = ("matcher.", "cross_projection.")
"""Beginnings of the names of the weights of the cross branch."""
POOL_VALUES = 1 << 19
"""Token values that are pooled at a time on a CPU: with their intermediate results they fit in a core's cache."""


def _to_float32(t: Tensor) -> Tensor:
    """Converts the float16 of a token cache to float32."""
    return t.float() if t.dtype == torch.float16 else t


class ModalityEncoder(nn.Module):
    """The encoder of one modality: its tower, pooling, and one head for each global vector.

    Args:
        tower: built tower of width W.
        config: locking, centring, pooling, head and dropout.
        width: D.
        vectors: global vectors of a sample; E = D * vectors.
    """

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
        self.tower, self.config, self.tower_grid = tower.module, config, tower.grid
        self.set_grad_checkpointing = tower.set_grad_checkpointing
        if config.lock:
            self.tower.requires_grad_(False)
        elif config.unlock:
            setting = f"model.{tower.modality}.unlock = {config.unlock}"
            freeze_first_blocks(self.tower, config.unlock, config.spec, setting)
        centred = config.center == "on" or (config.center == "auto" and not tower.pretrained)
        self.center = Center(tower.width) if centred else None
        self.attention_pool = AttentionPool(tower.width) if config.pool == "attention" else None
        self.input_dropout = InputDropout(config.input_dropout)
        self.heads = nn.ModuleList(self._heads(tower, width, vectors))
        if config.lock_side:
            self.requires_grad_(False)

    def _heads(self, tower: Tower, width: int, vectors: int) -> list[nn.Module]:
        config, space = self.config, tower.space
        if config.head == NEW:
            return [Head(tower.width, width, config.head_dropout) for _ in range(vectors)]
        key = f"model.{tower.modality}.head = {config.head}"
        if space is None:
            raise ConfigError(
                "this tower has no projection of its own", where=f"{key}, {tower.spec}", expected=f"a head of {NEW}"
            )
        if vectors != 1:
            raise ConfigError(
                "a pretrained model has one vector per sample",
                where=f"model.vectors = {vectors}, {key}",
                expected="model.vectors = 1",
            )
        return [Adapter(space.size, config.head_dropout) if config.head == ADAPTER else nn.Identity()]

    def train(self, mode: bool = True) -> ModalityEncoder:
        mode = mode and not self.config.lock_side
        super().train(mode)
        if self.config.lock:  # a locked tower keeps its batch statistics and has no dropout
            self.tower.eval()
        elif mode:
            evaluate_frozen_parts(self.tower)
        return self

    @property
    def grid(self) -> Grid | None:
        """(height, width) of the patch grid that the last tokens of ``features`` lie on; None = they lie on no grid."""
        if self.tower_grid is None or not self.config.lock:
            return self.tower_grid
        return pooled_grid(self.tower_grid, self.config.cache_tokens)

    def features(self, inputs: Any) -> Features:
        """Runs the tower and centres its tokens when the config says so.

        Args:
            inputs: what the tower takes, or Features from a token cache (float16).
        Returns:
            tokens [B, N, W], mask [B, N], pooled [B, W]. Those of a locked tower are the same whether they come from
            its cache or not: the grid pooled to ``cache_tokens``, and float16 unless they are centred.
        """
        if isinstance(inputs, Features):
            features = inputs
        else:
            features = self._locked_features(inputs) if self.config.lock else self._run_tower(inputs)
        if self.center is None:
            return features
        return Features(self.center(_to_float32(features.tokens), features.mask), features.mask, features.pooled)

    def _run_tower(self, inputs: Any) -> Features:
        texts_of_known_length = inputs.keys() >= {"ids", LENGTHS}
        features: Features = encode_by_length(self.tower, inputs) if texts_of_known_length else self.tower(inputs)
        return features

    @torch.no_grad()
    def _locked_features(self, inputs: Any) -> Features:
        """What a token cache of the same device holds of these inputs."""
        with runtime.locked_precision(next(iter(inputs.values())).device):
            features = self._run_tower(inputs)
        return as_cached(features, self.tower_grid, self.config.cache_tokens)

    def pool(self, features: Features) -> Tensor:
        """Pools Features to [B, W].

        On a CPU, tokens of a locked tower are pooled some rows at a time in training, from dropout to sum within a
        core's cache: the same numbers in a sixth of the time.
        """
        if self.config.pool == "cls" or self.config.head != NEW:
            pooled: Tensor = self.input_dropout(_to_float32(features.pooled))
            return pooled
        tokens, mask = features.tokens, features.mask
        if not self.training or tokens.requires_grad or tokens.device.type != "cpu" or distributed.world() > 1:
            return self._pool_tokens(tokens, mask)
        # a multiple of eight rows, because dropout draws eight bytes at a time
        rows = max(1, POOL_VALUES // tokens.shape[1:].numel() // 8) * 8
        parts = zip(tokens.split(rows), mask.split(rows), strict=True)  # type: ignore[no-untyped-call]
        return torch.cat([self._pool_tokens(*part) for part in parts])

    def _pool_tokens(self, tokens: Tensor, mask: Tensor) -> Tensor:
        tokens = self.input_dropout(_to_float32(tokens))
        if self.config.pool == "max":
            return tokens.masked_fill(~mask.unsqueeze(-1), -torch.inf).amax(1)
        pooled: Tensor = masked_mean(tokens, mask) if self.attention_pool is None else self.attention_pool(tokens, mask)
        return pooled

    def head(self, pooled: Tensor) -> Tensor:
        """Maps [B, W] to [B, E], all global vectors side by side, before normalisation."""
        return torch.cat([head(pooled) for head in self.heads], 1)

    def shared_parameters(self) -> list[Tensor]:
        """The projection of the first new head, which all loss parts share; none with a pretrained or locked head."""
        is_trained = isinstance(self.heads[0], Head) and not self.config.lock_side
        return list(self.heads[0].project.parameters()) if is_trained else []  # type: ignore[union-attr, operator]

    def project(self, tokens: Tensor) -> Tensor:
        """Maps [R, N, W] to [R, N, D] by the projection of the first new head, for a cross branch that shares it."""
        projected: Tensor = self.heads[0].project(tokens)  # type: ignore[operator]
        return projected


class Aligner(nn.Module):
    """The encoders of two modalities and the cross branch (``matcher``), and further encoders of the same space.

    Args:
        built: towers of the pair, then those of further sides.
    Attributes:
        modalities: (a, b), as the data set's manifest names them: ("image", "text"), ("video", "audio") ...
        sides: modality -> ModalityEncoder; those of the pair come first.
        embedding_size: E.
        logit_bias: scalar that the sigmoid loss adds to scaled cosines; None = the model has none.
        low_rank: rank of the low-rank updates that are trained in place of the towers; 0 = none (``low_rank``).
        decoder: writes texts about samples of ``described``, the side that is no text; None without caption loss.
        stores_locked_towers: whether the weights of locked towers are stored, since their SPEC does not rebuild them.
    """

    low_rank = 0
    stores_locked_towers = False

    def __init__(self, built: Mapping[str, Tower], config: ModelConfig, loss: LossConfig):
        super().__init__()
        first, second, *_ = built
        self.modalities: tuple[str, str] = (first, second)
        pair = {m: built[m] for m in self.modalities}
        self.config = config
        self.sides = nn.ModuleDict(
            {m: ModalityEncoder(tower, config.tower(m), config.width, config.vectors) for m, tower in built.items()}
        )
        self.matcher = matching.build(config.width, config.fusion, tuple(_layout(tower) for tower in pair.values()))  # type: ignore[arg-type]
        sigmoid = loss.contrastive == "sigmoid"
        space = _joint_space(built, config, JointSpace(config.width * config.vectors, 1 / loss.temperature))
        self.embedding_size = space.size
        self.shares_projection = config.fusion.share and all(config.tower(m).head == NEW for m in pair)
        if not self.shares_projection:
            self.cross_projection = nn.ModuleDict(
                {m: nn.Linear(tower.width, config.width) for m, tower in pair.items()}
            )
        log_scale, bias = torch.tensor(math.log(space.logit_scale)), space.logit_bias
        self.log_scale = nn.Parameter(log_scale, requires_grad=loss.learn_temperature)
        self.max_scale = max(loss.max_scale, space.logit_scale)
        self.logit_bias = None
        if sigmoid or bias is not None:
            start = torch.tensor(loss.bias if bias is None else bias)
            self.logit_bias = nn.Parameter(start, requires_grad=sigmoid)
        # after all others, so that their weights are the same with and without it
        self.described, self.decoder = next((m for m in pair if m != "text"), ""), None
        if loss.gamma > 0:
            self.decoder = build_decoder(pair, config.width, config.decoder, _layout(built[self.described]))

    def encoder(self, modality: str) -> ModalityEncoder:
        """Returns the encoder of a modality."""
        return self.sides[modality]  # type: ignore[return-value]

    def set_grad_checkpointing(self) -> None:
        """Recomputes activations of the cross branch and of unlocked towers in the backward pass.

        Raises:
            ConfigError: an unlocked tower without this capability.
        """
        self.matcher.checkpointing = True
        if self.decoder is not None:
            self.decoder.checkpointing = True
        for modality in self.modalities:
            encoder = self.encoder(modality)
            if encoder.config.lock:
                continue
            if encoder.set_grad_checkpointing is None:
                raise ConfigError(
                    "this tower has no gradient checkpointing",
                    where=encoder.config.spec,
                    expected="--lock-image or --lock-text, or another tower",
                )
            encoder.set_grad_checkpointing(True)

    def compile_towers(self, mode: str = "default") -> None:
        """Compiles unlocked towers in their first steps (``torch.compile``); the names of weights do not change.

        Args:
            mode: of ``torch.compile``. Towers whose inputs differ in shape, such as texts of different length, are
                always compiled in the default mode: every shape would be recorded as a CUDA graph of its own.
        """
        graphs = []
        for modality in self.modalities:
            encoder = self.encoder(modality)
            if encoder.config.lock:
                continue
            fixed_shape = MODALITIES[modality].kind == "still"
            encoder.tower.compile(mode=mode if fixed_shape else "default")
            graphs += [encoder.tower] if fixed_shape and mode != "default" else []
        if graphs:  # the memory of the last step's outputs may be used again from here
            graphs[0].register_forward_pre_hook(
                lambda *_: torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
            )

    def logit_scale(self) -> Tensor:
        """1 / temperature, clamped: scalar that multiplies cosines."""
        return self.log_scale.exp().clamp(max=self.max_scale)

    def encode(self, modality: str, inputs: Any) -> tuple[Embedding, Features]:
        """Runs the tower and the global half.

        Args:
            inputs: what the tower takes, or Features from a token cache.
        Returns:
            The global vectors, and the tower's tokens [B, N, W], centred when the config says so: ``local_tokens``
            prepares them for the cross branch.
        """
        encoder, vectors = self.encoder(modality), self.config.vectors
        features = encoder.features(inputs)
        pooled = encoder.head(encoder.pool(features))
        normalised = F.normalize(pooled.float().unflatten(1, (vectors, -1)), dim=-1)  # type: ignore[no-untyped-call]
        return Embedding(normalised.flatten(1) / vectors**0.5, pooled), features

    def local_tokens(self, modality: str, features: Features) -> LocalTokens:
        """Prepares tokens for ``cross``: [R, N, W] -> [R, N, ``matcher.local_width``] (what an index stores)."""
        tokens = self._project(modality, features)
        return LocalTokens(self.matcher.local(self.modalities.index(modality), tokens, features.mask), features.mask)

    def memory(self, features: Features) -> Tensor:
        """Prepares tokens of ``described`` for the decoder: [R, N, W] -> [R, N, D].

        They are projected as for the cross branch, so that all losses train one projection. What a matcher makes of
        them is left out: it may be unit vectors for cosines, or one vector for all tokens.
        """
        assert self.decoder is not None
        return self.decoder.prepare_memory(self._project(self.described, features))

    def _project(self, modality: str, features: Features) -> Tensor:
        """[R, N, W] -> [R, N, D]."""
        tokens = _to_float32(features.tokens)
        if self.shares_projection:
            return self.encoder(modality).project(tokens)
        projected: Tensor = self.cross_projection[modality](tokens if self.config.fusion.share else tokens.detach())
        return projected

    def cross(self, a: LocalTokens, b: LocalTokens, index: Tensor | None = None, *, attention: bool = False) -> Crossed:
        """Runs the local half on pairs of prepared samples.

        Args:
            a, b: outputs of ``local_tokens``, A and B samples.
            index: [M, 2] int64, rows of a and b; None = all A x B pairs.
            attention: also return the attention of b over a (listed pairs only).
        """
        crossed: Crossed = self.matcher(a, b, index, attention=attention)
        return crossed


def _joint_space(built: Mapping[str, Tower], config: ModelConfig, new: JointSpace) -> JointSpace:
    """The space of the pretrained model, or ``new``, that of new heads.

    Raises:
        ConfigError: sides are of different pretrained models, or a new head has another size than the space.
    """
    heads = {m: config.tower(m).head for m in built}
    spaces = {tower.space for m, tower in built.items() if heads[m] != NEW}
    if not spaces:
        return new
    space = spaces.pop()
    fits = space is not None and (NEW not in heads.values() or new.size == space.size)
    if spaces or space is None or not fits:
        width = f", of {new.size} numbers" if NEW in heads.values() else ""
        raise ConfigError(
            "the sides are in different embedding spaces",
            where=", ".join(f"model.{m}.head = {head}" for m, head in heads.items()) + width,
            expected="sides of one pretrained model, or new heads on all",
            next=f"--set model.width={space.size} --set model.vectors=1"
            if space and not (spaces or fits)
            else "--model SPEC",
        )
    return space


def _layout(tower: Tower) -> Layout:
    return LINE if tower.grid is None else Layout(tower.tokens - tower.grid[0] * tower.grid[1], tower.grid)


def build(
    config: ModelConfig, loss: LossConfig, modalities: tuple[str, str], *, trains: bool = False
) -> tuple[Aligner, dict[str, Tower]]:
    """Builds an aligner of a pair from the config, and returns it with its towers (for preprocessing).

    Raises:
        TowerError: a tower cannot be built.
        ConfigError: the aligner ``trains``, and its layers beside the towers do not fit memory.
    """
    with sharing_loads():
        built = {m: towers.build(config.tower(m), m) for m in (*modalities, *blank_separated(config.further_sides))}
    if trains:
        # without the decoder, which reads its tokenizer
        check_memory(lambda: Aligner(built, config, replace(loss, gamma=0.0)), config)
    return Aligner(built, config, loss), built
