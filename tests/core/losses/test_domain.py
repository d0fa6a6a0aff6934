from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ccaco_cli.core.errors import ConfigError, LossInputError
from ccaco_cli.core.losses.domain import (
    DOMAIN_LOSSES,
    KERNELS,
    TERMS,
    DomainFeatures,
    classification,
    coral,
    dann,
    domain_loss,
    domain_terms,
    mmd,
    ramp,
    reverse,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_reversal_reverses() -> None:
    x = normal(4, 3).requires_grad_()
    weight = normal(3, 1, seed=1)
    plain = torch.autograd.grad((x @ weight).sum(), x)[0]
    turned = torch.autograd.grad((reverse(x, 0.3) @ weight).sum(), x)[0]
    assert torch.equal(reverse(x, 0.3), x)
    assert torch.allclose(turned, -0.3 * plain)
    assert not torch.autograd.grad((reverse(x, 0.0) @ weight).sum(), x)[0].any()


def test_one_step_and_features_are_harder_to_tell_apart_for_a_classifier_that_got_better() -> None:
    features, domain = (normal(40, 2) + 2 * (torch.arange(40) // 20)[:, None]).requires_grad_(), torch.arange(40) // 20
    critic = normal(2, 2, seed=1).requires_grad_()
    before = dann(reverse(features, 1.0) @ critic, domain)
    of_features, of_critic = torch.autograd.grad(before, (features, critic))
    with torch.no_grad():
        assert dann((features - 0.5 * of_features) @ critic, domain) > before
        assert dann(features @ (critic - 0.1 * of_critic), domain) < before


def test_the_ramp_is_the_papers() -> None:
    assert ramp(0.0) == 0.0
    assert ramp(0.5) == pytest.approx(2 / (1 + math.exp(-5)) - 1)
    assert 0.9999 < ramp(1.0) < 1.0


def test_dann_by_hand_and_every_domain_weighs_alike() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    source, target = math.log(1 + math.exp(-2)), math.log(1 + math.exp(-1))
    assert dann(logits, torch.tensor([0, 1, 1])).item() == pytest.approx((source + target) / 2)
    assert dann(torch.zeros(5, 3), torch.tensor([0, 0, 1, 2, 2])).item() == pytest.approx(math.log(3))


def test_mmd_by_hand() -> None:
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [3.0]])
    # squared distances: within x 1, within y 9, between 0, 9, 1, 4; the median is 1 (torch takes the lower)
    both = torch.cat([x, y])
    distances = ((both - both.T) ** 2)[~torch.eye(4, dtype=torch.bool)].median().item()
    total = 0.0
    for factor in KERNELS:
        k = {d: math.exp(-d / (factor * distances)) for d in (0, 1, 4, 9)}
        total += (2 + 2 * k[1]) / 4 + (2 + 2 * k[9]) / 4 - 2 * (k[0] + k[9] + k[1] + k[4]) / 4
    assert mmd(x, y).item() == pytest.approx(total / len(KERNELS), rel=1e-5)


def test_mmd_is_zero_for_equal_samples_and_sees_what_moments_do() -> None:
    x = normal(60, 5)
    assert mmd(x, x[torch.randperm(60)]).item() == pytest.approx(0.0, abs=1e-12)
    near, far = mmd(x, normal(60, 5, seed=1)).item(), mmd(x, normal(60, 5, seed=1) + 1.0).item()
    assert 0 <= near < far / 5
    assert mmd(x, 100 * normal(60, 5, seed=1)).item() < 2
    assert mmd(7 * x, 7 * x + 7).item() == pytest.approx(mmd(x, x + 1).item()), "the median heuristic knows no unit"
    assert mmd(torch.zeros(3, 2), torch.zeros(2, 2)).item() == 0.0


def test_coral_by_hand() -> None:
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])  # covariance [[2, 0], [0, 0]]
    y = torch.tensor([[0.0, 1.0], [0.0, -1.0]])  # covariance [[0, 0], [0, 2]]
    assert coral(x, y).item() == pytest.approx(8 / 16)
    assert coral(x, x + 5).item() == pytest.approx(0.0, abs=1e-6), "means are not looked at"


@pytest.mark.parametrize("loss", [mmd, coral])
def test_order_and_sides_do_not_matter(loss: object) -> None:
    x, y = normal(6, 3), normal(8, 3, seed=1) + 1
    assert torch.allclose(loss(x, y), loss(y.flip(0), x.flip(0)))  # type: ignore[operator]
    assert loss(x, y) > 1e-4  # type: ignore[operator]


def test_gradients() -> None:
    x, y = normal(4, 3).requires_grad_(), (normal(5, 3, seed=1) + 1).requires_grad_()
    assert torch.autograd.gradcheck(coral, (x, y))
    median = mmd(x, y)
    got = torch.autograd.grad(median, (x, y))
    # the bandwidths carry no gradient: held against the same sum with them fixed
    with torch.no_grad():
        both = torch.cat([x, y])
        distances = torch.cdist(both, both).square()[~torch.eye(9, dtype=torch.bool)].median()

    def fixed(a: Tensor, b: Tensor) -> Tensor:
        def kernel(s: Tensor, t: Tensor) -> Tensor:
            square = ((s[:, None] - t[None]) ** 2).sum(-1)
            return torch.stack([torch.exp(-square / (f * distances)) for f in KERNELS]).mean(0).mean()

        return kernel(a, a) + kernel(b, b) - 2 * kernel(a, b)

    assert torch.allclose(median, fixed(x, y))
    assert torch.autograd.gradcheck(fixed, (x, y))
    for ours, wanted in zip(got, torch.autograd.grad(fixed(x, y), (x, y)), strict=True):
        assert torch.allclose(ours, wanted)
    logits = normal(5, 2).float().requires_grad_()
    domain = torch.tensor([0, 0, 0, 1, 1])
    ours = torch.autograd.grad(dann(logits, domain), logits)[0]
    share = torch.tensor([1 / 6] * 3 + [1 / 4] * 2)[:, None]
    assert torch.allclose(ours, share * (logits.softmax(1) - torch.nn.functional.one_hot(domain)), atol=1e-6)


def test_terms_are_added_and_ramped() -> None:
    features, domain, logits = normal(8, 3), torch.arange(8) // 4, normal(8, 2, seed=2)
    inputs = DomainFeatures(features, domain, 0.5, 2, logits)
    parts = {name: term(inputs).item() for name, term in TERMS.items()}
    assert parts["mmd"] == pytest.approx(0.5 * mmd(features[:4], features[4:]).item())
    assert parts["dann"] == pytest.approx(dann(logits, domain).item()), "the reversal has its ramp"
    assert domain_loss("both", inputs).item() == pytest.approx(parts["dann"] + parts["mmd"])
    assert {name: set(terms) <= set(TERMS) for name, terms in DOMAIN_LOSSES.items()} == dict.fromkeys(
        DOMAIN_LOSSES, True
    )


def test_a_batch_of_one_domain_costs_nothing() -> None:
    features = normal(4, 3).requires_grad_()
    loss = domain_loss("mmd", DomainFeatures(features, torch.zeros(4, dtype=torch.long), 1.0, 1))
    assert loss.item() == 0.0
    loss.backward()


def test_classification_skips_rows_without_a_label() -> None:
    logits = torch.tensor([[2.0, 0.0], [9.0, 0.0], [0.0, 1.0]])
    wanted = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-1))) / 2
    assert classification(logits, torch.tensor([0, -1, 1])).item() == pytest.approx(wanted)
    assert classification(logits, torch.tensor([-1, -1, -1])).item() == 0.0


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'dan'; expected none \| dann"):
        domain_terms("dan")
    for call in (
        lambda: dann(torch.zeros(3, 2), torch.zeros(2, dtype=torch.long)),
        lambda: mmd(torch.zeros(3, 2), torch.zeros(3, 1)),
        lambda: coral(torch.zeros(1, 2), torch.zeros(3, 2)),
        lambda: domain_loss("dann", DomainFeatures(torch.zeros(2, 2), torch.tensor([0, 1]), 1.0, 2)),
    ):
        with pytest.raises(LossInputError):
            call()


@pytest.mark.parametrize("term", ["mmd", "coral"])
def test_distances_have_the_gradient_of_float32_under_autocast(term: str) -> None:
    domain = torch.arange(24) // 12

    def gradient(enabled: bool) -> Tensor:
        features = (normal(24, 8) + 5 + 0.1 * domain[:, None]).float().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss = domain_loss(term, DomainFeatures(features, domain, ramp=1.0, domains=int(domain.max()) + 1))
        loss.backward()
        assert features.grad is not None
        return features.grad

    expected = gradient(False)
    assert (gradient(True) - expected).norm() <= 1e-5 * expected.norm()
