"""Towers whose repeated blocks are left out of the checks at build."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from ccaco_cli.core.config import TowerConfig
from ccaco_cli.core.errors import TowerError
from ccaco_cli.core.model import towers
from ccaco_cli.core.model.attention import masked_mean
from ccaco_cli.core.model.towers import probing
from ccaco_cli.core.model.towers.repeated_blocks import finite_weights, without_repeated_blocks
from ccaco_cli.core.model.towers.tower import Tower
from ccaco_cli.core.types import Features
from tests.core.model.towers.test_probing import plant

_ = plant  # a fixture


class Layer(nn.Module):
    """A residual layer, which counts its calls. With ``window`` it reads padding, as an attention without mask does."""

    def __init__(self, number: int, window: int = 0, as_tuple: bool = False):
        super().__init__()
        self.layer_idx, self.window, self.as_tuple, self.calls = number, window, as_tuple, []
        self.linear = nn.Linear(8, 8)

    def forward(self, hidden_states: Tensor, mask: Tensor | None = None) -> Any:
        self.calls.append(self.layer_idx)
        states = hidden_states + self.linear(hidden_states)
        states = states + states.mean(1, keepdim=True) if self.window else states
        return (states, mask) if self.as_tuple else states


class Layers(nn.Module):
    """Word vectors and layers, mean-pooled."""

    def __init__(self, *layers: Layer):
        super().__init__()
        self.words, self.layers = nn.Embedding(49_408, 8), nn.ModuleList(layers)

    def forward(self, inputs: dict[str, Tensor]) -> Features:
        states, mask = self.words(inputs["ids"]), inputs["mask"]
        for layer in self.layers:
            output = layer(hidden_states=states, mask=mask)
            states, mask = output if layer.as_tuple else (output, mask)
        return Features(states, mask, masked_mean(states, mask))


def computed(module: Layers) -> list[bool]:
    return [bool(layer.calls) for layer in module.layers]


@pytest.mark.parametrize("as_tuple", [False, True])
def test_the_first_and_the_last_of_equal_blocks_compute(plant: Callable[..., Tower], as_tuple: bool) -> None:
    module = Layers(*(Layer(number, as_tuple=as_tuple) for number in range(6)))
    plant(module)
    assert computed(module) == [True, False, False, False, False, True]
    module({"ids": torch.ones(1, 3, dtype=torch.long), "mask": torch.ones(1, 3, dtype=torch.bool)})
    assert all(computed(module)), "afterwards, every block computes"


def test_a_block_with_another_setting_is_checked(plant: Callable[..., Tower]) -> None:
    for place in range(5):
        with pytest.raises(TowerError, match="changes with padding"):
            plant(Layers(*(Layer(number, window=2 * (number == place)) for number in range(5))))


def test_weights_that_are_not_finite_are_noticed_in_every_block(plant: Callable[..., Tower]) -> None:
    for place in range(5):
        module = Layers(*(Layer(number) for number in range(5)))
        with torch.no_grad():
            module.layers[place].linear.weight[0, 0] = torch.nan
        with pytest.raises(TowerError, match="not finite"):
            plant(module)


def test_blocks_that_change_the_shape_compute() -> None:
    layers = nn.Sequential(*(nn.Conv1d(4, 4, 3, stride=2) for _ in range(4)), *(nn.Conv1d(4, 4, 1) for _ in range(4)))
    x = torch.ones(1, 4, 63)
    with torch.no_grad(), without_repeated_blocks(layers) as skipped:
        assert layers(x).shape == layers[:4](x).shape == (1, 4, 3)
    assert skipped == [*layers[1:3], *layers[5:7]] and finite_weights(skipped)
    assert not any("forward" in vars(layer) for layer in layers)


SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 6}


def ast(path: Path) -> str:
    model = hf.ASTModel(hf.ASTConfig(**SMALL, max_length=64, num_mel_bins=32))
    model.save_pretrained(path)
    hf.ASTFeatureExtractor(max_length=64, num_mel_bins=32).save_pretrained(path)
    return "audio"


def video_mae(path: Path) -> str:
    hf.VideoMAEModel(hf.VideoMAEConfig(**SMALL, image_size=32, patch_size=16, num_frames=4)).save_pretrained(path)
    hf.VideoMAEImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(path)
    return "video"


def vit(path: Path) -> str:
    hf.ViTModel(hf.ViTConfig(**SMALL, image_size=32, patch_size=16)).save_pretrained(path)
    hf.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(path)
    return "image"


@pytest.mark.parametrize("make", [ast, video_mae, vit], ids=lambda make: make.__name__)
def test_two_of_six_layers_of_a_model_of_transformers_compute(
    make: Callable[[Path], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing, "_passed", set())
    modality = make(tmp_path)
    tower = towers.build(TowerConfig(f"hf:{tmp_path}"), modality)
    layers = max((m for m in tower.module.modules() if isinstance(m, nn.ModuleList)), key=len)
    assert len(layers) == 6
    calls: list[int] = []
    for number, layer in enumerate(layers):
        next(m for m in layer.modules() if isinstance(m, nn.Linear)).register_forward_hook(
            lambda *_, number=number: calls.append(number)
        )
    probing._passed.clear()
    probing.probe(tower)
    assert set(calls) == {0, 5}
