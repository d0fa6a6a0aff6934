from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from ccaco_cli.core.config import LossConfig
from ccaco_cli.core.errors import ConfigError
from ccaco_cli.core.losses.contrastive import info_nce, sharded_info_nce
from ccaco_cli.core.losses.pairing import Pairs
from ccaco_cli.core.losses.parts import part_weights
from ccaco_cli.core.losses.total import CROSS_LOSSES, Alignment, LossInputs, check_losses, sample_pairs, total_loss
from ccaco_cli.core.types import Crossed, Embedding


def encoded(seed: int, rows: int = 4) -> Embedding:
    z = F.normalize(torch.randn(rows, 8, generator=torch.Generator().manual_seed(seed)), dim=-1)
    return Embedding(z, z)


def losses(inputs: Alignment, config: LossConfig, beta: float) -> dict[str, torch.Tensor]:
    return total_loss(LossInputs(inputs), config, part_weights(config, beta))


def alignment(crossed: Crossed, pairs: Pairs) -> Alignment:
    return Alignment(encoded(0), encoded(1), torch.arange(4), torch.tensor(10.0), crossed, pairs)


def test_total_is_the_weighted_sum_of_named_parts() -> None:
    inputs = alignment(Crossed(torch.randn(4, 4)), Pairs(torch.arange(4)))
    parts = losses(inputs, LossConfig(alpha=2.0), beta=0.3)
    assert set(parts) == {"contrastive", "cross", "total"}
    assert torch.allclose(parts["total"], 2 * parts["contrastive"] + 0.3 * parts["cross"])


@pytest.mark.parametrize("rows", [None, slice(1, 3)])
def test_every_global_vector_learns_by_itself(rows: slice | None) -> None:
    def side(seed: int) -> tuple[list[torch.Tensor], Embedding]:
        parts = [encoded(seed + n).z for n in range(3)]
        return parts, replace(encoded(seed), z=torch.cat(parts, 1) / 3**0.5)

    (each_a, a), (each_b, b) = side(0), side(10)
    group, scale = torch.tensor([0, 0, 1, 2]), torch.tensor(10.0)
    loss = losses(Alignment(a, b, group, scale, query_rows=rows, vectors=3), LossConfig(), beta=0.0)["contrastive"]
    alone = [
        info_nce(p, q, group, scale) if rows is None else sharded_info_nce(p, q, group, scale, rows)
        for p, q in zip(each_a, each_b, strict=True)
    ]
    assert torch.allclose(loss, torch.stack(alone).mean(), atol=1e-6)


def test_a_half_with_weight_zero_is_not_there() -> None:
    inputs = alignment(Crossed(torch.randn(4, 4)), Pairs(torch.arange(4)))
    assert set(losses(inputs, LossConfig(), beta=0.0)) == {"contrastive", "total"}
    only = losses(inputs, LossConfig(alpha=0.0), beta=1.0)
    assert set(only) == {"cross", "total"}
    assert torch.allclose(only["total"], only["cross"])


@pytest.mark.parametrize("name", CROSS_LOSSES)
def test_every_cross_loss_prefers_the_truth(name: str) -> None:
    config = LossConfig(alpha=0.0, cross=name, negatives=2, cross_batch=4)
    pairs = sample_pairs(encoded(0), encoded(1), torch.arange(4), config, torch.Generator().manual_seed(0))
    if name == "mse":
        logit = torch.zeros(4)
        low, high = (
            losses(alignment(Crossed(logit, drift=torch.tensor(d)), pairs), config, 1.0)["cross"] for d in (0.1, 0.2)
        )
    else:
        truth = torch.eye(4) if pairs.label is None else pairs.label.float()
        low, high = (losses(alignment(Crossed(s * truth), pairs), config, 1.0)["cross"] for s in (5.0, -5.0))
    assert low < high


def test_unknown_names_and_missing_parts_are_refused() -> None:
    with pytest.raises(ConfigError, match="infonce"):
        losses(alignment(Crossed(torch.randn(4, 4)), Pairs(torch.arange(4))), LossConfig(cross="sum"), 1.0)
    with pytest.raises(ConfigError, match="residual"):
        losses(alignment(Crossed(torch.randn(4, 4)), Pairs(torch.arange(4))), LossConfig(cross="mse"), 1.0)


def test_the_cosine_learns_from_both_scores_and_the_teacher_does_not() -> None:
    z = [encoded(seed).z.clone().requires_grad_() for seed in (0, 1)]
    logit = torch.randn(3, 3, generator=torch.Generator().manual_seed(2)).requires_grad_()
    sides = [Embedding(v, v) for v in z]
    inputs = Alignment(*sides, torch.arange(4), torch.tensor(10.0), Crossed(logit), Pairs(torch.tensor([3, 0, 1])))
    config = LossConfig(teach=0.5)
    parts = losses(inputs, config, beta=0.3)
    assert torch.allclose(parts["total"], parts["contrastive"] + 0.3 * parts["cross"] + 0.15 * parts["taught"])
    student = (10.0 * z[0][[3, 0, 1]] @ z[1][[3, 0, 1]].T).detach()
    each = [F.cross_entropy(s, (s + t).softmax(1).detach()) for s, t in ((student, logit), (student.T, logit.T))]
    assert parts["taught"].item() == pytest.approx((sum(each) / 2).item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(parts["taught"], logit, allow_unused=True, retain_graph=True)
    assert gradient is None
    assert torch.autograd.grad(parts["taught"], z[0], retain_graph=True)[0][[3, 0, 1]].abs().sum() > 0
    agreed = losses(replace(inputs, crossed=Crossed(torch.zeros(3, 3))), config, 0.3)["taught"]
    assert torch.autograd.grad(agreed, z[0])[0].abs().max() < 1e-5, "a teacher that says the same teaches nothing"


@pytest.mark.parametrize("settings", [{"cross": "matching"}, {"alpha": 0.0}, {"teach": -1.0}])
def test_a_teacher_without_a_matrix_or_a_pupil_is_refused(settings: dict[str, float | str]) -> None:
    with pytest.raises(ConfigError, match="teach"):
        check_losses(replace(LossConfig(teach=1.0), **settings))


@pytest.mark.parametrize("name", CROSS_LOSSES)
def test_every_part_has_the_gradient_of_float32_under_autocast(name: str) -> None:
    config = LossConfig(cross=name, negatives=2, cross_batch=6, teach=1.0 if name == "infonce" else 0.0)
    group, scale = torch.arange(8), torch.tensor(100.0)
    a = encoded(0, rows=8)
    logit = torch.randn(6, 6) if name == "infonce" else torch.randn(48)

    def gradients(enabled: bool) -> list[torch.Tensor]:
        z_a, z_b = a.z.clone().requires_grad_(), F.normalize(a.z + 0.1 * encoded(1, rows=8).z, dim=-1).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            embeddings = Embedding(z_a, z_a), Embedding(z_b, z_b)
            pairs = sample_pairs(*embeddings, group, config, torch.Generator().manual_seed(0))
            scored = logit if pairs.label is None else logit[: len(pairs.label)]
            crossed = Crossed(scored, drift=(z_a[:2] * z_b[:2]).square().mean())
            parts = losses(Alignment(*embeddings, group, scale, crossed, pairs), config, beta=1.0)
        parts["total"].backward()
        assert z_a.grad is not None and z_b.grad is not None
        return [z_a.grad, z_b.grad, *(part.detach() for part in parts.values())]

    for result, expected in zip(gradients(True), gradients(False), strict=True):
        assert result.dtype == torch.float32
        assert (result - expected).norm() <= 1e-5 * expected.norm()
