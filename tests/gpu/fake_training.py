"""Steps of the real training loop on fake GPU tensors."""

from __future__ import annotations

import io
from dataclasses import replace
from functools import lru_cache
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ccaco_cli.core.config import RunConfig, TowerConfig
from ccaco_cli.core.config_io import override
from ccaco_cli.core.experiments.start import add_updates
from ccaco_cli.core.model import aligner as aligners
from ccaco_cli.core.model import towers
from ccaco_cli.core.model.adaptation import Adaptation, AdaptationTask
from ccaco_cli.core.model.aligner import Aligner
from ccaco_cli.core.model.towers.tower import Tower
from ccaco_cli.core.recipes import RECIPES
from ccaco_cli.core.training import cost, loop
from ccaco_cli.core.training.metrics_log import MetricsLog
from ccaco_cli.core.training.state import TrainingState
from ccaco_cli.core.types import Features, PairBatch, Words, no_progress
from tests.gpu.fake_gpu import GPU, HostWaits, on_gpu

PAIRS, SIZE, WORDS = 12, 32, 9
SMALL = {"model.width": 32, "model.image.size": SIZE, "loss.cross_batch": 6, "optim.batch_size": PAIRS}
MODALITIES = ("image", "text")
LOCKED = {"model.image.lock": True, "model.text.lock": True}


def config_of(recipe: str = "scratch", **settings: Any) -> RunConfig:
    """The config of a recipe with small towers; ``a__b`` names the setting ``a.b``."""
    changes = {key.replace("__", "."): value for key, value in settings.items()}
    locked = LOCKED if recipe == "locked" else {}
    return override(RunConfig(), RECIPES[recipe] | locked | SMALL | changes)


def pixels_and_words() -> PairBatch:
    """Images and captions for towers that are trained."""
    rows = torch.arange(PAIRS)
    pixels = torch.zeros(PAIRS, 3, SIZE, SIZE, dtype=torch.uint8)
    ids = torch.ones(PAIRS, WORDS, dtype=torch.long)
    lengths = torch.full((PAIRS,), WORDS)
    words = {"ids": ids, "mask": ids.bool(), "lengths": lengths}
    return PairBatch({"pixels": pixels}, words, rows, rows // 2, rows % 2)


def cached_tokens(widths: tuple[int, int], captions: int) -> PairBatch:
    """Tokens of locked towers; every picture serves several pairs."""

    def features(rows: int, tokens: int, width: int) -> Features:
        x = torch.zeros(rows, tokens, width, dtype=torch.float16)
        return Features(x, torch.ones(rows, tokens, dtype=torch.bool), x[:, 0])

    picture = torch.arange(PAIRS).repeat_interleave(captions)
    images, texts = features(PAIRS, 17, widths[0]), features(PAIRS * captions, WORDS, widths[1])
    return PairBatch(images, texts, picture, picture, picture * 0, at_a=picture)


@lru_cache
def _tower(config: TowerConfig, modality: str) -> Tower:
    return towers.build(config, modality)


def build_aligner(config: RunConfig) -> Aligner:
    """A model on the CPU. Its towers are built once for all tests, which must not change them."""
    if config.optim.grad_checkpointing or config.optim.lora:
        aligner, _ = aligners.build(config.model, config.loss, MODALITIES)
        if config.optim.grad_checkpointing:
            aligner.set_grad_checkpointing()
        add_updates(aligner, config)
        return aligner
    return Aligner({m: _tower(config.model.tower(m), m) for m in MODALITIES}, config.model, config.loss)


def tower_widths(config: RunConfig) -> tuple[int, int]:
    """Width of the tokens of both towers."""
    a, b = (_tower(config.model.tower(m), m).width for m in MODALITIES)
    return a, b


def train_on_gpu(config: RunConfig, batch: PairBatch | None = None, steps: int = 1, **heads: Any) -> HostWaits:
    """Trains some steps with the training loop; all losses and gradients must be on the GPU.

    Args:
        heads: arguments of ``AdaptationTask`` for a run across domains.
    Returns:
        The waits of all steps.
    """
    aligner = build_aligner(config)
    adaptation = Adaptation(config.domain, aligner.embedding_size, AdaptationTask(**heads)) if heads else None
    batch = batch or pixels_and_words()
    if aligner.decoder is not None:
        aligner.decoder.add_words(range(50))
        ids = torch.ones(len(batch.rows), WORDS, dtype=torch.long)
        batch = replace(batch, words=Words(ids, ids.bool()))
    entry = (batch.rows.numpy(), np.arange(len(batch.rows)), np.arange(len(batch.rows)))
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    on_device = on_gpu(aligner.train(), mode)
    heads_on_device = None if adaptation is None else on_gpu(adaptation.train(), mode)
    data: Any = SimpleNamespace(
        dataset=SimpleNamespace(a=None, b=None), plan=SimpleNamespace(epoch=lambda number: [entry] * steps)
    )
    saver: Any = SimpleNamespace(save_if_due=lambda signal: None)
    callbacks = loop.TrainingCallbacks(evaluate=lambda model: {}, report_progress=no_progress)
    gradients: set[torch.device] = set()
    with mode:
        state = TrainingState(
            on_device, config, updates_per_epoch=steps // config.optim.accum_freq, adaptation=heads_on_device
        )
        state.optimizer.register_step_post_hook(lambda *_: gradients.update(_gradient_devices(state)))
        log = MetricsLog(io.StringIO(), state.cursor)
        trainer = loop.Trainer(state, data, callbacks, log, saver, stop_signal=mock.Mock())
        inputs = [batch.map(mode.from_tensor) for _ in range(steps)]
        with (
            mock.patch.object(loop, "load", lambda *_, **__: inputs),
            cost.FakeStepTracker(len(batch.rows)),
            HostWaits() as waits,
        ):
            trainer.train_epoch()
    updates = steps // config.optim.accum_freq
    assert state.cursor.step == updates and len(state.cursor.epoch_metrics["total"]) == updates
    assert gradients == {GPU}
    return waits


def _gradient_devices(state: TrainingState) -> set[torch.device]:
    parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
    return {p.grad.device for p in parameters if p.grad is not None}
