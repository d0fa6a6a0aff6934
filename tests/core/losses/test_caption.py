"""The caption loss by hand, and its gradient."""

from __future__ import annotations

import math

import pytest
import torch

from ccaco_cli.core.config import LossConfig
from ccaco_cli.core.losses.caption import caption_loss
from ccaco_cli.core.losses.parts import LOSS_PARTS, part_weights

NONE = -100


def test_hand_computed() -> None:
    # texts of two words and of one word, the second padded; probabilities 1/4 and 3/4 of two words, by log-odds log 3
    odds = math.log(3.0)
    logits = torch.tensor([[[0.0, odds], [odds, 0.0]], [[0.0, 0.0], [50.0, -50.0]]])
    targets = torch.tensor([[1, 1], [0, NONE]])
    expected = -(math.log(3 / 4) + math.log(1 / 4) + math.log(1 / 2)) / 3
    assert caption_loss(logits, targets).item() == pytest.approx(expected, abs=1e-6)


def test_padding_and_order_change_nothing() -> None:
    logits, targets = torch.randn(4, 5, 7), torch.randint(0, 7, (4, 5))
    loss = caption_loss(logits, targets)
    wider = torch.cat([logits, torch.randn(4, 3, 7)], 1), torch.nn.functional.pad(targets, (0, 3), value=NONE)
    order = torch.tensor([2, 0, 3, 1])
    assert caption_loss(*wider).item() == pytest.approx(loss.item(), rel=1e-6)
    assert caption_loss(logits[order], targets[order]).item() == pytest.approx(loss.item(), rel=1e-6)


def test_no_word_gives_zero() -> None:
    assert caption_loss(torch.randn(2, 3, 4), torch.full((2, 3), NONE)).item() == 0


def test_gradcheck() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        logits = torch.randn(2, 3, 4, requires_grad=True)
        targets = torch.tensor([[0, 3, NONE], [2, NONE, NONE]])

        def in_double(values: torch.Tensor) -> torch.Tensor:
            log_prob = values.log_softmax(-1).gather(2, targets.clamp_min(0)[..., None])[..., 0]
            return -(log_prob * (targets != NONE)).sum() / 3

        # the loss itself computes in float32, so its gradient is compared with that of its formula
        assert torch.autograd.gradcheck(in_double, logits)
        gradients = [torch.autograd.grad(f(logits), logits)[0] for f in (in_double, lambda x: caption_loss(x, targets))]
        assert torch.allclose(*gradients, atol=1e-6)
    finally:
        torch.set_default_dtype(torch.float32)


def test_entry_of_the_table() -> None:
    part = LOSS_PARTS["caption"]
    assert "caption" not in part_weights(LossConfig(), 0.5)
    assert part_weights(LossConfig(gamma=0.7), 0.5)["caption"] == 0.7
    assert part.chance and part.chance(LossConfig(gamma=1.0), 8, 50) == pytest.approx(math.log(50))
    assert list(LOSS_PARTS)[-2:] == ["caption", "answer"]  # learned weights of older runs keep their places
