from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ccaco_cli.core import runtime
from ccaco_cli.core.model import weights
from ccaco_cli.core.training import loop, sentinel
from ccaco_cli.core.training.sentinel import inspect, renew, stop
from ccaco_cli.core.types import Crossed, no_progress

BEST = f"checkpoints/best/{weights.WEIGHTS}"


def model_and_batch(toy: Any, **settings: Any) -> tuple[Any, Any]:
    config = toy.config(**settings)
    data, plan = toy.data(config)
    return toy.aligner(config), data[plan.epoch(0)[0]]


def crossed_as(aligner: Any, monkeypatch: pytest.MonkeyPatch, logit: Any, weights: Any) -> None:
    def cross(self: Any, a: Any, b: Any, index: Any = None, *, attention: bool = False) -> Crossed:
        found = weights(a, b)
        return Crossed(logit, attention=None if found is None else found.unsqueeze(1))  # one head

    monkeypatch.setattr(type(aligner), "cross", cross)


def test_a_sound_model_gives_no_warning(toy: Any) -> None:
    aligner, batch = model_and_batch(toy)
    assert inspect(aligner, batch, [1.0, 0.9], 2.0) == {}
    assert inspect(aligner, batch, [], None) == {}


def test_nan_and_constant_embeddings(toy: Any) -> None:
    aligner, batch = model_and_batch(toy, model__image__center="off")
    torch.nn.init.zeros_(aligner.sides["image"].heads[0].project.weight)
    assert set(inspect(aligner, batch, [], None)) == {"constant-embeddings"}
    torch.nn.init.constant_(aligner.sides["text"].heads[0].project.weight, math.nan)
    found = inspect(aligner, batch, [], None)
    assert set(found) == {"constant-embeddings", "nan-embeddings"}
    assert "text" in found["nan-embeddings"]
    assert "image" in found["constant-embeddings"]


def test_a_loss_at_chance(toy: Any) -> None:
    aligner, batch = model_and_batch(toy)
    assert "0.6365" in inspect(aligner, batch, [0.6365, 0.637], math.log(3) - 2 / 3 * math.log(2))["loss-at-chance"]
    assert "loss-at-chance" not in inspect(aligner, batch, [0.6365, 0.5], math.log(3) - 2 / 3 * math.log(2))


def test_the_scale_at_its_clamp_counts_only_where_it_is_learned(toy: Any) -> None:
    for learned, wanted in ((True, {"scale-clamped"}), (False, set())):
        aligner, batch = model_and_batch(toy, loss__learn_temperature=learned)
        with torch.no_grad():
            aligner.log_scale.fill_(math.log(200))
        assert set(inspect(aligner, batch, [], None)) == wanted


def test_uniform_attention_only_over_real_tokens(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    aligner, batch = model_and_batch(toy)
    logit = torch.randn(8)

    def uniform(a: Any, b: Any) -> torch.Tensor:
        shares = a.mask.float() / a.mask.sum(1, keepdim=True)
        return shares[:, None].expand(-1, b.mask.shape[1], -1)

    def peaked(a: Any, b: Any) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.zeros(b.mask.shape, dtype=torch.long), a.mask.shape[1]).float()

    crossed_as(aligner, monkeypatch, logit, uniform)
    assert set(inspect(aligner, batch, [1.0], None)) == {"attention-uniform"}
    assert inspect(aligner, batch, [], None) == {}, "a branch that does not train is not looked at"
    crossed_as(aligner, monkeypatch, logit, peaked)
    assert inspect(aligner, batch, [1.0], None) == {}


def test_the_other_direction_is_read_along_the_looking_side(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    aligner, batch = model_and_batch(toy, model__fusion__direction="a_to_b")

    def uniform(a: Any, b: Any) -> torch.Tensor:
        return (b.mask.float() / b.mask.sum(1, keepdim=True))[:, :, None].expand(-1, -1, a.mask.shape[1])

    crossed_as(aligner, monkeypatch, torch.randn(8), uniform)
    assert set(inspect(aligner, batch, [1.0], None)) == {"attention-uniform"}


@pytest.mark.parametrize("logit", [torch.full((8,), 3.0), torch.full((8,), math.nan)])
def test_a_cross_branch_that_says_nothing(toy: Any, monkeypatch: pytest.MonkeyPatch, logit: torch.Tensor) -> None:
    aligner, batch = model_and_batch(toy)
    crossed_as(aligner, monkeypatch, logit, lambda a, b: None)
    assert set(inspect(aligner, batch, [1.0], None)) == {"attention-vanished"}


def test_looking_changes_nothing(toy: Any) -> None:
    aligner, batch = model_and_batch(toy)
    before, state = {k: v.clone() for k, v in aligner.state_dict().items()}, torch.get_rng_state()
    inspect(aligner, batch, [1.0], 1.0)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in aligner.state_dict().items())


def test_what_heals_is_dropped_and_what_stays_keeps_its_step() -> None:
    first = renew([], {"a": "x", "b": "y"}, 10)
    second = renew(first, {"b": "y again", "c": "z"}, 20)
    assert [(w["kind"], w["step"]) for w in second] == [("b", 10), ("c", 20)]
    fatal = stop(25, {"total": torch.tensor(math.nan)}, 1.0)
    assert fatal is not None
    assert renew([fatal], {}, 30) == [fatal]
    assert sentinel.ended([fatal])
    assert not sentinel.ended(second)


def test_stop_names_what_is_not_finite() -> None:
    assert stop(1, {"total": torch.tensor(1.0)}, 2.0) is None
    assert "cross" in stop(1, {"cross": torch.tensor(math.inf), "total": torch.tensor(1.0)}, 2.0)["what"]  # type: ignore[index]
    assert "gradients" in stop(1, {"total": torch.tensor(1.0)}, math.nan)["what"]  # type: ignore[index]


def run(toy: Any, config: Any, folder: Path, **more: Any) -> loop.TrainingSummary:
    folder.mkdir(exist_ok=True)
    runtime.seed(config.seed)
    aligner = toy.aligner(config)
    data, plan = toy.data(config)

    def evaluate(model: Any) -> Mapping[str, float]:
        return {"R-sum": float(model.log_scale.detach())}

    return loop.fit(aligner, data, plan, config, folder, evaluate, on_progress=no_progress, **more)


@pytest.mark.parametrize("where", ["loss", "gradients", "embeddings"])
def test_a_run_that_falls_sick_ends_with_what_was_best_before(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    real, calls = loop.step.losses, []

    def sick(aligner: Any, *rest: Any) -> dict[str, torch.Tensor]:
        calls.append(1)
        if len(calls) == 5:  # the second step of the second epoch
            if where == "embeddings":
                torch.nn.init.constant_(aligner.sides["image"].heads[0].project.weight, math.nan)
                return real(aligner, *rest)
            nan = (
                aligner.log_scale * 0 + math.nan
                if where == "loss"
                else (aligner.log_scale - aligner.log_scale.detach()).sqrt()
            )
            return {"total": nan}
        return real(aligner, *rest)

    monkeypatch.setattr(loop.step, "losses", sick)
    found = run(toy, toy.config(optim__epochs=4), tmp_path)
    assert found.steps == 4
    assert [(w["kind"], w["step"]) for w in found.warnings if w["kind"] == "not-finite"] == [("not-finite", 5)]
    assert len(calls) == 5, "not for hours"
    assert all(torch.isfinite(v).all() for v in load_file(tmp_path / BEST).values())
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert ("not-finite", 5) in {(w["kind"], w["step"]) for w in last["warnings"]}
    again = run(toy, toy.config(optim__epochs=4), tmp_path, resume=True)
    assert (again.steps, again.warnings) == (4, found.warnings), "a sick run is not gone on with"


def test_a_run_sick_from_the_first_step_still_leaves_checkpoints(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop.step, "losses", lambda aligner, *rest: {"total": aligner.log_scale * math.nan})
    found = run(toy, toy.config(), tmp_path)
    assert found.steps == 0
    assert (tmp_path / BEST).is_file()


def test_a_nan_validation_never_keeps_the_place_of_the_best(toy: Any, tmp_path: Path) -> None:
    config = toy.config(optim__epochs=3)
    runtime.seed(0)
    data, plan = toy.data(config)
    figures = iter([math.nan, 2.0, 1.0])
    found = loop.fit(
        toy.aligner(config),
        data,
        plan,
        config,
        tmp_path,
        lambda model: {"R-sum": next(figures)},
        on_progress=no_progress,
    )
    assert (found.best_epoch, found.best) == (1, 2.0)


def test_an_adversary_that_has_won() -> None:
    assert set(sentinel.adversary([1.0, 0.99, 0.97])) == {"adversary-won"}
    assert "99.0%" in sentinel.adversary([0.99])["adversary-won"]
    assert sentinel.adversary([1.0, 0.5]) == {} == sentinel.adversary([])
