"""What a GPU computes, so that the program need not wait for it, equals what a CPU computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ccaco_cli.core import runtime
from ccaco_cli.core.config import FusionConfig, LossConfig
from ccaco_cli.core.evaluation.tiles import both_ranks
from ccaco_cli.core.losses import balance, blocked, contrastive, pairing, total
from ccaco_cli.core.losses.domain import DomainFeatures, domain_loss
from ccaco_cli.core.model import matching
from ccaco_cli.core.model.centering import Center
from ccaco_cli.core.types import Crossed, Embedding, LocalTokens

Both = Callable[[Callable[[], Any]], tuple[Any, Any]]


@pytest.fixture
def on_both(monkeypatch: pytest.MonkeyPatch) -> Both:
    """Returns the results of a function as a CPU and as a GPU would compute them."""

    def run(compute: Callable[[], Any]) -> tuple[Any, Any]:
        on_cpu = compute()
        with monkeypatch.context() as patch:
            patch.setattr(runtime, "must_wait", lambda tensor: True)
            return on_cpu, compute()

    return run


def units(*shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))), dim=-1)


@pytest.mark.parametrize("scale", [20.0, 99.0, 1000.0])
def test_large_batches(on_both: Both, scale: float) -> None:
    group = torch.arange(40) // 3

    def loss_and_gradient() -> tuple[Tensor, Tensor]:
        z = units(2, 40, 8).requires_grad_()
        loss = blocked.info_nce(z[0], z[1], group, torch.tensor(scale))
        loss.backward()
        assert z.grad is not None
        return loss.detach(), z.grad

    for on_cpu, on_gpu in zip(*on_both(loss_and_gradient), strict=True):
        torch.testing.assert_close(on_gpu, on_cpu)


def test_groups_are_numbered_as_by_unique() -> None:
    group = torch.tensor([7, 2, 7, 9, 2, 2])
    _, position, size = torch.unique(group, return_inverse=True, return_counts=True)
    numbered, sizes = blocked._group_positions(group)
    assert torch.equal(numbered, position)
    assert sizes.tolist() == [*size.tolist(), 1, 1, 1]


@pytest.mark.parametrize("place", [torch.nan, torch.inf])
def test_rows_that_are_not_finite_give_a_loss_of_nan(monkeypatch: pytest.MonkeyPatch, place: float) -> None:
    monkeypatch.setattr(runtime, "must_wait", lambda tensor: True)
    z, group = units(2, 6, 4), torch.arange(6)
    z[0, 2, 1] = place
    for max_scores in (blocked.MAX_MATRIX_SCORES, 1):
        monkeypatch.setattr(blocked, "MAX_MATRIX_SCORES", max_scores)
        assert contrastive.info_nce(z[0], z[1], group, torch.tensor(10.0)).isnan()
        assert contrastive.sharded_info_nce(z[0], z[1], group, torch.tensor(10.0), slice(1, 3)).isnan()


@pytest.mark.parametrize(("size", "batch"), [(4, 12), (2, 64), (0, 12)])
def test_hard_negatives(on_both: Both, size: int, batch: int) -> None:
    z, group = units(2, batch, 8), torch.arange(batch) // 2

    def batch_pairs() -> tuple[Tensor, Tensor | None]:
        pairs = pairing.hard_negative_pairs(z[0], z[1], group, size, 3, torch.Generator().manual_seed(1))
        assert pairs.index is not None
        return pairs.rows[pairs.index], pairs.label

    for on_cpu, on_gpu in zip(*on_both(batch_pairs), strict=True):
        assert torch.equal(on_gpu, on_cpu)


def test_a_batch_of_one_group_has_no_loss_with_negatives(on_both: Both) -> None:
    z, group, config = units(2, 4, 8), torch.zeros(4, dtype=torch.long), LossConfig(cross="matching")

    def loss() -> Tensor | None:
        a, b = (Embedding(x, x) for x in z)
        pairs = total.sample_pairs(a, b, group, config, torch.Generator())
        assert pairs.index is not None
        alignment = total.Alignment(a, b, group, torch.tensor(1.0), Crossed(torch.zeros(len(pairs.index))), pairs=pairs)
        return total.cross_branch_loss(alignment, config)

    on_cpu, on_gpu = on_both(loss)
    assert on_cpu.isnan()
    assert on_gpu.isnan()


@pytest.mark.parametrize("name", ["mmd", "coral"])
@pytest.mark.parametrize("domains", [2, 3])
def test_distances_of_domains(on_both: Both, name: str, domains: int) -> None:
    domain = torch.tensor([0, 1, 0, 1, 1, 0, 0, 2])[: 5 + domains]  # the third domain has one row, too few to compare

    def loss_and_gradient() -> tuple[Tensor, Tensor]:
        features = torch.randn(len(domain), 6, generator=torch.Generator().manual_seed(3)).requires_grad_()
        loss = domain_loss(name, DomainFeatures(features, domain, 0.5, domains))
        loss.backward()
        assert features.grad is not None
        return loss.detach(), features.grad

    for on_cpu, on_gpu in zip(*on_both(loss_and_gradient), strict=True):
        torch.testing.assert_close(on_gpu, on_cpu)


@pytest.mark.parametrize("name", ["mmd", "coral"])
def test_a_batch_without_two_domains_has_a_distance_of_zero(on_both: Both, name: str) -> None:
    def loss_and_gradient() -> tuple[Tensor, Tensor]:
        features = torch.ones(4, 3).requires_grad_()
        loss = domain_loss(name, DomainFeatures(features, torch.zeros(4, dtype=torch.long), 1.0, 2))
        loss.backward()
        assert features.grad is not None
        return loss.detach(), features.grad

    for result in on_both(loss_and_gradient):
        assert all((part == 0).all() for part in result)


def test_the_mean_token(on_both: Both) -> None:
    tokens, mask = torch.randn(3, 5, 4), torch.arange(5) < torch.tensor([[5], [2], [1]])
    tokens[~mask] = torch.nan  # padding may hold anything

    def mean() -> Tensor:
        center = Center(4).train()
        center(tokens, mask)
        return center.mean

    on_cpu, on_gpu = on_both(mean)
    torch.testing.assert_close(on_gpu, on_cpu)


@pytest.mark.parametrize("direction", ["both", "b_to_a", "a_to_b"])
def test_scores_of_all_pairs(on_both: Both, direction: str) -> None:
    torch.manual_seed(0)
    matcher = matching.build(8, FusionConfig(direction=direction, heads=2))
    masks = (torch.arange(5) < torch.tensor([[5], [2], [1]]), torch.arange(4) < torch.tensor([[4], [3]]))
    a, b = (
        LocalTokens(matcher.local(side, torch.randn(*mask.shape, 8), mask), mask) for side, mask in enumerate(masks)
    )
    on_cpu, on_gpu = on_both(lambda: matcher(a, b).match_logit.detach())
    torch.testing.assert_close(on_gpu, on_cpu)


@pytest.mark.parametrize("captions", [1, 3])
def test_ranks(on_both: Both, captions: int) -> None:
    group = torch.arange(20).repeat_interleave(captions)
    a, b = units(20, 8), units(20 * captions, 8)
    b[3], b[7], a[5] = b[2], torch.nan, a[4]  # ties, and scores that are not finite
    results = on_both(lambda: both_ranks(a, b, np.arange(20), group.numpy(), tile_scores=49))
    on_cpu, on_gpu = ([result.as_dict() for result in results_of_device] for results_of_device in results)
    assert on_gpu == on_cpu


def test_gradnorm_learns_nothing_from_a_norm_that_is_not_finite() -> None:
    learned = balance.GradNorm(LossConfig())
    shared = torch.ones(2, requires_grad=True)
    losses = {"contrastive": shared.sum(), "cross": (shared * torch.nan).sum()}
    learned.observe(losses, {"contrastive": 1.0, "cross": 1.0}, [shared])
    assert learned.multiplier.tolist() == [1.0] * len(learned.parts)
