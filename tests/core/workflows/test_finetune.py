"""Fine-tuning a pretrained model: the arm ``zero-shot``, recipes by size, ways to freeze, and two processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ccaco_cli.core import manifest
from ccaco_cli.core.data import shards
from ccaco_cli.core.errors import ConfigError
from ccaco_cli.core.experiments.grid import AblationRequest
from ccaco_cli.core.experiments.request import TrainRequest
from ccaco_cli.core.experiments.run_folder import load_run
from ccaco_cli.core.recipes import FEW_PAIRS, MANY_PAIRS, RECIPES, pretrained_recipe
from ccaco_cli.core.training.config_checks import check
from ccaco_cli.core.workflows.ablate import ablate
from ccaco_cli.core.workflows.train import train
from tests.pretrained_models import SMALL_RUN, open_clip_folder
from tests.processes import launch

BEST = "checkpoints/best/model.safetensors"
SHORT = {
    **SMALL_RUN,
    "optim.steps": 3,
}
BOTH = ("image", "text")


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"open_clip:{open_clip_folder(tmp_path_factory.mktemp('model') / 'vit')}"


def test_one_zero_shot_run_stands_for_every_seed(spec: str, data_root: Path, tmp_path: Path) -> None:
    request = TrainRequest("scenes", explicit=SHORT | {"model.spec": spec, "optim.layer_decay": 0.5, "optim.lr": 1e-2})
    ablation = ablate(AblationRequest(request, ["zero-shot", "clip", "ccaco"], 2), tmp_path / "a", data_root=data_root)
    assert not ablation.failures
    assert {row.arm: row.seeds for row in ablation.table} == {"zero-shot": 1, "clip": 2, "ccaco": 2}
    rows = {row.arm: row for row in ablation.table}
    assert rows["zero-shot"].evidence is not None and rows["zero-shot"].evidence.paired_seeds == 2
    run = manifest.open(tmp_path / "a/zero-shot-s0", kind="run")
    assert run.facts["parameters"] == 0 and run.facts["fitted"]["steps"] == 0
    assert run.facts["headline"] == "cosine" and not run.files
    again = ablate(AblationRequest(request, ["zero-shot"], 2), tmp_path / "a", data_root=data_root)
    assert [row.run for row in again.rows] == ["zero-shot-s0"]
    fixed = ablate(
        AblationRequest(request, ["zero-shot", "clip"], 2, reference="zero-shot"), tmp_path / "a", data_root=data_root
    )
    assert next(row for row in fixed.table if row.arm == "clip").evidence.paired_seeds == 2  # type: ignore[union-attr]


def test_zero_shot_needs_a_model(small: dict[str, Any], data_root: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--model SPEC"):
        ablate(AblationRequest(TrainRequest("scenes", explicit=small), ["zero-shot"], 1), tmp_path, data_root=data_root)


def test_zero_shot_of_a_run_scores_its_cosine(run: Path, data_root: Path, tmp_path: Path) -> None:
    explicit = SHORT | {"model.spec": str(run)}
    scored = train(TrainRequest("scenes", "zero-shot", explicit=explicit), tmp_path / "z", data_root=data_root)
    before = manifest.open(run, kind="run").facts["metrics"]["test.cosine"]["R-sum"]
    assert scored.facts["metrics"]["test.cosine"]["R-sum"] == pytest.approx(before)


@pytest.mark.parametrize(
    ("pairs", "user", "name"),
    [
        (FEW_PAIRS - 1, {}, "adapter"),
        (FEW_PAIRS, {}, "last-blocks"),
        (MANY_PAIRS - 1, {"loss.beta": 0.5}, "last-blocks"),
        (MANY_PAIRS, {}, "everything"),
        (10, {"optim.layer_decay": 1.0}, "pretrained"),
        (10, {"optim.lora": 4}, "lora"),
        (10**9, {"model.image.lock": True}, "pretrained"),
        (10**9, {"model.image.lock": True, "model.text.lock": True}, "adapter"),
        (10, {"model.image.unlock": 1}, "pretrained"),
    ],
)
def test_the_number_of_pairs_chooses_the_recipe_unless_the_user_does(
    pairs: int, user: dict[str, Any], name: str
) -> None:
    choice = pretrained_recipe(user, BOTH, pairs)
    assert (choice.name, choice.pairs) == (name, pairs)
    assert name in choice.reason and all(key in choice.reason for key in user if key != "loss.beta")


@pytest.mark.parametrize("name", ["adapter", "last-blocks", "everything", "pretrained", "lora"])
def test_a_recipe_gives_way_to_flags_and_passes_the_checks(
    name: str, spec: str, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ccaco_cli.core import recipes

    monkeypatch.setattr(recipes, "pretrained_recipe", lambda *_: recipes.RecipeChoice(name, 1, ""))
    data = shards.open(data_root / "scenes", "quick")
    request = TrainRequest("scenes", explicit={"model.spec": spec, "optim.lr": 0.5})
    config = request.resolve(data)
    check(config)
    assert config.optim.lr == 0.5 and config.optim.epochs == RECIPES[name]["optim.epochs"]
    assert config.model.tower("text").spec == spec
    assert config.model.tower("audio") == type(config.model.tower("audio"))()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model.image.lock": True, "model.image.unlock": 1}, "--lock-image --unlock-image 1"),
        ({"optim.lora": 2, "model.text.unlock": 1}, "--lora 2 --unlock-text 1"),
        ({"optim.lora": 2, "parallel.kind": "fsdp"}, "--parallel ddp"),
        ({"optim.ema": 0.9, "parallel.kind": "fsdp"}, "--parallel ddp"),
        ({"model.image.unlock": 99}, "this tower has 2 blocks"),
    ],
)
def test_ways_that_exclude_each_other_leave_no_folder(
    changes: dict[str, Any], words: str, spec: str, data_root: Path, tmp_path: Path
) -> None:
    request = TrainRequest("scenes", explicit=SHORT | {"model.spec": spec} | changes)
    with pytest.raises(ConfigError) as error:
        train(request, tmp_path / "run", data_root=data_root)
    assert words in str(error.value)
    assert not (tmp_path / "run").exists()


def test_the_saved_model_is_the_average_that_was_validated(spec: str, data_root: Path, tmp_path: Path) -> None:
    changes = {"optim.steps": 0, "optim.epochs": 1, "optim.lr": 1e-2, "optim.layer_decay": 1.0, "optim.warmup": 0.0}
    weights = {}
    for ema in (0.0, 0.9):
        request = TrainRequest("scenes", explicit=SHORT | changes | {"model.spec": spec, "optim.ema": ema})
        folder = tmp_path / str(ema)
        run = train(request, folder, data_root=data_root)
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        figures = [line["validation"]["R-sum"] for line in lines if "validation" in line]
        assert run.facts["metrics"]["val.cosine"]["R-sum"] == pytest.approx(max(figures), abs=1e-6)
        weights[ema] = load_file(next((folder / "checkpoints").glob("[0-9]*")) / "model.safetensors")
    assert all(torch.equal(weights[0.0][name], weights[0.9][name]) for name in weights[0.0]), "training is the same"


def finetune(changes: dict[str, Any], data_root: Path, folder: Path) -> None:
    train(TrainRequest("scenes", explicit=SHORT | changes), folder, data_root=data_root)


@pytest.mark.parametrize(
    "changes",
    [
        {"model.image.unlock": 1, "model.text.lock": True, "optim.layer_decay": 0.5, "optim.ema": 0.5},
        {"model.image.lock": True, "optim.layer_decay": 0.5},
    ],
    ids=["last-blocks", "locked-image"],
)
def test_frozen_parts_under_two_processes(changes: dict[str, Any], spec: str, data_root: Path, tmp_path: Path) -> None:
    changes = changes | {"model.spec": spec, "optim.lr": 1e-3, "loss.beta": 0.5}
    assert launch(2, finetune, changes, data_root, tmp_path / "pair") == [0, 0]
    finetune(changes, data_root, tmp_path / "one")
    pair, single = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("pair", "one")
    )
    assert [entry["step"] for entry in pair] == [entry["step"] for entry in single]
    for entry, same in zip(pair, single, strict=True):
        assert entry.get("total", 0.0) == pytest.approx(same.get("total", 0.0), rel=2e-3)
        assert entry.get("grad_norm", 0.0) == pytest.approx(same.get("grad_norm", 0.0), rel=5e-3)
    weights, same_weights = (load_file(tmp_path / name / BEST) for name in ("pair", "one"))
    assert weights.keys() == same_weights.keys()
    assert all(torch.allclose(weights[name], same_weights[name], rtol=1e-2, atol=1e-3) for name in weights)
    load_run(tmp_path / "pair")
