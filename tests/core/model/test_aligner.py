from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from ccaco_cli.core.config import FusionConfig, LossConfig, ModelConfig, TowerConfig
from ccaco_cli.core.errors import ConfigError
from ccaco_cli.core.model import aligner as module
from ccaco_cli.core.model.aligner import Aligner
from ccaco_cli.core.model.centering import Center
from ccaco_cli.core.model.towers.tower import Tower, TowerSpec
from ccaco_cli.core.types import Features


class Echo(torch.nn.Module):
    """A tower that gives back what it got, times a learned gain, and counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.gain, self.calls = torch.nn.Parameter(torch.ones(())), 0

    def forward(self, inputs: dict[str, torch.Tensor]) -> Features:
        self.calls += 1
        tokens, mask = inputs["tokens"] * self.gain, inputs["mask"]
        return Features(tokens, mask, tokens[:, 0])


def tower(modality: str, width: int, pretrained: bool = False) -> Tower:
    return Tower(
        TowerSpec("tiny", "", ""), modality, Echo(), lambda x: x, width, 9, None, pretrained, "f", lambda f: "tiny"
    )


def aligner(pretrained: bool = False, **settings: Any) -> Aligner:
    torch.manual_seed(0)
    side = TowerConfig(**{k: v for k, v in settings.items() if k in TowerConfig.__dataclass_fields__})
    fusion = FusionConfig(**{k: v for k, v in settings.items() if k in FusionConfig.__dataclass_fields__})
    config = ModelConfig(width=8, vectors=settings.get("vectors", 1), image=side, text=side, fusion=fusion)
    return Aligner(
        {"image": tower("image", 6, pretrained), "text": tower("text", 10, pretrained)}, config, LossConfig()
    )


def inputs(width: int, rows: int = 5, tokens: int = 4) -> dict[str, torch.Tensor]:
    mask = torch.arange(tokens)[None] < torch.tensor([4, 3, 2, 1, 4])[:rows, None]
    return {"tokens": torch.randn(rows, tokens, width, generator=torch.Generator().manual_seed(width)), "mask": mask}


def test_shapes_and_unit_norm() -> None:
    encoded, features = aligner().eval().encode("text", inputs(10))
    assert features.tokens.shape == (5, 4, 10)
    assert encoded.pooled.shape == (5, 8)
    assert torch.allclose(encoded.z.norm(dim=-1), torch.ones(5), atol=1e-6)


@pytest.mark.parametrize("pool", ["mean", "max", "attention"])
def test_cached_tokens_are_pooled_in_parts_as_they_would_be_at_once(pool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    side = aligner(pool=pool, pretrained=True, input_dropout=0.3).sides["text"].train()
    tokens, mask = torch.randn(83, 3, 10).half(), torch.rand(83, 3) > 0.3
    mask[:, 0] = True

    def pooled(values: int) -> torch.Tensor:
        monkeypatch.setattr(module, "POOL_VALUES", values)
        torch.manual_seed(1)
        full_pool: torch.Tensor = side.pool(Features(tokens, mask, tokens[:, 0]))
        return full_pool

    assert torch.equal(pooled(1), pooled(10**6)) and torch.equal(pooled(600), pooled(10**6))
    torch.manual_seed(1)
    learned = side.pool(Features(tokens.float().requires_grad_(), mask, tokens[:, 0]))
    assert torch.equal(learned, pooled(1))


def test_several_global_vectors_lie_side_by_side_and_their_cosines_are_averaged() -> None:
    model = aligner(vectors=3).eval()
    sides = [model.encode(m, inputs(width)) for m, width in (("image", 6), ("text", 10))]
    a, b = (x.z for x, _ in sides)
    assert a.shape == b.shape == (5, model.embedding_size) == (5, 24)
    assert torch.allclose(a.norm(dim=-1), torch.ones(5), atol=1e-6)
    each = [
        torch.nn.functional.cosine_similarity(p, q, dim=-1)
        for p, q in zip(*(x.pooled.chunk(3, 1) for x, _ in sides), strict=True)
    ]
    assert torch.allclose((a * b).sum(1), torch.stack(each).mean(0), atol=1e-6)
    assert not torch.allclose(each[0], each[1], atol=1e-3)
    assert model.local_tokens("text", sides[1][1]).tokens.shape == (5, 4, 8)


@pytest.mark.parametrize("pool", ["mean", "max", "attention"])
def test_padding_does_not_change_z(pool: str) -> None:
    model, batch = aligner(pool=pool).eval(), inputs(6)
    dirty = batch | {"tokens": torch.where(batch["mask"][..., None], batch["tokens"], 50.0)}
    assert torch.allclose(model.encode("image", batch)[0].z, model.encode("image", dirty)[0].z, atol=1e-6)


def test_cls_takes_the_towers_own_vector() -> None:
    model, batch = aligner(pool="cls").eval(), inputs(6)
    changed = batch | {"tokens": torch.cat([batch["tokens"][:, :1], batch["tokens"][:, 1:] + 3], 1)}
    assert torch.allclose(model.encode("image", batch)[0].z, model.encode("image", changed)[0].z)


def test_cached_features_equal_the_towers() -> None:
    model, batch = aligner(lock=True).eval(), inputs(6)
    cached = Features(batch["tokens"].half(), batch["mask"], batch["tokens"][:, 0].half())
    assert torch.allclose(model.encode("image", batch)[0].z, model.encode("image", cached)[0].z, atol=1e-2)
    assert model.sides["image"].tower.calls == 1


def test_a_locked_tower_learns_nothing_and_stays_in_evaluation() -> None:
    model = aligner(lock=True).train()
    assert not model.sides["image"].tower.training
    model.encode("image", inputs(6))[0].z.sum().backward()
    assert model.sides["image"].tower.gain.grad is None
    assert model.sides["image"].heads[0].project.weight.grad is not None
    free = aligner().train()
    free.encode("image", inputs(6))[0].pooled.sum().backward()
    assert free.sides["image"].tower.gain.grad is not None


def test_centring_follows_the_running_mean() -> None:
    center, mask = Center(1).train(), torch.tensor([[True, True, False]])
    assert center(torch.tensor([[[1.0], [3.0], [99.0]]]), mask)[0, :2, 0].tolist() == [
        -1.0,
        1.0,
    ]  # the first batch sets it
    center(torch.tensor([[[12.0], [12.0], [99.0]]]), mask)
    assert center.mean.item() == pytest.approx(0.9 * 2 + 0.1 * 12)
    stored = center.mean.clone()
    center.eval()(torch.tensor([[[70.0], [70.0], [70.0]]]), mask)
    assert torch.equal(center.mean, stored)


def test_auto_centring_is_for_towers_from_scratch() -> None:
    assert aligner().sides["image"].center is not None
    assert aligner(pretrained=True).sides["image"].center is None
    assert aligner(pretrained=True, center="on").sides["image"].center is not None
    assert aligner(center="off").sides["image"].center is None


def test_cross_uses_the_projection_of_the_contrastive_half_only_when_shared() -> None:
    for share in (True, False):
        model = aligner(share=share)
        a, b = (model.local_tokens(m, model.encode(m, inputs(width))[1]) for m, width in (("image", 6), ("text", 10)))
        model.cross(a, b).match_logit.diagonal().sum().backward()
        assert (model.sides["image"].heads[0].project.weight.grad is not None) is share
        assert (model.sides["image"].tower.gain.grad is not None) is share


def test_logit_scale_is_clamped() -> None:
    model = aligner()
    assert model.logit_scale().item() == pytest.approx(20.0)
    model.log_scale.data.fill_(9.0)
    assert model.logit_scale().item() == 100.0


def test_unknown_settings_are_refused() -> None:
    for settings in ({"pool": "median"}, {"center": "yes"}):
        with pytest.raises(ConfigError, match="image"):
            aligner(**settings)


def test_fixed_temperature() -> None:
    config = ModelConfig(width=8)
    built = {"image": tower("image", 6), "text": tower("text", 10)}
    assert not Aligner(built, config, replace(LossConfig(), learn_temperature=False)).log_scale.requires_grad


def test_compiled_towers_say_the_same_under_the_same_names(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, model, locked = aligner(), aligner(), aligner(lock=True)
    model.load_state_dict(plain.state_dict())
    called: list[torch.nn.Module] = []

    def compiled(module: torch.nn.Module, mode: str) -> None:
        assert mode == "default"
        called.append(module)
        original(module, backend="eager")  # traced as ever, but no compiler has to be there

    original = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", compiled)
    locked.compile_towers()
    assert called == []
    model.compile_towers()
    assert called == [side.tower for side in model.sides.values()]
    assert model.state_dict().keys() == plain.state_dict().keys()
    for modality, width in (("image", 6), ("text", 10)):
        for rows in (5, 4, 2):  # batches of other sizes too
            batch = inputs(width, rows)
            assert torch.equal(model.eval().encode(modality, batch)[0].z, plain.eval().encode(modality, batch)[0].z)


def test_towers_of_one_input_shape_are_compiled_for_cuda_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: dict[int, str] = {}
    steps: list[None] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, mode: modes.update({id(module): mode}))
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: steps.append(None))
    model = aligner()
    model.compile_towers("reduce-overhead")
    assert [modes[id(side.tower)] for side in model.sides.values()] == ["reduce-overhead", "default"]
    for modality, width in (("image", 6), ("text", 10)):
        model.encode(modality, inputs(width, 3))
    assert len(steps) == 1


def test_gradient_checkpointing_reaches_the_towers_that_learn() -> None:
    with pytest.raises(ConfigError, match="checkpointing"):
        aligner().set_grad_checkpointing()
    aligner(lock=True).set_grad_checkpointing()  # nothing to recompute
    calls: list[bool] = []
    towers = {
        m: replace(tower(m, width), set_grad_checkpointing=calls.append) for m, width in (("image", 6), ("text", 10))
    }
    Aligner(towers, ModelConfig(width=8), LossConfig()).set_grad_checkpointing()
    assert calls == [True, True]
