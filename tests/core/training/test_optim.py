from __future__ import annotations

from typing import Any

import pytest
import torch

from ccaco_cli.core.config import OptimConfig
from ccaco_cli.core.training.optim import WeightAverage, adamw, lr_at, set_lr


def test_the_schedule_by_hand() -> None:
    config = OptimConfig(lr=2.0, warmup=0.25)
    rates = [lr_at(step, 8, config) for step in range(9)]
    half = 2**0.5 / 2
    root3 = 3**0.5 / 2
    assert rates == pytest.approx([1.0, 2.0, 2.0, 1 + root3, 1.5, 1.0, 0.5, 1 - root3, 0.0])
    assert [lr_at(step, 10, OptimConfig(lr=1.0, warmup=2)) for step in (0, 1, 2, 4)] == pytest.approx(
        [0.5, 1.0, 1.0, 0.5 + half / 2]
    )


@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.1, 0.33, 2.5, 7.0])
@pytest.mark.parametrize("total", [1, 3, 8, 30])
def test_the_rate_never_passes_its_peak(warmup: float, total: int) -> None:
    rates = [lr_at(step, total, OptimConfig(lr=1.0, warmup=warmup)) for step in range(total)]
    assert max(rates) <= 1.0
    assert min(rates) > 0


def test_only_matrices_decay_and_the_cross_branch_has_its_own_rate(toy: Any) -> None:
    config = toy.config(optim__wd=0.25, optim__cross_lr=0.5, optim__lr=0.1)
    aligner = toy.aligner(config)
    aligner.sides["image"].tower.requires_grad_(False)
    optimizer = adamw(aligner, config.optim)
    group_of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    set_lr(optimizer, 0.04)
    for name, parameter in aligner.named_parameters():
        if name.startswith("sides.image.tower"):
            assert id(parameter) not in group_of
            continue
        group = group_of[id(parameter)]
        assert group["weight_decay"] == (0.25 if parameter.ndim >= 2 else 0.0), name
        assert group["lr"] == pytest.approx(0.02 if name.startswith("matcher.") else 0.04), name
    assert group_of[id(aligner.log_scale)]["weight_decay"] == 0.0


def test_a_step_is_adamw_by_hand() -> None:
    model = torch.nn.Linear(1, 1)
    torch.nn.init.ones_(model.weight)
    torch.nn.init.ones_(model.bias)
    optimizer = adamw(model, OptimConfig(lr=0.1, wd=0.5))
    model(torch.ones(1, 1)).sum().backward()
    optimizer.step()
    assert model.weight.item() == pytest.approx(1 - 0.1 * 0.5 - 0.1, abs=1e-5)
    assert model.bias.item() == pytest.approx(1 - 0.1, abs=1e-5)


def test_the_average_is_that_of_the_weights_after_each_step_and_is_exchanged_for_them() -> None:
    model = torch.nn.Linear(1, 1)
    model.bias.requires_grad_(False)
    average, expected = WeightAverage(model, 0.75), None
    for value in (1.0, 2.0, 4.0):
        model.weight.data.fill_(value)
        average.update()
        expected = value if expected is None else 0.75 * expected + 0.25 * value
    with average.in_place():
        assert model.weight.item() == pytest.approx(expected)
        restored = WeightAverage(model, 0.75)
        restored.load_state_dict(average.state_dict())
    assert model.weight.item() == 4.0
    average.update()
    with average.in_place():
        assert model.weight.item() == pytest.approx(0.75 * (expected or 0.0) + 0.25 * 4.0)
