from __future__ import annotations

from typing import Any

import pytest
import torch

from ccaco_cli.core.losses import contrastive
from ccaco_cli.core.losses.total import CROSS_LOSSES
from ccaco_cli.core.training import step


def batch(toy: Any, config: Any) -> Any:
    data, plan = toy.data(config)
    return data[plan.epoch(0)[0]]


def test_parts_are_the_losses_of_the_models_own_outputs(toy: Any) -> None:
    config = toy.config(loss__alpha=2.0, loss__cross_batch=0)
    aligner, given = toy.aligner(config).eval(), batch(toy, config)
    parts = step.losses(aligner, given, config.loss, beta=0.3)
    a, b = aligner.encode("image", given.a), aligner.encode("text", given.b)
    table = aligner.cross(aligner.local("image", a), aligner.local("text", b)).match_logit
    assert torch.allclose(parts["contrastive"], contrastive.info_nce(a.z, b.z, given.group, aligner.logit_scale()))
    assert torch.allclose(parts["cross"], contrastive.matrix_nce(table, given.group, given.group), atol=1e-6)
    assert torch.allclose(parts["total"], 2 * parts["contrastive"] + 0.3 * parts["cross"])


def test_without_weight_the_cross_branch_does_not_run(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config = toy.config()
    aligner = toy.aligner(config)
    monkeypatch.setattr(aligner, "cross", None)
    parts = step.losses(aligner, batch(toy, config), config.loss, beta=0.0)
    assert set(parts) == {"contrastive", "total"}
    parts["total"].backward()
    assert all(p.grad is None for p in aligner.matcher.parameters())


@pytest.mark.parametrize("name", [n for n in CROSS_LOSSES if n != "mse"])
def test_every_cross_loss_trains_towers_through_the_cross_branch(toy: Any, name: str) -> None:
    config = toy.config(loss__alpha=0.0, loss__cross=name)
    aligner = toy.aligner(config).train()
    generator = torch.Generator().manual_seed(0)
    parts = step.losses(aligner, batch(toy, config), config.loss, 1.0, generator)
    assert set(parts) == {"cross", "total"}
    parts["total"].backward()
    for modality in ("image", "text"):
        assert aligner.sides[modality].tower.linear.weight.grad.abs().sum() > 0


def test_the_generator_alone_draws_the_pairs(toy: Any) -> None:
    config = toy.config(loss__cross="matching", loss__cross_batch=4)
    aligner, given = toy.aligner(config).eval(), batch(toy, config)

    def cross(seed: int) -> float:
        return float(step.losses(aligner, given, config.loss, 1.0, torch.Generator().manual_seed(seed))["cross"].detach())

    assert cross(1) == cross(1)
    assert len({cross(seed) for seed in range(5)}) > 1
