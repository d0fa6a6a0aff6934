"""The smallest and the largest value of every numeric setting train one step, or are refused in one line."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ccaco_cli.core import runtime
from ccaco_cli.core.config import RunConfig
from ccaco_cli.core.config_io import override
from ccaco_cli.core.data.caption_words import CaptionWords
from ccaco_cli.core.data.loader import PairDataset, PairPlan, TextColumn
from ccaco_cli.core.errors import CcacoError, ConfigError
from ccaco_cli.core.experiments.start import add_updates
from ccaco_cli.core.model import aligner as aligners
from ccaco_cli.core.model import towers
from ccaco_cli.core.model.matching import MATCHERS
from ccaco_cli.core.settings import ConfigKey, config_keys
from ccaco_cli.core.training import metrics_log
from ccaco_cli.core.training.config_checks import check
from ccaco_cli.core.training.loop import TrainingCallbacks, TrainingData, fit

ROWS, SIZE = 12, 32
MEMORY = 16 << 30
SMALL_MEMORY = 1 << 30
"""What a machine has free on which values at their limit are tried: what needs more is refused, and takes no time."""
SMALL = {
    "model.width": 16,
    "model.image.size": SIZE,
    "optim.batch_size": 6,
    "loss.cross_start": 0.0,
    "loss.cross_ramp": 0.0,
    "device": "cpu",
}
NEEDS: dict[str, dict[str, Any]] = {
    "model.fusion.layers": {"model.fusion.kind": "coattention"},
    "model.fusion.heads": {"model.fusion.kind": "coattention", "model.width": 1024},
    "model.fusion.dropout": {"model.fusion.kind": "coattention"},
    "model.fusion.window": {"model.fusion.kind": "unified", "model.fusion.attention": "window"},
    "model.fusion.spread": {"model.fusion.kind": "unified", "model.fusion.attention": "window"},
    "model.fusion.features": {"model.fusion.kind": "unified", "model.fusion.attention": "linear"},
    "model.fusion.redraw": {"model.fusion.kind": "unified", "model.fusion.attention": "linear"},
    "loss.bias": {"loss.contrastive": "sigmoid"},
    "loss.asymmetry": {"loss.balance": "gradnorm"},
    "loss.negatives": {"loss.cross": "matching"},
    "model.image.unlock": {"model.image.spec": "tiny:vit"},
}
"""Setting -> other settings without which it has no effect."""
DATA, CLIPS = ("image", "text"), ("audio", "video")
BEFORE_AND_AFTER = ("parallel.timeout", "eval.")
"""Beginnings of settings that a training step does not read."""


class OneStep(Exception):
    """Ends the training after its first step."""


def numeric_keys() -> Iterator[ConfigKey]:
    for key in config_keys(RunConfig):
        sample = key.default[0] if isinstance(key.default, tuple) else key.default
        if isinstance(sample, int | float) and not isinstance(sample, bool):
            yield key


def limits(key: ConfigKey) -> dict[str, float]:
    """The smallest and the largest accepted value."""
    declared, number = key.setting, int if isinstance(key.default, int) else float
    minimum = declared.min if declared.min is not None else math.nextafter(declared.above or 0.0, math.inf)
    maximum = declared.max if declared.max is not None else math.nextafter(declared.below or 0.0, -math.inf)
    return {"smallest": number(minimum), "largest": number(maximum)}


def is_tried(key: ConfigKey) -> bool:
    """Whether a training step, or the tower of a clip, reads a setting."""
    if key.key.startswith(BEFORE_AND_AFTER):
        return False
    return key.modality in ("", *DATA) or (key.modality in CLIPS and key.key.endswith((".seconds", ".rate")))


CASES = [
    pytest.param(key.key, end, value, id=f"{key.key}-{end}")
    for key in numeric_keys()
    if is_tried(key)
    for end, value in limits(key).items()
]


@lru_cache
def data_of(size: tuple[int, int]) -> Any:
    """Random images and captions of different length."""
    pixels = torch.randint(256, (ROWS, 3, *size), dtype=torch.uint8)
    rows = np.arange(ROWS)
    column = SimpleNamespace(
        row=rows, start=np.arange(ROWS + 1), length=None, inputs=lambda items: {"pixels": pixels[items]}
    )
    captions = [" ".join(["a red dog"] * (1 + row % 3)) for row in rows]
    return column, SimpleNamespace(captions=captions, caption_row=rows, caption_start=np.arange(ROWS + 1))


def train_one_step(config: RunConfig, folder: Path) -> list[float]:
    """Returns the losses of the steps that were trained: the first one, or all of a run that ended by itself."""
    check(config)
    runtime.seed(config.seed)
    aligner, built = aligners.build(config.model, config.loss, DATA, trains=True)
    add_updates(aligner, config)
    images, texts = data_of(built["image"].input_size or (SIZE, SIZE))
    columns = images, TextColumn(texts, built["text"].preprocess)
    plan = PairPlan(*columns, np.arange(ROWS), config.optim.batch_size, config.seed, captions=config.optim.captions)
    words = None
    if aligner.decoder is not None:
        words = CaptionWords(columns[1])
        aligner.decoder.add_words(words.token_ids())
    data = TrainingData(PairDataset(*columns, np.arange(ROWS), np.zeros(ROWS, np.int64), words), plan)
    totals: list[float] = []

    def report(done: int, total: int | None, facts: Any) -> None:
        totals.append(facts["total"])
        raise OneStep

    try:
        summary = fit(aligner, data, config, folder, TrainingCallbacks(lambda _: {"R-sum": 1.0}, None, report))
    except OneStep:
        return totals
    assert summary.warnings, "only a run whose loss is not finite ends before its first step"
    return totals


@pytest.fixture(autouse=True)
def read_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress is reported after each step."""
    monkeypatch.setattr(metrics_log, "SECONDS_PER_READ", 0.0)


@pytest.mark.parametrize(("key", "end", "value"), CASES)
def test_a_value_at_its_limit_trains_or_is_refused(
    key: str, end: str, value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "available_memory", lambda device: SMALL_MEMORY)
    modality = key.partition(".")[2].partition(".")[0]
    settings = SMALL | NEEDS.get(key, {}) | {key: value}
    try:
        config = override(RunConfig(), settings)
        if modality in CLIPS:  # the data set has none: the tower alone is built
            towers.build(config.model.tower(modality), modality)
        else:
            train_one_step(config, tmp_path)
    except CcacoError as error:
        assert "\n" not in str(error)
        assert error.expected or error.next


def test_settings_of_the_scoring_are_refused_or_clipped_to_the_data(
    data_root: Path, small: dict[str, Any], tmp_path: Path
) -> None:
    from ccaco_cli.core.experiments.request import TrainRequest
    from ccaco_cli.core.workflows.train import train

    for end in ("smallest", "largest"):
        extreme = {
            key.key: (limits(key)[end],) if isinstance(key.default, tuple) else limits(key)[end]
            for key in numeric_keys()
            if key.key.startswith("eval.")
        }
        run = train(TrainRequest("scenes", explicit=small | extreme), tmp_path / end, data_root=data_root)
        assert run.facts["metrics"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model.width": 16_384, "model.vectors": 1_024}, "layers beside the towers take .* GiB in training"),
        ({"model.image.size": 16_384}, "does not fit the memory.*--image-size"),
        ({"model.text.context_length": 1_000_000}, "does not fit the memory.*1,000,000 tokens.*--context-length"),
    ],
)
def test_a_model_that_cannot_fit_memory_is_refused_before_it_is_made(
    settings: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = override(RunConfig(), SMALL | settings)
    monkeypatch.setattr(runtime, "available_memory", lambda device: MEMORY)
    with pytest.raises(CcacoError, match=message):
        aligners.build(config.model, config.loss, DATA, trains=True)


def test_the_check_of_memory_counts_what_is_made_later(monkeypatch: pytest.MonkeyPatch) -> None:
    config = override(RunConfig(), SMALL)
    aligner, built = aligners.build(config.model, config.loss, DATA, trains=True)
    inside = {id(p) for tower in built.values() for p in tower.module.parameters()}
    size = sum(4 * p.numel() for p in aligner.parameters() if id(p) not in inside)
    for available, fits in ((4 * size, True), (4 * size - 1, False)):
        monkeypatch.setattr(runtime, "available_memory", lambda device, available=available: available)
        monkeypatch.setattr(towers, "_refuse_large_samples", lambda *_: None)
        if fits:
            aligners.build(config.model, config.loss, DATA, trains=True)
        else:
            with pytest.raises(ConfigError, match="beside the towers"):
                aligners.build(config.model, config.loss, DATA, trains=True)


@pytest.mark.parametrize(
    ("kind", "attention"), [*((kind, "dense") for kind in MATCHERS), ("unified", "linear"), ("coattention", "window")]
)
def test_the_check_of_memory_changes_no_weight(kind: str, attention: str) -> None:
    config = override(RunConfig(), SMALL | {"model.fusion.kind": kind, "model.fusion.attention": attention})
    states = []
    for trains in (False, True):
        torch.manual_seed(0)
        aligner, _ = aligners.build(config.model, config.loss, DATA, trains=trains)
        assert not any(p.is_meta for p in (*aligner.parameters(), *aligner.buffers()))
        states.append(aligner.state_dict())
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name
