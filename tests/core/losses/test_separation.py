"""The separation loss: a hand-computed case, permutations, gradients, parts of a large batch, and its weight."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ccaco_cli.core.config import LossConfig
from ccaco_cli.core.losses import separation as module
from ccaco_cli.core.losses.parts import part_weights
from ccaco_cli.core.losses.separation import MARGIN, separation


def _vectors(rows: int, dtype: torch.dtype = torch.float32) -> Tensor:
    near = torch.randn(rows, 6, generator=torch.Generator().manual_seed(0), dtype=dtype) + 3.0
    return F.normalize(near, dim=1)


def test_by_hand() -> None:
    # cosines: rows 0 and 1 (one group) 1.0, rows 0 and 2 0.9, row 3 far from all
    z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.9, 0.19**0.5], [-1.0, 0.0]])
    group = torch.tensor([5, 5, 6, 7])
    assert float(separation(z, group)) == pytest.approx(3 * (0.9 - MARGIN) / 4, abs=1e-6)
    assert float(separation(z, torch.zeros(4, dtype=torch.long))) == 0.0  # nothing to keep apart


def test_permutations_and_parts_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    z, group = _vectors(20), torch.arange(20) // 2
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    expected = separation(z, group)
    assert float(expected) > 0.01
    assert torch.allclose(separation(z[order], group[order]), expected)
    monkeypatch.setattr(module, "QUERIES_AT_ONCE", 3)
    assert torch.allclose(separation(z, group), expected)
    assert separation(z.bfloat16(), group).dtype == torch.float32


def test_its_gradient_takes_near_samples_apart() -> None:
    raw = (_vectors(8, torch.float64) * 2).requires_grad_()
    group = torch.arange(8) // 2
    assert torch.autograd.gradcheck(lambda x: separation(F.normalize(x, dim=1), group), (raw,))
    before = separation(F.normalize(raw, dim=1), group)
    before.backward()
    assert raw.grad is not None
    assert separation(F.normalize(raw.detach() - 0.1 * raw.grad, dim=1), group) < before


def test_it_is_a_part_of_runs_with_a_contrastive_half_only() -> None:
    config = LossConfig(separation=10.0)
    assert part_weights(config, 0.5)["separation"] == 10.0
    assert "separation" not in part_weights(replace(config, alpha=0.0), 0.5)
    assert "separation" not in part_weights(LossConfig(), 0.5)
