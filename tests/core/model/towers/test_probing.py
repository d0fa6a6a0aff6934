"""The checks of a tower at build, on towers that break one of them each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ccaco_cli.core.config import TowerConfig
from ccaco_cli.core.errors import TowerError
from ccaco_cli.core.experiments.request import TrainRequest
from ccaco_cli.core.modalities import MODALITIES
from ccaco_cli.core.model import towers
from ccaco_cli.core.model.attention import masked_mean
from ccaco_cli.core.model.towers import probing
from ccaco_cli.core.model.towers.pooling import first_token
from ccaco_cli.core.model.towers.tiny import build_text
from ccaco_cli.core.model.towers.tower import Tower, TowerSpec
from ccaco_cli.core.types import Features
from ccaco_cli.core.workflows.train import train

Fault = Callable[[Tensor, Tensor], Tensor]
"""(token states [B, L, W], mask [B, L]) -> states with a fault."""


def draws_noise(states: Tensor, mask: Tensor) -> Tensor:
    return states + 0.01 * torch.randn_like(states)


def drops_tokens_at_random(states: Tensor, mask: Tensor) -> Tensor:
    return states * (torch.rand(states.shape[:2]) > 0.5).unsqueeze(-1)


def subtracts_the_mean_of_the_batch(states: Tensor, mask: Tensor) -> Tensor:
    return states - states.mean(0, keepdim=True) * (len(states) > 1)


def reads_padding(states: Tensor, mask: Tensor) -> Tensor:
    return states + states.mean(1, keepdim=True)


def counts_positions(states: Tensor, mask: Tensor) -> Tensor:
    return states / states.shape[1]


def returns_nan(states: Tensor, mask: Tensor) -> Tensor:
    return states.log()


def returns_nan_for_padding(states: Tensor, mask: Tensor) -> Tensor:
    return states.masked_fill(~mask.unsqueeze(-1), float("nan"))


def returns_a_wider_state(states: Tensor, mask: Tensor) -> Tensor:
    return states.repeat(1, 1, 2)


def fails(states: Tensor, mask: Tensor) -> Tensor:
    raise KeyError("no such layer\nsecond line")


class FaultyModule(nn.Module):
    """Word vectors, mean-pooled, with a fault in between."""

    def __init__(self, fault: Fault | None, pool: Callable[[Tensor, Tensor], Tensor] = masked_mean):
        super().__init__()
        self.words, self.fault, self.pool = nn.Embedding(49_408, 8), fault, pool

    def forward(self, inputs: dict[str, Tensor]) -> Features:
        states, mask = self.words(inputs["ids"]), inputs["mask"]
        states = self.fault(states, mask) if self.fault else states
        return Features(states, mask, self.pool(states, mask))


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Tower]:
    """Builds a text tower around a module, as a family of the table."""

    def build(module: nn.Module, **changes: Any) -> Tower:
        def builder(spec: TowerSpec, config: TowerConfig) -> Tower:
            facts: dict[str, Any] = {"pooled_from": "mean", "fingerprint": f"{id(module)}", "width": 8}
            facts |= {"pretrained": True, **changes}
            return replace(build_text(TowerSpec("tiny", "", ""), config), spec=spec, module=module, **facts)

        monkeypatch.setitem(MODALITIES["text"].tower_families, "planted", builder)  # type: ignore[arg-type]
        return towers.build(TowerConfig("planted"), "text")

    return build


MESSAGES: dict[Fault, str] = {
    draws_noise: "gives another output for the same input",
    drops_tokens_at_random: "gives another output for the same input",
    subtracts_the_mean_of_the_batch: "changes with the other samples of its batch",
    reads_padding: "changes with padding",
    counts_positions: "changes with padding",
    returns_nan: "not finite",
    returns_nan_for_padding: "not finite",
    returns_a_wider_state: r"returns tokens \[2, \d+, 16\]",
    fails: r"cannot encode its text inputs \(KeyError",
}


@pytest.mark.parametrize("fault", MESSAGES, ids=lambda fault: fault.__name__)
def test_a_planted_fault_is_refused_by_name(fault: Fault, plant: Callable[..., Tower]) -> None:
    with pytest.raises(TowerError, match=MESSAGES[fault] + ".*: planted; expected .*; next: ") as caught:
        plant(FaultyModule(fault))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pooled_from": "first"}, "pooled vector of this tower is not the first of its tokens"),
        ({"pooled_from": "last"}, "pooled vector of this tower is not the last of its tokens"),
        ({"width": 9}, "returns tokens"),
        ({"tokens": 3}, "returns tokens"),
        ({"grid": (9, 9)}, r"tokens for a grid of \(9, 9\)"),
    ],
)
def test_a_wrong_declaration_is_refused(changes: dict[str, Any], message: str, plant: Callable[..., Tower]) -> None:
    with pytest.raises(TowerError, match=message):
        plant(FaultyModule(None), **changes)


def test_a_class_token_must_exist(plant: Callable[..., Tower]) -> None:
    module = FaultyModule(None, first_token)
    with pytest.raises(TowerError, match="returns no class token before its patches"):
        plant(module, pooled_from="first", grid=(1, 4))
    assert plant(module, pooled_from="first", grid=(1, 3)).grid == (1, 3)


def test_wrong_masks_and_pooled_vectors_are_refused(plant: Callable[..., Tower]) -> None:
    class OtherOutput(FaultyModule):
        def __init__(self, change: Callable[[Features], Features]):
            super().__init__(None)
            self.change = change

        def forward(self, inputs: dict[str, Tensor]) -> Features:
            return self.change(super().forward(inputs))

    for change, message in (
        (lambda features: replace(features, mask=features.mask.long()), "a mask of torch.int64"),
        (lambda features: replace(features, mask=features.mask[:, 1:]), "returns a mask"),
        (lambda features: replace(features, mask=features.mask & False), "a sample without real tokens"),
        (lambda features: replace(features, pooled=features.pooled[:, :4]), r"returns pooled \[2, 4\]"),
        (lambda features: replace(features, pooled=features.pooled / 0), "not finite"),
    ):
        with pytest.raises(TowerError, match=message):
            plant(OtherOutput(change))


def test_a_random_preprocessing_is_refused(plant: Callable[..., Tower]) -> None:
    good = plant(FaultyModule(None))

    class RandomTokenizer:
        context_length = 77

        def __call__(self, texts: list[str]) -> dict[str, Tensor]:
            inputs: dict[str, Tensor] = good.preprocess(texts)
            return inputs | {"ids": torch.randint(1, 1000, inputs["ids"].shape)}

    tokenizer = RandomTokenizer()
    with pytest.raises(TowerError, match="preprocessing of this tower gives another output for the same sample"):
        plant(FaultyModule(None), preprocess=tokenizer, tokenizer=tokenizer)


def test_the_probe_leaves_modes_gradients_and_the_generator_alone() -> None:
    torch.manual_seed(5)
    tower = build_text(TowerSpec.parse("tiny"), TowerConfig())
    tower.module.train()
    tower.module.body.transformer.eval()  # type: ignore[union-attr, operator]
    modes = [module.training for module in tower.module.modules()]
    before = torch.get_rng_state()
    probing.probe(tower)
    assert torch.equal(torch.get_rng_state(), before)
    assert [module.training for module in tower.module.modules()] == modes
    assert all(parameter.grad is None for parameter in tower.module.parameters())


def test_a_known_fingerprint_is_not_encoded_again(plant: Callable[..., Tower]) -> None:
    class Counting(FaultyModule):
        calls = 0

        def forward(self, inputs: dict[str, Tensor]) -> Features:
            Counting.calls += 1
            return super().forward(inputs)

    module = Counting(None)
    plant(module)
    assert Counting.calls == 2
    plant(module)
    assert Counting.calls == 2
    plant(module, fingerprint="another one")
    assert Counting.calls == 4
    # random weights: the architecture alone counts
    plant(module, pretrained=False)
    assert Counting.calls == 6
    plant(module, pretrained=False, fingerprint="of another seed")
    assert Counting.calls == 6
    module.extra = torch.nn.Linear(2, 2)
    plant(module, pretrained=False)
    assert Counting.calls == 8


@pytest.mark.parametrize(
    ("spec", "modality"),
    [
        ("tiny", "image"),
        ("tiny:hybrid", "image"),
        ("tiny:vit", "image"),
        ("tiny", "text"),
        ("tiny:multilingual", "text"),
        ("tiny", "audio"),
        ("tiny", "video"),
        ("frames:tiny", "video"),
    ],
)
def test_every_small_tower_is_probed_and_passes(spec: str, modality: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "_passed", set())
    checked: list[str] = []
    monkeypatch.setattr(probing, "_check_output", lambda tower, *_: checked.append(tower.modality))
    assert towers.build(TowerConfig(spec), modality).modality == modality
    assert checked.count(modality) == 2
    assert MODALITIES[modality].probe_samples is not None


def test_a_refused_tower_leaves_no_run_folder(
    plant: Callable[..., Tower], data_root: Path, small: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(TowerError):
        plant(FaultyModule(draws_noise))
    request = TrainRequest("scenes", explicit=small | {"model.text.spec": "planted"})
    with pytest.raises(TowerError, match="another output for the same input"):
        train(request, tmp_path / "runs" / "refused", data_root=data_root)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not (tmp_path / "runs" / "refused").exists()
