from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from ccaco_cli.core.losses import blocked, contrastive
from ccaco_cli.core.losses.contrastive import matrix_nce


def unit(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype), dim=-1)


def plain(z_a: torch.Tensor, z_b: torch.Tensor, group: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """In float64, the whole matrix at once."""
    positive = (group[:, None] == group[None]).double()
    target, logits = positive / positive.sum(1, keepdim=True), (scale * z_a @ z_b.T).double()
    return -((target * logits.log_softmax(1)).sum(1).mean() + (target * logits.T.log_softmax(1)).sum(1).mean()) / 2


@pytest.mark.parametrize("scale", [1.0, 14.3, 75.0, 100.0])
@pytest.mark.parametrize("groups", [130, 60, 3])
@pytest.mark.parametrize("tile", [1000, 64, 7])
def test_loss_and_gradient_equal_the_plain_ones(
    monkeypatch: pytest.MonkeyPatch, scale: float, groups: int, tile: int
) -> None:
    monkeypatch.setattr(blocked, "TILE", tile)
    group = torch.arange(130) % groups
    results, wanted = [], []
    for target, function, dtype in ((results, blocked.info_nce, torch.float32), (wanted, plain, torch.float64)):
        inputs = [unit(130, 24).to(dtype), unit(130, 24, seed=1).to(dtype), torch.tensor(scale, dtype=dtype)]
        leaves = [g.requires_grad_() for g in inputs]
        loss = function(leaves[0], leaves[1], group, leaves[2])
        (3 * loss).backward()  # a factor behind the loss must reach the gradient
        target += [loss.detach(), *(leaf.grad for leaf in leaves)]
    for got, want in zip(results, wanted, strict=True):
        assert torch.allclose(got.double(), want, atol=1e-5, rtol=1e-5)


def test_shares_of_a_batch_add_up_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocked, "TILE", 5)
    z_a, z_b, scale = (
        unit(24, 8).requires_grad_(),
        unit(24, 8, seed=1).requires_grad_(),
        torch.tensor(20.0, requires_grad=True),
    )
    group = torch.arange(24) % 15
    full_loss = blocked.info_nce(z_a, z_b, group, scale)
    shares = torch.stack(
        [blocked.info_nce(z_a, z_b, group, scale, slice(first, first + 8)) for first in (0, 8, 16)]
    ).mean()
    assert shares.item() == pytest.approx(full_loss.item(), rel=1e-5)
    for actual, expected in zip(
        *(torch.autograd.grad(loss, (z_a, z_b, scale)) for loss in (full_loss, shares)), strict=True
    ):
        assert torch.allclose(actual, expected, atol=1e-5)


def test_gradcheck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocked, "TILE", 2)
    inputs = unit(7, 4, dtype=torch.float64).requires_grad_(), unit(7, 4, seed=1, dtype=torch.float64).requires_grad_()
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    group = torch.tensor([0, 1, 1, 2, 3, 3, 3])
    assert torch.autograd.gradcheck(lambda a, b, s: blocked.info_nce(a, b, group, s), (*inputs, scale))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_vectors_that_all_agree_or_all_oppose(sign: float) -> None:
    z = unit(1, 8).expand(6, 8).contiguous()
    a, b = z.clone().requires_grad_(), (sign * z).requires_grad_()
    loss = blocked.info_nce(a, b, torch.arange(6), torch.tensor(100.0))
    assert loss.item() == pytest.approx(torch.tensor(6.0).log().item(), abs=1e-4)
    loss.backward()
    assert a.grad is not None
    assert torch.isfinite(a.grad).all()


@pytest.mark.parametrize("query_rows", [None, slice(2, 9)])
@pytest.mark.parametrize("scale", [200.0, 2000.0, 10_000.0])
def test_sums_that_are_too_small_for_a_constant_shift(
    monkeypatch: pytest.MonkeyPatch, scale: float, query_rows: slice | None
) -> None:
    monkeypatch.setattr(blocked, "TILE", 5)
    z_a, z_b, group = unit(12, 8), unit(12, 8, seed=1), torch.arange(12)
    monkeypatch.setattr(contrastive.blocked, "MAX_MATRIX_SCORES", 1000)
    expected = contrastive.sharded_info_nce(z_a, z_b, group, torch.tensor(scale), query_rows or slice(0, 12))
    loss = blocked.info_nce(z_a, z_b, group, torch.tensor(scale), query_rows)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


def test_it_is_used_by_itself_and_not_for_small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(contrastive.blocked, "info_nce", lambda *args: calls.append(args) or torch.tensor(0.0))
    z, group = unit(40, 8), torch.arange(40)
    contrastive.info_nce(z, z, group, torch.tensor(1.0))
    assert not calls
    monkeypatch.setattr(blocked, "MAX_MATRIX_SCORES", 40 * 40 - 1)
    contrastive.info_nce(z, z, group, torch.tensor(1.0))
    assert len(calls) == 1
    contrastive.sharded_info_nce(z, z, group, torch.tensor(1.0), slice(0, 20))
    assert len(calls) == 1, "half of the rows fit"
    contrastive.sharded_info_nce(z, z, group, torch.tensor(1.0), slice(0, 40))
    assert len(calls) == 2


def test_autocast_does_not_cost_precision() -> None:
    z_a, z_b, group, scale = unit(50, 16), unit(50, 16, seed=1), torch.arange(50), torch.tensor(100.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = blocked.info_nce(z_a, z_b, group, scale)
    assert loss.item() == pytest.approx(matrix_nce(scale * z_a @ z_b.T, group, group).item(), rel=1e-5)


MEMORY = """
import torch
import torch.nn.functional as F
from ccaco_cli.core.losses import {module}
z_a, z_b = (F.normalize(torch.randn(8192, 64), dim=-1).requires_grad_() for _ in range(2))
def memory(name):
    return int(next(line for line in open("/proc/self/status") if line.startswith(name)).split()[1])
open("/proc/self/clear_refs", "w").write("5")  # sets the peak back, for imports have one of their own
before = memory("VmRSS")
{call}.backward()
print(memory("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/status is Linux's")
def test_memory_is_a_fraction() -> None:
    group = "torch.arange(8192)"
    calls = {
        "blocked": f"blocked.info_nce(z_a, z_b, {group}, torch.tensor(20.0))",
        "contrastive": f"contrastive.matrix_nce(20 * z_a @ z_b.T, {group}, {group})",
    }
    used = {}
    for module, call in calls.items():
        code = MEMORY.format(module=module, call=call)
        used[module] = int(
            subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        )
    assert used["blocked"] * 4 < used["contrastive"], used  # KiB; at 16,384 rows the ratio is above 15
