"""The sigmoid loss: equal to open_clip's, several positives, tiles, shares of several processes."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from open_clip.loss import SigLipLoss
from torch import Tensor

from ccaco_cli.core.config import LossConfig
from ccaco_cli.core.errors import LossInputError
from ccaco_cli.core.losses import sigmoid, total
from ccaco_cli.core.losses.sigmoid import sigmoid_loss
from ccaco_cli.core.types import Embedding


def _batch(rows: int = 12, size: int = 8) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    z_a, z_b = (F.normalize(torch.randn(rows, size, generator=generator), dim=1) for _ in range(2))
    return z_a, z_b, torch.tensor(10.0), torch.tensor(-4.0)


def test_by_hand() -> None:
    z = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    loss = sigmoid_loss(z, z, torch.arange(2), torch.tensor(2.0), torch.tensor(-1.0))
    true_pair, false_pair = math.log(1 + math.exp(-(2 - 1))), math.log(1 + math.exp(-1))
    assert float(loss) == pytest.approx((2 * true_pair + 2 * false_pair) / 2)


def test_equals_open_clip_with_one_positive_a_row() -> None:
    z_a, z_b, scale, bias = _batch()
    inputs = [x.clone().requires_grad_() for x in (z_a, z_b, scale, bias)]
    library_inputs = [x.clone().requires_grad_() for x in (z_a, z_b, scale, bias)]
    loss = sigmoid_loss(inputs[0], inputs[1], torch.arange(12), inputs[2], inputs[3])
    expected = SigLipLoss()(*library_inputs)
    loss.backward()
    expected.backward()
    assert torch.allclose(loss, expected, atol=1e-6)
    for x, y in zip(inputs, library_inputs, strict=True):
        assert torch.allclose(x.grad, y.grad, atol=1e-6)  # type: ignore[arg-type]


def test_pairs_of_one_group_are_true_and_order_has_no_effect() -> None:
    z_a, z_b, scale, bias = _batch()
    group = torch.tensor([0, 0, 1, 2, 2, 2, 3, 4, 5, 6, 7, 7])
    logits = scale * z_a @ z_b.T + bias
    target = (group[:, None] == group[None, :]).float()
    expected = F.binary_cross_entropy_with_logits(logits, target, reduction="sum") / 12
    loss = sigmoid_loss(z_a, z_b, group, scale, bias)
    assert torch.allclose(loss, expected)
    assert not torch.allclose(loss, sigmoid_loss(z_a, z_b, torch.arange(12), scale, bias))
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(sigmoid_loss(z_a[order], z_b[order], group[order], scale, bias), loss)


def test_tiles_and_shares_of_processes_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    z_a, z_b, scale, bias = _batch()
    group = torch.tensor([0, 0, 1, 2, 2, 2, 3, 4, 5, 6, 7, 7])

    def gradients(*, shares: int) -> list[Tensor]:
        inputs = [x.clone().requires_grad_() for x in (z_a, z_b, scale, bias)]
        rows = 12 // shares
        parts = [
            sigmoid_loss(inputs[0], inputs[1], group, inputs[2], inputs[3], slice(rank * rows, (rank + 1) * rows))
            for rank in range(shares)
        ]
        loss = torch.stack(parts).mean() if shares > 1 else sigmoid_loss(*inputs[:2], group, *inputs[2:])
        loss.backward()
        return [loss.detach(), *(x.grad for x in inputs)]  # type: ignore[misc]

    expected = gradients(shares=1)
    for shares in (2, 4):
        assert all(torch.allclose(x, y, atol=1e-6) for x, y in zip(gradients(shares=shares), expected, strict=True))
    monkeypatch.setattr(sigmoid, "MAX_MATRIX_SCORES", 30)  # two rows a tile
    for shares in (1, 2):
        assert all(torch.allclose(x, y, atol=1e-6) for x, y in zip(gradients(shares=shares), expected, strict=True))


def test_gradcheck() -> None:
    z_a, z_b, scale, bias = (x.double().requires_grad_() for x in _batch(4, 3))
    group = torch.tensor([0, 0, 1, 2])

    def loss(*x: Tensor) -> Tensor:
        return sigmoid._sum_of_rows(x[0], group, x[1], group, x[2], x[3])

    assert torch.autograd.gradcheck(loss, (z_a, z_b, scale, bias))


def test_bad_inputs_are_refused() -> None:
    z_a, z_b, scale, bias = _batch()
    with pytest.raises(LossInputError, match="shapes"):
        sigmoid_loss(z_a, z_b[:5], torch.arange(12), scale, bias)
    with pytest.raises(LossInputError, match="not finite"):
        sigmoid_loss(z_a * torch.nan, z_b, torch.arange(12), scale, bias)


def test_several_vectors_each_have_their_own_loss() -> None:
    z_a, z_b, scale, bias = _batch()
    group = torch.arange(12)
    joined = [torch.cat([F.normalize(z[:, :4]), F.normalize(z[:, 4:])], 1) / 2**0.5 for z in (z_a, z_b)]
    a, b = (Embedding(z, z) for z in joined)
    alignment = total.Alignment(a, b, group, scale, vectors=2, logit_bias=bias)
    expected = [
        sigmoid_loss(F.normalize(z_a[:, part]), F.normalize(z_b[:, part]), group, scale, bias)
        for part in (slice(4), slice(4, 8))
    ]
    loss = total.contrastive_loss(alignment, LossConfig(contrastive="sigmoid"))
    assert torch.allclose(loss, torch.stack(expected).mean(), atol=1e-6)
