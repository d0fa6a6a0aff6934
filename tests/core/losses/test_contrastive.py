from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from ccaco_cli.core.errors import LossInputError
from ccaco_cli.core.losses.contrastive import info_nce, matrix_nce, sharded_info_nce

ONE = torch.tensor(1.0)


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=-1)


def test_two_by_two_by_hand() -> None:
    # similarities [[1, 0], [0.6, 0.8]] at scale 2; rows and columns are softmax cross-entropies of the diagonal
    z_a = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    z_b = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    s = [[2.0, 0.0], [1.2, 1.6]]
    rows = [math.log(1 + math.exp(s[0][1] - s[0][0])), math.log(1 + math.exp(s[1][0] - s[1][1]))]
    columns = [math.log(1 + math.exp(s[1][0] - s[0][0])), math.log(1 + math.exp(s[0][1] - s[1][1]))]
    assert info_nce(z_a, z_b, torch.arange(2), torch.tensor(2.0)).item() == pytest.approx(
        (sum(rows) + sum(columns)) / 4, rel=1e-6
    )


def test_equals_open_clip() -> None:
    from open_clip.loss import ClipLoss

    z_a, z_b = unit(16, 8).float(), unit(16, 8, seed=1).float()
    assert info_nce(z_a, z_b, torch.arange(16), torch.tensor(14.0)).item() == pytest.approx(
        ClipLoss()(z_a, z_b, torch.tensor(14.0)).item(), rel=1e-5
    )


def test_permuting_pairs_changes_nothing_and_breaking_them_does() -> None:
    z_a, z_b, order = unit(12, 6), unit(12, 6, seed=1), torch.randperm(12)
    group = torch.arange(12)
    complete = info_nce(z_a, z_b, group, ONE)
    assert torch.allclose(info_nce(z_a[order], z_b[order], group, ONE), complete)
    assert not torch.allclose(info_nce(z_a, z_b.roll(1, 0), group, ONE), complete)


def test_symmetric_in_the_modalities() -> None:
    z_a, z_b = unit(5, 4), unit(5, 4, seed=1)
    assert torch.allclose(info_nce(z_a, z_b, torch.arange(5), ONE), info_nce(z_b, z_a, torch.arange(5), ONE))


def test_aligned_pairs_score_near_zero_and_opposed_ones_badly() -> None:
    z = torch.eye(4)
    assert info_nce(z, z, torch.arange(4), torch.tensor(50.0)).item() < 1e-6
    assert info_nce(z, z.roll(1, 0), torch.arange(4), torch.tensor(50.0)).item() > 40


def test_siblings_are_positives_not_negatives() -> None:
    z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    ungrouped = info_nce(z, z, torch.tensor([0, 1, 2]), torch.tensor(30.0))
    grouped = info_nce(z, z, torch.tensor([0, 0, 1]), torch.tensor(30.0))
    assert ungrouped.item() == pytest.approx(math.log(2) * 2 / 3, rel=1e-3)  # two rows cannot tell their twins apart
    assert grouped.item() == pytest.approx(
        math.log(2) * 2 / 3, rel=1e-3
    )  # and with two positives each, log 2 is the floor


def test_multi_positive_by_hand() -> None:
    logits = torch.tensor([[3.0, 1.0], [0.5, 2.0]])
    rows = (
        logits.log_softmax(1).mean(),
        logits.T.log_softmax(1).mean(),
    )  # everyone is everyone's positive: uniform targets
    assert matrix_nce(logits, torch.zeros(2), torch.zeros(2)).item() == pytest.approx(
        -(rows[0] + rows[1]).item() / 2, rel=1e-6
    )


def test_gradient() -> None:
    z_a, z_b = unit(5, 4).requires_grad_(), unit(5, 4, seed=1).requires_grad_()
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    group = torch.tensor([0, 1, 1, 2, 3])
    target = (group[:, None] == group[None]).double()
    logits = scale * z_a @ z_b.T
    plain = -((target / target.sum(1, keepdim=True)) * logits.log_softmax(1)).sum(1).mean() / 2
    plain = plain - ((target / target.sum(1, keepdim=True)) * logits.T.log_softmax(1)).sum(1).mean() / 2
    ours = matrix_nce(logits, group, group)
    for got, wanted in zip(
        torch.autograd.grad(ours, (z_a, z_b, scale), retain_graph=True),
        torch.autograd.grad(plain, (z_a, z_b, scale)),
        strict=True,
    ):
        assert torch.allclose(got, wanted, atol=1e-6)
    assert torch.autograd.gradcheck(
        lambda a, b, s: matrix_nce(s * a @ b.T, group, group), (z_a, z_b, scale), eps=1e-3, atol=1e-2
    )


@pytest.mark.parametrize("bad_value", [float("nan"), float("inf")])
def test_sick_rows_are_refused(bad_value: float) -> None:
    z = unit(3, 2)
    z[1, 0] = bad_value
    with pytest.raises(LossInputError, match="not finite"):
        info_nce(z, unit(3, 2), torch.arange(3), ONE)


def test_shapes_are_checked() -> None:
    with pytest.raises(LossInputError, match="shapes"):
        info_nce(unit(3, 2), unit(4, 2), torch.arange(3), ONE)


@pytest.mark.parametrize("rows", [64, 2100], ids=["matrix", "tiles"])
@pytest.mark.parametrize("local", [False, True], ids=["all queries", "local queries"])
def test_under_autocast_the_gradient_is_that_of_float32(rows: int, local: bool) -> None:
    z = unit(rows, 32).float()
    vectors = [F.normalize(z + 0.02 * unit(rows, 32, seed=seed).float(), dim=-1) for seed in (1, 2)]  # a solved batch
    group = torch.arange(rows)

    def gradients(enabled: bool) -> list[torch.Tensor]:
        z_a, z_b = (v.clone().requires_grad_() for v in vectors)
        scale = torch.tensor(100.0, requires_grad=True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            if local:
                loss = sharded_info_nce(z_a, z_b, group, scale, slice(0, rows // 2))
            else:
                loss = info_nce(z_a, z_b, group, scale)
        loss.backward()
        assert z_a.grad is not None and z_b.grad is not None and scale.grad is not None
        return [loss.detach(), z_a.grad, z_b.grad, scale.grad]

    for result, expected in zip(gradients(True), gradients(False), strict=True):
        assert (result - expected).norm() <= 1e-5 * expected.norm()


def test_losses_of_16_bit_vectors_are_float32() -> None:
    z = unit(6, 8).bfloat16()
    loss = info_nce(z, z.roll(1, 0), torch.arange(6), torch.tensor(3.0))
    assert loss.dtype == torch.float32
    assert loss == info_nce(z.float(), z.roll(1, 0).float(), torch.arange(6), torch.tensor(3.0))
