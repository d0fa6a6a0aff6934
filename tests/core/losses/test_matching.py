from __future__ import annotations

import math

import pytest
import torch

from ccaco_cli.core.losses.matching import listwise, matching


def test_matching_by_hand() -> None:
    got = matching(torch.tensor([2.0, -1.0]), torch.tensor([True, False]))
    assert got.item() == pytest.approx((math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-1))) / 2, rel=1e-6)


def test_a_model_that_knows_only_the_prior_stays_at_its_entropy() -> None:
    prior = torch.full((300,), math.log(0.5))  # one true pair for two false ones
    assert matching(prior, torch.arange(300) % 3 == 0).item() == pytest.approx(0.6365, abs=1e-4)


def test_listwise_by_hand_and_at_chance() -> None:
    logits = torch.tensor([1.0, 0.0, -1.0])
    assert listwise(logits, 3).item() == pytest.approx(math.log(1 + math.exp(-1) + math.exp(-2)), rel=1e-6)
    assert listwise(torch.zeros(18), 9).item() == pytest.approx(math.log(9), rel=1e-6)


def test_order_of_queries_does_not_matter_but_order_within_does() -> None:
    logits = torch.randn(6)
    assert torch.allclose(listwise(logits, 3), listwise(torch.cat([logits[3:], logits[:3]]), 3))
    assert not torch.allclose(listwise(logits, 3), listwise(logits.flip(0), 3))


def test_gradients() -> None:
    logits = torch.randn(6, dtype=torch.float64, requires_grad=True)
    label = torch.tensor([True, False, False, True, False, True])
    assert torch.autograd.gradcheck(lambda x: matching(x, label), (logits,), eps=1e-3, atol=1e-2)
    assert torch.autograd.gradcheck(lambda x: listwise(x, 3), (logits,), eps=1e-3, atol=1e-2)
