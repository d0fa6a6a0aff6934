from __future__ import annotations

from typing import Any

import pytest
import torch

from ccaco_cli.core.config import LossConfig, ModelConfig
from ccaco_cli.core.config_io import override
from ccaco_cli.core.errors import ConfigError
from ccaco_cli.core.model import aligner as aligners
from ccaco_cli.core.training.statistics import modules_with_statistics, reestimate

SMALL = {"width": 16, "image.size": 64, "image.pool": "max"}
"""Smaller, and the zeros around a picture would weigh as much as its brightness."""


@pytest.fixture(scope="module")
def aligner() -> Any:
    torch.manual_seed(0)
    return aligners.build(override(ModelConfig(), SMALL), LossConfig(), ("image", "text"))[0]


def pictures(mean: float, seed: int) -> dict[str, torch.Tensor]:
    noise = torch.randn(64, 3, 64, 64, generator=torch.Generator().manual_seed(seed))
    return {"pixels": (mean + 20 * noise).clamp(0, 255).to(torch.uint8)}


def test_statistics_are_those_of_the_batches_and_weights_stay(aligner: Any) -> None:
    weights = {k: v.clone() for k, v in aligner.named_parameters()}
    norm = next(m for m in aligner.sides["image"].modules() if isinstance(m, torch.nn.BatchNorm2d))
    statistics: list[torch.Tensor] = []
    hook = norm.register_forward_hook(lambda module, inputs, out: statistics.append(inputs[0].detach().mean((0, 2, 3))))
    momentum = norm.momentum
    for round_ in range(2):  # once more changes nothing: it starts anew
        statistics.clear()
        reestimate(aligner, "image", [pictures(40, 1), pictures(200, 2)])
        assert torch.allclose(norm.running_mean, torch.stack(statistics).mean(0), atol=1e-4), round_
    hook.remove()
    assert norm.momentum == momentum
    assert not norm.training
    assert not any(m.training for m in aligner.modules())
    assert all(torch.equal(v, weights[k]) for k, v in aligner.named_parameters())


def test_a_model_of_one_domain_sees_the_other_as_it_saw_its_own(aligner: Any) -> None:
    """The other domain is the same pictures at another brightness: its own statistics take the difference away."""
    dark, bright = pictures(90, 3), {"pixels": (pictures(90, 3)["pixels"].float() + 70).clamp(0, 255).to(torch.uint8)}
    reestimate(aligner, "image", [dark])
    adapted, before = aligner.encode("image", dark)[0].z, aligner.encode("image", bright)[0].z
    reestimate(aligner, "image", [bright])
    after = aligner.encode("image", bright)[0].z
    assert (adapted - after).norm() < 0.7 * (adapted - before).norm()


def test_locked_towers_keep_their_statistics_and_a_side_without_any_is_refused() -> None:
    locked = override(ModelConfig(), {**SMALL, "image.lock": True, "image.center": "off"})
    model = aligners.build(locked, LossConfig(), ("image", "text"))[0]
    assert modules_with_statistics(model, "image") == []
    with pytest.raises(ConfigError, match=r"no running statistics.*image tower tiny"):
        reestimate(model, "image", [])
