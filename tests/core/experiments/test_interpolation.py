"""Mixes of a fine-tuned run with its start (``report --wise``)."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ccaco_cli.core import manifest
from ccaco_cli.core.errors import CcacoError, ConfigError, ManifestError
from ccaco_cli.core.experiments import interpolation
from ccaco_cli.core.experiments.cross_dataset import ScoreOptions, score_on
from ccaco_cli.core.experiments.interpolation import interpolate, mixed_weights, parse_shares
from ccaco_cli.core.experiments.request import TrainRequest
from ccaco_cli.core.experiments.run_folder import load_run
from ccaco_cli.core.experiments.split_encoding import SplitEncoder
from ccaco_cli.core.scoring import results
from ccaco_cli.core.workflows.train import train
from tests.pretrained_models import SMALL_RUN, open_clip_folder

SETTINGS = {
    **SMALL_RUN,
    "optim.steps": 4,
    "optim.lr": 1e-2,
    "optim.layer_decay": 1.0,
    "loss.beta": 0.5,
}
CPU = ScoreOptions(device="cpu")
SHARES = (0.0, 0.5, 1.0)


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"open_clip:{open_clip_folder(tmp_path_factory.mktemp('model') / 'vit')}"


@pytest.fixture(scope="module")
def tuned(spec: str, data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose weights are not those of its start: every epoch counts as better than the one before."""
    folder = tmp_path_factory.mktemp("runs") / "tuned"
    scores = itertools.count()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SplitEncoder, "validate", lambda *_: {"R-sum": float(next(scores))})
        request = TrainRequest("scenes", explicit=SETTINGS | {"model.spec": spec})
        run = train(request, folder, data_root=data_root)
    assert run.facts["fitted"]["best_epoch"] >= 0 and run.facts["weights_tried"]
    return folder


def figures(metrics: Any) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if "R@" in name or name == "R-sum"}


def test_the_ends_have_the_figures_of_the_zero_shot_model_and_of_the_run(
    spec: str, tuned: Path, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # results of a SPEC are stored in runs/
    mixes = interpolate(tuned, SHARES, "scenes", CPU, data_root=data_root)
    assert [mix.share for mix in mixes] == [*SHARES]
    start, _, end = (mix.run.facts["metrics"] for mix in mixes)
    zero_shot = train(
        TrainRequest("scenes", "zero-shot", explicit=SETTINGS | {"model.spec": spec}),
        tmp_path / "z",
        data_root=data_root,
    )
    trained = manifest.open(tuned, kind="run").facts
    for split in ("val", "test"):
        expected = zero_shot.facts["metrics"][f"{split}.cosine"]
        assert figures(start[f"{split}.cosine"]) == pytest.approx(figures(expected), abs=1e-6)
        for stage in ("cosine", "two-stage"):
            expected = trained["metrics"][f"{split}.{stage}"]
            assert figures(end[f"{split}.{stage}"]) == pytest.approx(figures(expected), abs=1e-6)
    assert mixes[-1].run.facts["weight"] == trained["weight"]
    # the same data set stands for the abilities of the start
    (file,) = score_on([spec], "scenes", CPU, data_root=data_root)  # type: ignore[list-item]
    retained = [mix.retained for mix in mixes]
    assert all(score is not None and score.metric == "R-sum" for score in retained)
    assert retained[0].value == pytest.approx(results.read(file)["metrics"]["R-sum"], abs=1e-6)  # type: ignore[union-attr, index]
    assert retained[0].retention == 1.0  # type: ignore[union-attr]
    assert retained[2].value == pytest.approx(end["test.cosine"]["R-sum"], abs=1e-6)  # type: ignore[union-attr]
    best = max(mixes, key=lambda mix: (interpolation.validation_score(mix.run), -mix.share))
    assert [mix.chosen for mix in mixes] == [mix is best for mix in mixes]


def test_the_chosen_mix_is_a_run_and_is_computed_once(
    tuned: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (mix,) = interpolate(tuned, [0.25], options=CPU, data_root=data_root)
    assert mix.chosen and mix.retained is None
    aligner, _, config, run = load_run(mix.run.path, "cpu")
    trained = load_run(tuned, "cpu")[0].state_dict()
    start = interpolation._Mixer(tuned, "cpu", lambda *_: None).endpoints[0]
    for name, tensor in aligner.state_dict().items():
        expected = (
            trained[name]
            if name.startswith(("matcher.", "cross_projection."))
            else (0.75 * start[name] + 0.25 * trained[name] if tensor.is_floating_point() else trained[name])
        )
        assert torch.allclose(tensor, expected, atol=1e-6), name
    assert run.facts["name"] == "tuned-wise-0.25" and config.model.spec
    monkeypatch.setattr(interpolation, "load_run", None)
    (again,) = interpolate(tuned, [0.25], options=CPU, data_root=data_root)
    assert again.run.sha256 == mix.run.sha256


def test_integer_buffers_and_the_cross_branch_are_not_mixed() -> None:
    start = {"a": torch.zeros(2), "ids": torch.arange(2), "matcher.w": torch.zeros(1)}
    trained = {"a": torch.ones(2), "ids": torch.arange(2) + 5, "matcher.w": torch.ones(1)}
    mixed = mixed_weights(start, trained, 0.25)
    assert mixed["a"].tolist() == [0.25, 0.25] and mixed["ids"].tolist() == [5, 6] and mixed["matcher.w"].item() == 1
    assert torch.equal(mixed_weights(start, trained, 1.0)["a"], trained["a"])


@pytest.mark.parametrize("text", ["", ",", "0,x", "nan", "0,1.01", "-0.1", "inf", "0.5,"])
def test_shares_that_are_not_from_0_to_1_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="cannot read --wise"):
        parse_shares(text)


def test_shares_are_sorted_and_distinct() -> None:
    assert parse_shares("1, 0.5,-0,0.50") == (0.0, 0.5, 1.0)


def test_the_command_shows_gates_and_refuses(
    ccaco: Callable[..., Any], tuned: Path, run: Path, data_root: Path
) -> None:
    arguments = ("report", tuned, "--wise", "0,0.5,1", "--data", data_root, "--device", "cpu", "--format", "json")
    done = ccaco(*arguments, "--on", "scenes", "--fail-if", "retention<1e9")
    rows = json.loads(done.out)
    assert done.code == 1 and [row["mix"] for row in rows] == [0, 0.5, 1]
    (chosen,) = (row for row in rows if row["chosen"])
    gates = [line for line in done.err.splitlines() if line.startswith("gate: ")]
    assert gates == [f"gate: tuned: retention = {chosen['retention']} (retention<1e9)"], "on the chosen mix only"
    assert rows[0]["retention"] == 1 and chosen["folder"] in done.err and chosen["val_cosine_R-sum"] > 0
    assert ccaco(*arguments, "--on", "scenes", "--fail-if", "retention<0").code == 0
    done = ccaco(*arguments, "--fail-if", "retention<0.97")
    assert done.code == 2 and "no column retention" in done.err, "without --on nothing is retained"
    for more, words in (
        (("--wise", "0,2"), "cannot read --wise: 0,2"),
        (("--compare",), "--wise and --compare"),
        (("--on", "nothing"), "no such data set"),
    ):
        done = ccaco(*arguments, *more)
        assert done.code == 2 and words in done.err and len(done.err.splitlines()) == 1 and not done.out
    done = ccaco("report", run, *arguments[2:])
    assert done.code == 2 and "did not start from a pretrained model" in done.err
    assert not (run / "results/wise").exists()


def test_a_start_that_has_changed_is_refused(data_root: Path, tmp_path: Path) -> None:
    folder = open_clip_folder(tmp_path / "vit")
    explicit = SETTINGS | {"model.spec": f"open_clip:{folder}", "optim.steps": 1}
    train(TrainRequest("scenes", explicit=explicit), tmp_path / "run", data_root=data_root)
    from safetensors.torch import load_file, save_file

    file = folder / "open_clip_model.safetensors"
    save_file({name: tensor + 0.1 for name, tensor in load_file(file).items()}, file)
    with pytest.raises(ManifestError, match="the start of this run has other weights now"):
        interpolate(tmp_path / "run", SHARES, options=CPU, data_root=data_root)
    with pytest.raises(CcacoError, match="trained no model"):
        arm = train(TrainRequest("scenes", "zero-shot", explicit=explicit), tmp_path / "z", data_root=data_root)
        interpolate(arm.path, SHARES, options=CPU, data_root=data_root)
