"""Alone these layers are torch's own; over several processes ``tests/core/training/test_parallel.py`` holds them."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from ccaco_cli.core import distributed
from ccaco_cli.core.model.global_batch import GlobalBatchNorm, GlobalDropout, InputDropout, convert_batch_norms
from tests.processes import launch


def test_alone_dropout_draws_what_torch_draws() -> None:
    x = torch.randn(4, 3, 5)
    torch.manual_seed(1)
    same = torch.nn.Dropout(0.4)(x)
    torch.manual_seed(1)
    assert torch.equal(GlobalDropout(0.4)(x), same)
    assert torch.equal(GlobalDropout(0.4).eval()(x), x)


@pytest.mark.parametrize("p", [0.0, 0.2, 0.5, 1.0])
def test_input_dropout_drops_its_share_and_keeps_the_mean(p: float) -> None:
    torch.manual_seed(0)
    drop = InputDropout(p)
    x = torch.ones(50, 37, 33, requires_grad=True)
    dropped = drop(x)
    share = (dropped == 0).float()
    assert share.mean().item() == pytest.approx(p, abs=0.005)
    assert share.mean((0, 1)).std() < 0.02, "every place alike"
    if p < 1:
        assert dropped.mean().item() == pytest.approx(1, abs=0.02)
        assert len(dropped[dropped > 0].unique()) == 1
    dropped.sum().backward()
    assert torch.equal(x.grad, dropped), "the gradient is dropped where the value is"
    assert not torch.equal(drop(x), dropped) or p in (0, 1)
    torch.manual_seed(0)
    assert torch.equal(drop(x), dropped)
    assert drop.eval()(x) is x


def both() -> None:
    with distributed.process_group("cpu"):
        rank = distributed.rank()
        full_batch = torch.randn(6, 3, 5, generator=torch.Generator().manual_seed(0)) * 3 + 1
        for kind, ragged in product((GlobalDropout, InputDropout), (False, True)):
            torch.manual_seed(1)
            with distributed.single_process():
                same = kind(0.4)(full_batch)[3 * rank :][:3]
            torch.manual_seed(1)
            local_rows = full_batch[3 * rank :][:3]
            width = 2 if ragged and rank else 3
            assert torch.equal(kind(0.4)(local_rows[:, :width]), same[:, :width])
        norm, plain = torch.nn.BatchNorm1d(3), torch.nn.BatchNorm1d(3)
        assert isinstance(convert_batch_norms(torch.nn.Sequential(norm), torch.device("cpu"))[0], GlobalBatchNorm)  # type: ignore[index]
        local_rows = full_batch[3 * rank :][:3].clone().requires_grad_()
        leaf = full_batch.clone().requires_grad_()
        norm(local_rows).pow(3).sum().backward()
        plain(leaf).pow(3).sum().backward()
        assert leaf.grad is not None
        assert torch.allclose(local_rows.grad, leaf.grad[3 * rank :][:3], atol=1e-4)  # type: ignore[arg-type]
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            assert torch.allclose(getattr(norm, name), getattr(plain, name), atol=1e-5), name
        assert torch.allclose(norm.eval()(local_rows), plain.eval()(leaf)[3 * rank :][:3], atol=1e-5)


def test_together_they_are_what_one_process_has() -> None:
    assert launch(2, both) == [0, 0]
