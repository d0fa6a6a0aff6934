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
from ccaco_cli.core.training import health_checks, loop, step
from ccaco_cli.core.training.checkpoint_saver import CheckpointOptions
from ccaco_cli.core.training.health_checks import check_model, not_finite, update_warnings
from ccaco_cli.core.types import Crossed

BEST = f"checkpoints/best/{weights.WEIGHTS}"


def model_and_batch(toy: Any, **settings: Any) -> tuple[Any, Any]:
    config = toy.config(**settings)
    data, plan = toy.data(config)
    return toy.aligner(config), data[plan.epoch(0)[0]]


def crossed_as(aligner: Any, monkeypatch: pytest.MonkeyPatch, logit: Any, weights: Any) -> None:
    def cross(self: Any, a: Any, b: Any, index: Any = None, *, attention: bool = False) -> Crossed:
        facts = weights(a, b)
        return Crossed(logit, attention=None if facts is None else facts.unsqueeze(1))  # one head

    monkeypatch.setattr(type(aligner), "cross", cross)


def test_a_sound_model_gives_no_warning(toy: Any) -> None:
    aligner, batch = model_and_batch(toy)
    assert check_model(aligner, batch, {"cross": [1.0, 0.9]}, {"cross": 2.0}) == {}
    assert check_model(aligner, batch, {}, {}) == {}


def test_nan_and_constant_embeddings(toy: Any) -> None:
    aligner, batch = model_and_batch(toy, model__image__center="off")
    torch.nn.init.zeros_(aligner.sides["image"].heads[0].project.weight)
    assert set(check_model(aligner, batch, {}, {})) == {"constant-embeddings"}
    torch.nn.init.constant_(aligner.sides["text"].heads[0].project.weight, math.nan)
    report = check_model(aligner, batch, {}, {})
    assert set(report) == {"constant-embeddings", "nan-embeddings"}
    assert "text" in report["nan-embeddings"]
    assert "image" in report["constant-embeddings"]


def test_a_loss_at_chance(toy: Any) -> None:
    aligner, batch = model_and_batch(toy)
    chance = {"cross": math.log(3) - 2 / 3 * math.log(2)}
    assert "0.6365" in check_model(aligner, batch, {"cross": [0.6365, 0.637]}, chance)["loss-at-chance"]
    assert "loss-at-chance" not in check_model(aligner, batch, {"cross": [0.6365, 0.5]}, chance)


def test_the_scale_at_its_clamp_counts_only_where_it_is_learned(toy: Any) -> None:
    for learned, wanted in ((True, {"scale-clamped"}), (False, set())):
        aligner, batch = model_and_batch(toy, loss__learn_temperature=learned)
        with torch.no_grad():
            aligner.log_scale.fill_(math.log(200))
        assert set(check_model(aligner, batch, {}, {})) == wanted


def test_uniform_attention_only_over_real_tokens(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    aligner, batch = model_and_batch(toy)
    logit = torch.randn(8)

    def uniform(a: Any, b: Any) -> torch.Tensor:
        shares = a.mask.float() / a.mask.sum(1, keepdim=True)
        return shares[:, None].expand(-1, b.mask.shape[1], -1)

    def peaked(a: Any, b: Any) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.zeros(b.mask.shape, dtype=torch.long), a.mask.shape[1]).float()

    crossed_as(aligner, monkeypatch, logit, uniform)
    assert set(check_model(aligner, batch, {"cross": [1.0]}, {})) == {"attention-uniform"}
    assert check_model(aligner, batch, {}, {}) == {}, "a branch that does not train is not looked at"
    crossed_as(aligner, monkeypatch, logit, peaked)
    assert check_model(aligner, batch, {"cross": [1.0]}, {}) == {}


def test_the_other_direction_is_read_along_the_looking_side(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    aligner, batch = model_and_batch(toy, model__fusion__direction="a_to_b")

    def uniform(a: Any, b: Any) -> torch.Tensor:
        return (b.mask.float() / b.mask.sum(1, keepdim=True))[:, :, None].expand(-1, -1, a.mask.shape[1])

    crossed_as(aligner, monkeypatch, torch.randn(8), uniform)
    assert set(check_model(aligner, batch, {"cross": [1.0]}, {})) == {"attention-uniform"}


@pytest.mark.parametrize("logit", [torch.full((8,), 3.0), torch.full((8,), math.nan)])
def test_a_cross_branch_that_says_nothing(toy: Any, monkeypatch: pytest.MonkeyPatch, logit: torch.Tensor) -> None:
    aligner, batch = model_and_batch(toy)
    crossed_as(aligner, monkeypatch, logit, lambda a, b: None)
    assert set(check_model(aligner, batch, {"cross": [1.0]}, {})) == {"attention-vanished"}


def test_looking_changes_nothing(toy: Any) -> None:
    aligner, batch = model_and_batch(toy)
    before, state = {k: v.clone() for k, v in aligner.state_dict().items()}, torch.get_rng_state()
    check_model(aligner, batch, {"cross": [1.0]}, {"cross": 1.0})
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in aligner.state_dict().items())


def test_what_heals_is_dropped_and_what_stays_keeps_its_step() -> None:
    first = update_warnings([], {"a": "x", "b": "y"}, 10)
    second = update_warnings(first, {"b": "y again", "c": "z"}, 20)
    assert [(w["kind"], w["step"]) for w in second] == [("b", 10), ("c", 20)]
    fatal = not_finite(25, [{"total": torch.tensor(math.nan)}, {"gradients": torch.tensor(1.0)}])
    assert fatal is not None
    assert update_warnings([fatal], {}, 30) == [fatal]
    assert health_checks.is_fatal([fatal])
    assert not health_checks.is_fatal(second)


def test_stop_names_what_is_not_finite() -> None:
    assert not_finite(1, [{"total": torch.tensor(1.0)}, {"gradients": torch.tensor(2.0)}]) is None
    cross = not_finite(1, [{"cross": torch.tensor(math.inf), "total": torch.tensor(1.0)}])
    assert cross is not None and cross["what"].startswith("cross not finite")
    gradients = not_finite(1, [{"total": torch.tensor(1.0)}, {"gradients": torch.tensor(math.nan)}])
    assert gradients is not None and gradients["what"].startswith("gradients not finite")


def run(toy: Any, config: Any, folder: Path, **options: Any) -> loop.TrainingSummary:
    folder.mkdir(exist_ok=True)
    runtime.seed(config.seed)
    aligner, data = toy.aligner(config), loop.TrainingData(*toy.data(config))

    def evaluate(model: Any) -> Mapping[str, float]:
        return {"R-sum": float(model.log_scale.detach())}

    callbacks = loop.TrainingCallbacks(evaluate)
    return loop.fit(aligner, data, config, folder, callbacks, options=CheckpointOptions(**options))


@pytest.mark.parametrize("where", ["loss", "gradients", "embeddings"])
def test_a_run_that_falls_sick_ends_with_what_was_best_before(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    real, calls = step.StepLosses.forward, []

    def failing(self: Any, *arguments: Any) -> dict[str, torch.Tensor]:
        aligner = self.aligner
        calls.append(1)
        if len(calls) == 5:  # the second step of the second epoch
            if where == "embeddings":
                torch.nn.init.constant_(aligner.sides["image"].heads[0].project.weight, math.nan)
                return real(self, *arguments)
            nan = (
                aligner.log_scale * 0 + math.nan
                if where == "loss"
                else (aligner.log_scale - aligner.log_scale.detach()).sqrt()
            )
            return {"total": nan}
        return real(self, *arguments)

    monkeypatch.setattr(step.StepLosses, "forward", failing)
    state = run(toy, toy.config(optim__epochs=4), tmp_path)
    assert state.steps == 4
    assert [(w["kind"], w["step"]) for w in state.warnings if w["kind"] == "not-finite"] == [("not-finite", 5)]
    assert len(calls) == 5, "not for hours"
    assert all(torch.isfinite(v).all() for v in load_file(tmp_path / BEST).values())
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert ("not-finite", 5) in {(w["kind"], w["step"]) for w in last["warnings"]}
    again = run(toy, toy.config(optim__epochs=4), tmp_path, resume=True)
    assert (again.steps, again.warnings) == (4, state.warnings), "a sick run is not gone on with"


def test_a_run_sick_from_the_first_step_still_leaves_checkpoints(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step.StepLosses, "forward", lambda self, *args: {"total": self.aligner.log_scale * math.nan})
    state = run(toy, toy.config(), tmp_path)
    assert state.steps == 0
    assert (tmp_path / BEST).is_file()


def test_a_nan_validation_never_keeps_the_place_of_the_best(toy: Any, tmp_path: Path) -> None:
    config = toy.config(optim__epochs=3)
    runtime.seed(0)
    figures = iter([math.nan, 2.0, 1.0])
    callbacks = loop.TrainingCallbacks(lambda model: {"R-sum": next(figures)})
    state = loop.fit(toy.aligner(config), loop.TrainingData(*toy.data(config)), config, tmp_path, callbacks)
    assert (state.best_epoch, state.best) == (1, 2.0)


def test_an_adversary_that_has_won() -> None:
    assert set(health_checks.check_domain_classifier([1.0, 0.99, 0.97])) == {"adversary-won"}
    assert "99.0%" in health_checks.check_domain_classifier([0.99])["adversary-won"]
    assert health_checks.check_domain_classifier([1.0, 0.5]) == {} == health_checks.check_domain_classifier([])
