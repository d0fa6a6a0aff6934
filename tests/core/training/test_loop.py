from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, load_file

from ccaco_cli.core import runtime
from ccaco_cli.core.data.loader import PairDataset
from ccaco_cli.core.errors import ConfigError, DataError, Interrupted
from ccaco_cli.core.model import weights
from ccaco_cli.core.training import checkpoint, step
from ccaco_cli.core.training.checkpoint_saver import CheckpointOptions
from ccaco_cli.core.training.config_checks import check
from ccaco_cli.core.training.loop import TrainingCallbacks, TrainingData, TrainingSummary, fit, waiting_advice
from ccaco_cli.core.training.optim import lr_at
from ccaco_cli.core.types import OnProgress, no_progress

BEST = f"checkpoints/best/{weights.WEIGHTS}"


def start(
    toy: Any,
    config: Any,
    folder: Path,
    evaluate: Callable[[Any], Mapping[str, float]] | None = None,
    report_progress: OnProgress = no_progress,
    **options: Any,
) -> TrainingSummary:
    folder.mkdir(exist_ok=True)
    runtime.seed(config.seed)
    aligner = toy.aligner(config)
    callbacks = TrainingCallbacks(evaluate or (lambda model: {"R-sum": 1.0}), report_progress=report_progress)
    return fit(
        aligner, TrainingData(*toy.data(config)), config, folder, callbacks, options=CheckpointOptions(**options)
    )


def last(folder: Path) -> bytes:
    """Weights of the latest checkpoint."""
    newest = checkpoint.latest(folder / "checkpoints")
    assert newest
    return (newest / weights.WEIGHTS).read_bytes()


def scores(*values: float, stop_after: int = 99) -> Callable[[Any], Mapping[str, float]]:
    """Validation that says these figures one after the other, and is killed after ``stop_after``."""
    scores_left = iter(values)
    calls = []

    def evaluate(model: Any) -> Mapping[str, float]:
        calls.append(model)
        if len(calls) > stop_after:
            raise KeyboardInterrupt
        return {"R-sum": next(scores_left)}

    return evaluate


def entries(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def steps(folder: Path) -> list[dict[str, Any]]:
    return [e for e in entries(folder) if "validation" not in e]


def test_the_same_seed_gives_the_same_bits_and_another_one_others(toy: Any, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        start(toy, toy.config(seed=seed), tmp_path / name)
    a, b, c = (last(tmp_path / name) for name in "abc")
    assert a == b != c
    assert steps(tmp_path / "a") == steps(tmp_path / "b") != steps(tmp_path / "c")


def test_training_lowers_both_losses(toy: Any, tmp_path: Path) -> None:
    start(toy, toy.config(optim__epochs=15), tmp_path / "a")
    log = steps(tmp_path / "a")
    for part in ("contrastive", "cross"):
        first, last = (sum(e[part] for e in part_of) for part_of in (log[:3], log[-3:]))
        assert last < 0.8 * first, part


@pytest.mark.parametrize("killed_after", [1, 2])
def test_a_resumed_run_equals_the_undisturbed_one(toy: Any, tmp_path: Path, killed_after: int) -> None:
    config = toy.config(optim__epochs=4, loss__cross_start=0.3, loss__cross_ramp=0.2)
    reference = start(toy, config, tmp_path / "whole", scores(1, 3, 2, 2.5))
    figures = [1, 3, 2, 2.5]
    with pytest.raises(KeyboardInterrupt):
        start(toy, config, tmp_path / "part", scores(*figures, stop_after=killed_after))
    assert len(steps(tmp_path / "part")) == 3 * (killed_after + 1), "the last epoch was logged but never saved"
    torch.manual_seed(987)
    resumed = start(toy, config, tmp_path / "part", scores(*figures[killed_after:]), resume=True)
    assert (tmp_path / "part" / BEST).read_bytes() == (tmp_path / "whole" / BEST).read_bytes()
    assert last(tmp_path / "part") == last(tmp_path / "whole")
    assert steps(tmp_path / "part") == steps(tmp_path / "whole")
    assert [e["validation"] for e in entries(tmp_path / "part") if "validation" in e] == [{"R-sum": f} for f in figures]
    assert (
        (resumed.steps, resumed.best_epoch, resumed.best)
        == (reference.steps, reference.best_epoch, reference.best)
        == (12, 1, 3)
    )


@pytest.mark.parametrize(
    ("workers", "killed_at", "often"), [(0, 1, 1), (0, 5, 1), (2, 4, 1), (0, 3, 2), (0, 6, 1), (0, 12, 1)]
)
def test_a_run_stopped_in_the_middle_of_an_epoch_goes_on_to_the_bit(
    toy: Any, tmp_path: Path, workers: int, killed_at: int, often: int
) -> None:
    more = {
        "loss__cross": "matching",
        "optim__batch_size": 6,
        "optim__accum_freq": often,
        "workers": workers,
        "loss__cross_batch": 4,
    }
    config = toy.config(
        optim__epochs=3, loss__cross_start=0.2, loss__cross_ramp=0.2, model__text__input_dropout=0.2, **more
    )
    start(toy, config, tmp_path / "whole", scores(1, 3, 2))

    def end(done: int, total: int | None, facts: Any) -> None:
        if done == killed_at:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match=f"saved at step {killed_at} of") as caught:
        start(toy, config, tmp_path / "part", scores(1, 3, 2), report_progress=end)
    assert caught.value.code == 143
    assert [e["step"] for e in steps(tmp_path / "part")] == list(range(1, killed_at + 1))
    runtime.seed(987)
    left = scores(*(1, 3, 2)[sum("validation" in e for e in entries(tmp_path / "part")) :])
    start(toy, config, tmp_path / "part", left, resume=True)
    assert last(tmp_path / "part") == last(tmp_path / "whole")
    assert (tmp_path / "part" / BEST).read_bytes() == (tmp_path / "whole" / BEST).read_bytes()
    strip = [
        [{k: v for k, v in e.items() if k != "waiting"} for e in entries(tmp_path / name)] for name in ("part", "whole")
    ]
    assert strip[0] == strip[1]
    first, second = (
        checkpoint.load_state(checkpoint.latest(tmp_path / n / "checkpoints") / checkpoint.STATE)
        for n in ("part", "whole")
    )  # type: ignore[operator]
    for name in ("torch", "numpy", "python"):
        assert torch.equal(first["generators"][0][name], second["generators"][0][name])
    assert first["optimizer"]["state"].keys() == second["optimizer"]["state"].keys()
    for number, state in first["optimizer"]["state"].items():
        assert all(torch.equal(v, second["optimizer"]["state"][number][k]) for k, v in state.items())


def test_saved_every_so_many_minutes_and_up_to_the_set_number(toy: Any, tmp_path: Path) -> None:
    saved: list[list[str]] = []

    def observe(done: int, total: int | None, facts: Any) -> None:
        saved.append(sorted(p.name for p in tmp_path.glob("a/checkpoints/[0-9]*")))

    start(toy, toy.config(optim__epochs=1), tmp_path / "a", report_progress=observe, minutes=1e-9, keep=2)
    assert saved == [[], ["00000001-0000"], ["00000001-0000", "00000002-0000"]]
    assert sorted(p.name for p in tmp_path.glob("a/checkpoints/[0-9]*")) == ["00000003-0000", "00000003-0001"]


def test_a_second_signal_ends_it_at_once(toy: Any, tmp_path: Path) -> None:
    def end(done: int, total: int | None, facts: Any) -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)

    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match="at once") as caught:
        start(toy, toy.config(), tmp_path / "a", report_progress=end)
    assert caught.value.code == 130
    assert not (tmp_path / "a/checkpoints").exists()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers


def test_a_worker_that_dies_is_named(toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = os.getpid()
    real = PairDataset.__getitem__

    def die(self: Any, entry: Any) -> Any:
        if os.getpid() != here:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, entry)

    monkeypatch.setattr(PairDataset, "__getitem__", die)
    with pytest.raises(DataError, match=r"a process that loads data died.*--resume latest and fewer --workers"):
        start(toy, toy.config(workers=1), tmp_path / "a")


def test_a_torn_line_of_the_log_is_dropped(toy: Any, tmp_path: Path) -> None:
    config = toy.config(optim__epochs=2)
    with pytest.raises(KeyboardInterrupt):
        start(toy, config, tmp_path / "a", scores(1, stop_after=1))
    with (tmp_path / "a/metrics.jsonl").open("a") as log:
        log.write('{"step": 4, "epo')
    start(toy, config, tmp_path / "a", resume=True)
    assert [e["step"] for e in steps(tmp_path / "a")] == [1, 2, 3, 4, 5, 6]


def test_best_is_the_best_validation_epoch_and_the_earlier_of_two(toy: Any, tmp_path: Path) -> None:
    weights: list[torch.Tensor] = []
    figures = iter([1.0, 5.0, 5.0, 2.0])

    def evaluate(model: Any) -> Mapping[str, float]:
        weights.append(model.log_scale.detach().clone())
        return {"R-sum": next(figures), "loss": 0.0}

    state = start(toy, toy.config(optim__epochs=4), tmp_path / "a", evaluate)
    assert (state.best_epoch, state.best) == (1, 5.0)
    assert torch.equal(load_file(tmp_path / "a" / BEST)["log_scale"], weights[1])
    assert torch.equal(load(last(tmp_path / "a"))["log_scale"], weights[3])
    assert len({float(s) for s in weights}) == 4


def test_patience_also_after_a_resume(toy: Any, tmp_path: Path) -> None:
    config = toy.config(optim__epochs=9, optim__patience=2)
    state = start(toy, config, tmp_path / "a", scores(1, 3, 2, 2, 9, 9))
    assert (state.steps, state.best_epoch) == (12, 1)
    again = start(toy, config, tmp_path / "a", scores(9, 9), resume=True)
    assert (again.steps, again.best_epoch, again.best) == (12, 1, 3)


def test_the_log_has_one_line_a_step_with_every_part(toy: Any, tmp_path: Path) -> None:
    config = toy.config(optim__epochs=4, loss__alpha=2.0, loss__beta=0.5, loss__cross_start=0.5, loss__cross_ramp=0.25)
    progress: list[tuple[int, int | None]] = []
    start(toy, config, tmp_path / "a", report_progress=lambda done, total, facts: progress.append((done, total)))
    log = steps(tmp_path / "a")
    assert [e["step"] for e in log] == list(range(1, 13))
    assert [e["epoch"] for e in log] == [i // 3 for i in range(12)]
    assert progress == [(i, 12) for i in range(1, 13)]
    for number, entry in enumerate(log):
        beta = 0.5 * min(1, max(0, (number / 12 - 0.5) / 0.25))
        assert entry["beta"] == pytest.approx(beta, abs=1e-6)
        assert ("cross" in entry) == (beta > 0)
        assert entry["total"] == pytest.approx(2 * entry["contrastive"] + beta * entry.get("cross", 0.0), abs=1e-5)
        assert entry["lr"] == lr_at(number, 12, config.optim)
        assert entry["grad_norm"] > 0
    assert [e["step"] for e in entries(tmp_path / "a") if "validation" in e] == [3, 6, 9, 12]


@pytest.mark.parametrize("balance", ["uncertainty", "gradnorm"])
def test_learned_weights_are_logged_and_survive_a_resume(toy: Any, tmp_path: Path, balance: str) -> None:
    config = toy.config(optim__epochs=4, loss__balance=balance)
    start(toy, config, tmp_path / "whole", scores(1, 2, 3, 4))
    with pytest.raises(KeyboardInterrupt):
        start(toy, config, tmp_path / "part", scores(1, 2, stop_after=2))
    start(toy, config, tmp_path / "part", scores(3, 4), resume=True)
    log = steps(tmp_path / "whole")
    assert steps(tmp_path / "part") == log
    assert (log[0]["alpha"], log[0]["beta"]) == (1, 0.5)
    assert len({e["beta"] for e in log}) == len({e["alpha"] for e in log}) == 12, "each step has its own"
    if balance == "gradnorm":
        assert all(e["alpha"] + e["beta"] / 0.5 == pytest.approx(2, abs=1e-4) for e in log)
        assert all(
            e["total"] == pytest.approx(e["alpha"] * e["contrastive"] + e["beta"] * e["cross"], abs=1e-4) for e in log
        )


def test_accumulation_makes_fewer_updates_and_leaves_an_odd_batch_out(toy: Any, tmp_path: Path) -> None:
    state = start(toy, toy.config(optim__epochs=2, optim__batch_size=4, optim__accum_freq=4), tmp_path / "a")
    assert state.steps == 2  # six batches an epoch: one update of four, two left
    assert len(steps(tmp_path / "a")) == 2


def test_accumulated_gradients_are_the_mean_of_their_batches(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fixed(self: Any, batch: Any, *arguments: Any) -> dict[str, torch.Tensor]:
        return {"total": self.aligner.log_scale * float(batch.rows.sum())}

    monkeypatch.setattr(step.StepLosses, "forward", fixed)
    config = toy.config(optim__steps=1, optim__accum_freq=2, optim__grad_clip=0.0)
    start(toy, config, tmp_path / "a")
    plan = toy.data(config)[1].epoch(0)
    wanted = sum(float(rows.sum()) for rows, _, _ in plan[:2]) / 2
    assert steps(tmp_path / "a")[0]["grad_norm"] == pytest.approx(wanted, abs=1e-3)


def test_more_accumulation_than_an_epoch_has_is_refused(toy: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"accum_freq = 4; expected at most 3"):
        start(toy, toy.config(optim__accum_freq=4), tmp_path / "a")


def test_every_epoch_has_its_own_order(toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[list[int]] = []
    real = step.StepLosses.forward

    def watch(self: Any, batch: Any, *arguments: Any) -> Any:
        batches.append(batch.rows.tolist())
        return real(self, batch, *arguments)

    monkeypatch.setattr(step.StepLosses, "forward", watch)
    config = toy.config(optim__epochs=2)
    start(toy, config, tmp_path / "a")
    plan = toy.data(config)[1]
    assert batches == [rows.tolist() for number in (0, 1) for rows, _, _ in plan.epoch(number)]


def test_gradients_are_clipped(toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []
    real = torch.optim.AdamW.step

    def watch(self: Any, *arguments: Any, **more: Any) -> Any:
        grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.stack([g.norm() for g in grads]).norm()))
        return real(self, *arguments, **more)

    monkeypatch.setattr(torch.optim.AdamW, "step", watch)
    start(toy, toy.config(optim__epochs=1, optim__grad_clip=0.01), tmp_path / "a")
    assert norms == pytest.approx([0.01] * 3, rel=1e-2)
    assert all(e["grad_norm"] > 0.011 for e in steps(tmp_path / "a")), "the log tells the norm before clipping"
    norms.clear()
    start(toy, toy.config(optim__epochs=1, optim__grad_clip=0.0), tmp_path / "b")
    assert norms == pytest.approx([e["grad_norm"] for e in steps(tmp_path / "b")], abs=1e-3)


def test_steps_win_over_epochs(toy: Any, tmp_path: Path) -> None:
    state = start(toy, toy.config(optim__epochs=1, optim__steps=7), tmp_path / "a")
    assert state.steps == len(steps(tmp_path / "a")) == 7
    assert [e["epoch"] for e in steps(tmp_path / "a")] == [0, 0, 0, 1, 1, 1, 2]
    assert state.samples_per_second == pytest.approx(7 * 8 / state.seconds)
    assert state.memory > 50


def test_locked_towers_do_not_move(toy: Any, tmp_path: Path) -> None:
    config = toy.config(model__image__lock=True)
    runtime.seed(0)
    aligner = toy.aligner(config)
    before = {k: v.clone() for k, v in aligner.state_dict().items()}
    callbacks = TrainingCallbacks(lambda model: {"R-sum": 0.0})
    fit(aligner, TrainingData(*toy.data(config)), config, tmp_path, callbacks)
    moved = {k for k, v in aligner.state_dict().items() if not torch.equal(v, before[k])}
    assert not any(k.startswith("sides.image.tower") for k in moved)
    assert {"sides.text.tower.linear.weight", "sides.image.heads.0.project.weight", "log_scale"} <= moved


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"loss__cross": "sum"}, "infonce"),
        ({"optim__precision": "fp64"}, "amp_bf16"),
        ({"loss__balance": "equal"}, "gradnorm"),
        ({"optim__batch_size": 0}, "optim.batch_size"),
        ({"optim__batch_size": 1}, "optim.batch_size = 1; expected 2 or more"),
        ({"optim__batch_size": 1, "loss__alpha": 0.0}, "optim.batch_size = 1; expected 2 or more"),
        ({"optim__batch_size": 1, "loss__beta": 0.0}, "optim.batch_size = 1; expected 2 or more"),
        ({"optim__epochs": 0}, "optim.epochs"),
        ({"optim__accum_freq": 0}, "optim.accum_freq"),
        ({"loss__alpha": 0.0, "loss__beta": 0.0}, "nothing to learn"),
        ({"loss__beta": -1.0}, "loss.beta .*0 to 1000000"),
    ],
)
def test_settings_that_would_fail_later_are_refused_at_once(toy: Any, settings: dict[str, Any], words: str) -> None:
    check(toy.config())
    with pytest.raises(ConfigError, match=words):
        check(toy.config(**settings))


def test_waiting_for_data_is_reported_with_what_helps() -> None:
    assert waiting_advice(0.9, 10, 0) == ""
    assert waiting_advice(3.0, 4.0, 0) == "", "too short to say"
    advice = waiting_advice(2.3, 10, 4)
    assert "23 %" in advice
    assert "--workers 6" in advice
