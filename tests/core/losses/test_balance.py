from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from ccaco_cli.core.config import LossConfig
from ccaco_cli.core.errors import ConfigError
from ccaco_cli.core.losses.balance import BALANCES, WEIGHT_RATE, Balance, beta_at, build
from ccaco_cli.core.losses.parts import LOSS_PARTS, part_weights
from ccaco_cli.core.losses.total import LossInputs, total_loss

PARTS = tuple(LOSS_PARTS)


def test_beta_waits_for_the_contrastive_half_then_rises() -> None:
    config = LossConfig(beta=0.5, cross_start=0.3, cross_ramp=0.1)
    assert [beta_at(config, p) for p in (0.0, 0.3, 0.35, 0.4, 1.0)] == pytest.approx([0, 0, 0.25, 0.5, 0.5])
    assert beta_at(replace(config, alpha=0.0), 0.0) == 0.5
    assert beta_at(replace(config, cross_ramp=0.0), 0.31) == 0.5


def test_a_fixed_beta_does_not_wait_and_a_cosine_rises_softly() -> None:
    config = LossConfig(beta=0.5, cross_start=0.3, cross_ramp=0.4)
    assert [beta_at(replace(config, balance="fixed"), p) for p in (0.0, 0.5, 1.0)] == [0.5, 0.5, 0.5]
    betas = [beta_at(replace(config, ramp="cosine"), p) for p in (0.3, 0.4, 0.5, 0.6, 0.7)]
    assert betas == pytest.approx([0.25 * (1 - math.cos(math.pi * x)) for x in (0, 0.25, 0.5, 0.75, 1)])


@pytest.mark.parametrize("name", BALANCES)
def test_every_balance_starts_from_the_weights_of_the_config(name: str) -> None:
    balance = build(LossConfig(balance=name))
    with torch.no_grad():
        assert [float(balance.scaled_weight(part, 0.7)) for part in PARTS] == pytest.approx([0.7] * len(PARTS))
        assert float(balance.penalty(PARTS)) == 0


@pytest.mark.parametrize(("settings", "words"), [({"balance": "equal"}, "uncertainty"), ({"ramp": "step"}, "cosine")])
def test_unknown_names_are_refused(settings: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build(LossConfig(**settings))  # type: ignore[arg-type]


def test_uncertainty_finds_the_weights_that_the_paper_promises() -> None:
    balance = build(LossConfig(balance="uncertainty"))
    losses = {"contrastive": torch.tensor(4.0), "cross": torch.tensor(0.25)}
    optimizer = torch.optim.Adam(balance.parameters(), lr=0.05)
    for _ in range(500):
        optimizer.zero_grad()
        total = sum(balance.scaled_weight(part, 1.0) * loss for part, loss in losses.items()) + balance.penalty(
            list(losses)
        )
        total.backward()
        optimizer.step()
    # d/ds (exp(-s) loss + s / 2) = 0 at exp(-s) = 1 / (2 loss)
    assert [float(balance.scaled_weight(part, 1.0)) for part in losses] == pytest.approx([1 / 8, 2.0], rel=0.02)
    assert float(balance.scaled_weight("domain", 1.0)) == 1, "a part that is not there learns nothing"


def test_uncertainty_gradient() -> None:
    balance = build(LossConfig(balance="uncertainty")).double()

    def total(loss: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(balance, {"log_variance": s}, (loss,))

    balance.forward = lambda loss: balance.scaled_weight("cross", 0.5) * loss + balance.penalty(["cross"])  # type: ignore[method-assign]
    inputs = (
        torch.tensor(2.0, dtype=torch.double, requires_grad=True),
        torch.randn(3, dtype=torch.double, requires_grad=True),
    )
    assert torch.autograd.gradcheck(total, inputs)


def gradnorm(steps: int, slopes: tuple[float, float], asymmetry: float = 0.0) -> tuple[Balance, torch.Tensor]:
    """Two losses whose gradients on the shared parameter are ``slopes``; their values do not change."""
    balance = build(LossConfig(balance="gradnorm", asymmetry=asymmetry))
    shared = torch.ones(1, requires_grad=True)
    for _ in range(steps):
        balance.observe(
            {"contrastive": slopes[0] * shared[0], "cross": slopes[1] * shared[0]},
            {"contrastive": 1.0, "cross": 1.0},
            [shared],
        )
    return balance, shared


def test_gradnorm_makes_gradients_of_one_size() -> None:
    final_weights, _ = gradnorm(400, (3.0, 1.0))
    weights = [float(final_weights.scaled_weight(part, 1.0)) for part in ("contrastive", "cross")]
    assert weights == pytest.approx([0.5, 1.5], abs=3 * WEIGHT_RATE)
    assert sum(weights) == pytest.approx(2)
    assert float(final_weights.scaled_weight("domain", 1.0)) == 1


def test_gradnorm_counts_the_weights_of_the_config() -> None:
    balance = build(LossConfig(balance="gradnorm", asymmetry=0.0))
    shared = torch.ones(1, requires_grad=True)
    for _ in range(400):
        balance.observe(
            {"contrastive": 1.0 * shared[0], "cross": 1.0 * shared[0]}, {"contrastive": 3.0, "cross": 1.0}, [shared]
        )
    assert float(balance.scaled_weight("contrastive", 3.0)) == pytest.approx(
        float(balance.scaled_weight("cross", 1.0)), abs=0.2
    )


def test_gradnorm_prefers_the_part_that_learns_more_slowly() -> None:
    balance = build(LossConfig(balance="gradnorm", asymmetry=1.5))
    shared = torch.ones(1, requires_grad=True)
    for step in range(100):
        fast = 1.0 - 0.9 * step / 100
        losses = {"contrastive": shared[0] - 1 + fast, "cross": 1.0 * shared[0]}  # same gradients, other values
        balance.observe(losses, {"contrastive": 1.0, "cross": 1.0}, [shared])
    assert balance.scaled_weight("cross", 1.0) > 1.3 * balance.scaled_weight("contrastive", 1.0)


def test_gradnorm_leaves_a_part_that_is_alone_and_a_sick_step() -> None:
    balance = build(LossConfig(balance="gradnorm"))
    shared = torch.ones(1, requires_grad=True)
    balance.observe({"contrastive": 2 * shared[0]}, {"contrastive": 1.0, "cross": 0.0}, [shared])
    assert balance.multiplier.tolist() == [1] * len(PARTS)
    assert balance.first[:2].isnan().tolist() == [False, True], "the cross loss counts from its own first step"
    balance.observe(
        {"contrastive": 2 * shared[0], "cross": math.inf * shared[0]}, {"contrastive": 1.0, "cross": 1.0}, [shared]
    )
    assert balance.multiplier.tolist() == [1] * len(PARTS)


def test_the_total_uses_the_balance() -> None:
    from ccaco_cli.core.losses.pairing import Pairs
    from ccaco_cli.core.types import Crossed
    from tests.core.losses.test_total import alignment

    loss_parts, config = (
        alignment(Crossed(torch.randn(4, 4)), Pairs(torch.arange(4))),
        LossConfig(alpha=2.0, balance="uncertainty"),
    )
    balance = build(config)
    balance.log_variance.data = torch.tensor([0.5, -1.0, 9.0])
    parts = total_loss(LossInputs(loss_parts), config, part_weights(config, 0.3), balance)
    wanted = 2 * math.exp(-0.5) * parts["contrastive"] + 0.3 * math.e * parts["cross"] - 0.25
    assert torch.allclose(parts["total"], wanted)
