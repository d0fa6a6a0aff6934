"""Towers of transformers on fake GPU tensors: they encode a batch of samples of different length without a wait."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ccaco_cli.core.config import TowerConfig
from ccaco_cli.core.data.loader import pad
from ccaco_cli.core.model.towers import build
from ccaco_cli.core.model.towers.length_bucketing import MIN_LENGTH, encode_by_length
from ccaco_cli.core.model.towers.probing import RandomRecording
from ccaco_cli.core.training import cost
from ccaco_cli.core.types import LENGTHS, Features, move
from tests.core.model.towers.test_audio import wave
from tests.gpu.fake_gpu import GPU, HostWaits, on_gpu

SECONDS = (0.8, 0.3, 1.0, 0.3)
pytestmark = pytest.mark.usefixtures("fake_gpu")


def waits_of(encode: Any, module: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> HostWaits:
    """Encodes a batch on the GPU, from inputs on the CPU, in evaluation."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    on_device = on_gpu(module.eval(), mode)
    fake = {name: tensor if name == LENGTHS else mode.from_tensor(tensor) for name, tensor in inputs.items()}
    with mode, torch.no_grad(), cost.FakeStepTracker(len(SECONDS)), HostWaits() as waits:
        features: Features = encode(on_device, move(fake, GPU))
    assert {features.tokens.device, features.mask.device, features.pooled.device} == {GPU}
    return waits


@pytest.mark.parametrize(("kind", "norm"), [("wav2vec2", "group"), ("hubert", "layer"), ("wavlm", "group")])
def test_recordings_of_different_length(kind: str, norm: str, tmp_path: Path) -> None:
    tower = build(TowerConfig(f"hf:{wave(kind, tmp_path, norm)}", seconds=1.0), "audio")
    inputs = pad([tower.preprocess(RandomRecording(seed, seconds)) for seed, seconds in enumerate(SECONDS)])
    waits = waits_of(lambda module, batch: module(batch), tower.module, inputs)
    assert not waits.total, waits.waits
    if norm == "layer":  # without lengths, the program waits for those of the mask
        del inputs[LENGTHS]
        assert waits_of(lambda module, batch: module(batch), tower.module, inputs).total


def test_texts_of_different_length() -> None:
    tower = build(TowerConfig("tiny", context_length=2 * MIN_LENGTH), "text")
    mask = torch.arange(2 * MIN_LENGTH) < torch.tensor([[2 * MIN_LENGTH], [9], [20], [9]])
    inputs = {"ids": torch.ones_like(mask, dtype=torch.long), "mask": mask, LENGTHS: mask.sum(1)}
    waits = waits_of(encode_by_length, tower.module, inputs)
    assert not waits.total, waits.waits
