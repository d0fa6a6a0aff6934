"""Runs that start from a pretrained model or from a finished run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ccaco_cli.core import manifest
from ccaco_cli.core.data import shards
from ccaco_cli.core.errors import CcacoError, ConfigError
from ccaco_cli.core.experiments.pretrained import open_model
from ccaco_cli.core.experiments.request import TrainRequest
from ccaco_cli.core.experiments.run_folder import TrainOptions, load_run
from ccaco_cli.core.experiments.start import build_start
from ccaco_cli.core.manifest import Manifest
from ccaco_cli.core.model.aligner import Aligner
from ccaco_cli.core.model.towers.tower import Tower
from ccaco_cli.core.workflows.train import train, train_notes
from tests.pretrained_models import SMALL_RUN, open_clip_folder

BEST = "checkpoints/best/model.safetensors"
SETTINGS = {
    **SMALL_RUN,
    "optim.epochs": 2,
}
EVERYTHING = {"optim.layer_decay": 1.0}
"""Any setting of the way to fine-tune keeps the recipe by size away."""
DESTRUCTIVE = {"optim.lr": 3.0, "optim.warmup": 0.0, "optim.grad_clip": 0.0}


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"open_clip:{open_clip_folder(tmp_path_factory.mktemp('model') / 'vit')}"


def start_run(model: object, folder: Path, data_root: Path, **changes: Any) -> Manifest:
    explicit = SETTINGS | {"model.spec": str(model)} | {key.replace("__", "."): v for key, v in changes.items()}
    return train(TrainRequest("scenes", explicit=explicit), folder, data_root=data_root)


def log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def encoded(aligner: Aligner, towers: dict[str, Tower], data_root: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings of the first images and captions of ``scenes``."""
    from io import BytesIO

    from PIL import Image

    split = shards.open(data_root / "scenes", "quick").split("test")
    images = [Image.open(BytesIO(media)) for media in split.media("image", range(4))]
    pixels = torch.stack([towers["image"].preprocess(image) for image in images])
    aligner.eval()
    with torch.no_grad():
        image, _ = aligner.encode("image", {"pixels": pixels})
        text, _ = aligner.encode("text", towers["text"].preprocess(split.captions[:4]))
    return image.z, text.z


def same_embeddings(first: Any, second: Any, data_root: Path, tolerance: float = 1e-6) -> bool:
    """Whether two (aligner, towers) embed alike."""
    pairs = zip(encoded(*first, data_root), encoded(*second, data_root), strict=True)
    return all(float((a - b).abs().max()) < tolerance for a, b in pairs)


def test_the_untouched_model_is_validated_first_and_is_a_candidate_for_the_best(
    spec: str, data_root: Path, tmp_path: Path
) -> None:
    run = start_run(spec, tmp_path / "run", data_root, **EVERYTHING, optim__lr=1e-6)
    first, *later = log(tmp_path / "run")
    assert (first["step"], first["epoch"]) == (0, -1)
    validated = [entry for entry in later if "validation" in entry]
    assert [entry["epoch"] for entry in validated] == [0, 1]
    figures = [entry["validation"]["R-sum"] for entry in (first, *validated)]
    fitted = run.facts["fitted"]
    assert fitted["best"] == max(figures)
    assert fitted["best_epoch"] == figures.index(max(figures)) - 1
    # the first validation is the score of the pretrained model by its cosine
    zero_shot = train(
        TrainRequest("scenes", "zero-shot", explicit=SETTINGS | {"model.spec": spec}),
        tmp_path / "zero-shot",
        data_root=data_root,
    )
    for name, value in first["validation"].items():
        assert zero_shot.facts["metrics"]["val.cosine"][name] == pytest.approx(value)


def test_a_destructive_learning_rate_leaves_the_start(spec: str, data_root: Path, tmp_path: Path) -> None:
    run = start_run(spec, tmp_path / "run", data_root, **EVERYTHING, **DESTRUCTIVE, loss__beta=0.5)
    figures = [entry["validation"]["R-sum"] for entry in log(tmp_path / "run") if "validation" in entry]
    assert run.facts["fitted"]["best_epoch"] == -1
    assert run.facts["fitted"]["best"] == figures[0] == max(figures)
    assert run.facts["weight"] == 0.0 and run.facts["headline"] == "cosine"
    assert not run.facts["weights_tried"]
    assert any("before training" in note for note in train_notes(run))
    second_run = start_run(tmp_path / "run", tmp_path / "further", data_root, **DESTRUCTIVE, loss__beta=0.5)
    assert second_run.facts["weight"] == 0.0 and not second_run.facts["weights_tried"], (
        "its cross branch is untrained, too"
    )
    aligner, towers, *_ = load_run(tmp_path / "run")
    assert same_embeddings((aligner, towers), open_model(spec)[:2], data_root)
    assert float(aligner.logit_scale()) == pytest.approx(float(open_model(spec).aligner.logit_scale()))


@pytest.mark.parametrize("stop_at", [0, 2])
def test_an_interrupted_run_resumes_to_the_same_weights(
    stop_at: int, spec: str, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ccaco_cli.core.training.checkpoint_saver import CheckpointOptions
    from ccaco_cli.core.training.loop import Trainer

    explicit = SETTINGS | {"model.spec": spec, "optim.layer_decay": 0.5, "optim.ema": 0.5, "optim.lr": 1e-3}
    request = TrainRequest("scenes", explicit=explicit)
    train(request, tmp_path / "whole", data_root=data_root)
    step = Trainer._update

    def interrupted(self: Trainer, weights: Any) -> bool:
        if self.state.cursor.step == stop_at:
            raise KeyboardInterrupt
        return step(self, weights)

    often = TrainOptions(saving=CheckpointOptions(minutes=1e-9))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "_update", interrupted)
        train(request, tmp_path / "parts", often, data_root=data_root)
    assert [entry["step"] for entry in log(tmp_path / "parts")] == list(range(stop_at + 1))
    resumed = TrainOptions(resume=True, saving=CheckpointOptions(minutes=1e-9))
    train(request, tmp_path / "parts", resumed, data_root=data_root)
    complete, parts = (load_file(tmp_path / name / BEST) for name in ("whole", "parts"))
    assert all(torch.equal(complete[name], parts[name]) for name in complete)
    keys = ("step", "epoch", "validation", "total")
    assert [[e.get(k) for k in keys] for e in log(tmp_path / "parts")] == [
        [e.get(k) for k in keys] for e in log(tmp_path / "whole")
    ]


def test_a_run_is_a_start_and_gives_its_vectors(run: Path, data_root: Path, tmp_path: Path) -> None:
    first = load_run(run)
    second = start_run(run, tmp_path / "second", data_root, **DESTRUCTIVE, loss__beta=0.5, model__width=16)
    assert second.facts["fitted"]["best_epoch"] == -1
    assert second.inputs["start"]["sha256"] == first[3].sha256
    assert second.facts["weights_tried"], "the cross branch of the first run is trained"
    assert same_embeddings(load_run(tmp_path / "second")[:2], first[:2], data_root)
    best, before = load_file(tmp_path / "second" / BEST), load_file(run / BEST)
    assert all(torch.equal(best[name], before[name]) for name in before)


@pytest.mark.parametrize("model", ["run", "spec"])
@pytest.mark.parametrize("first_locks", [False, True])
@pytest.mark.parametrize("second_locks", [False, True])
def test_a_start_may_lock_other_towers_than_the_run_before(
    model: str, first_locks: bool, second_locks: bool, request: pytest.FixtureRequest, data_root: Path, tmp_path: Path
) -> None:
    """The image tower of the second run is the one that the first run left, whatever either of them froze."""
    changes: dict[str, Any] = {"optim__steps": 2, "optim__lr": 1e-2}
    pretrained = model == "spec"
    first_model = {"model.spec": request.getfixturevalue("spec")} if pretrained else {"model.image.size": 32}
    first = tmp_path / "first"
    settings = SETTINGS | first_model | {"optim.steps": 2, "optim.lr": 1e-2, "model.image.lock": first_locks}
    train(TrainRequest("scenes", explicit=settings), first, data_root=data_root)
    second = start_run(first, tmp_path / "second", data_root, **changes, model__image__lock=second_locks)
    assert log(tmp_path / "second")[0]["epoch"] == -1
    trained, towers, config, _ = load_run(tmp_path / "second")
    assert config.model.image.lock == second_locks  # type: ignore[attr-defined]
    before, *_ = load_run(first)
    same = all(
        torch.equal(a, b)
        for a, b in zip(
            trained.sides["image"].tower.state_dict().values(),  # type: ignore[union-attr]
            before.sides["image"].tower.state_dict().values(),  # type: ignore[union-attr]
            strict=True,
        )
    )
    assert same == second_locks or second.facts["fitted"]["best_epoch"] == -1
    assert towers["image"].fingerprint == second.facts["towers"]["image"]
    built, built_towers, *_ = open_model(first)
    assert same_embeddings((built, built_towers), (before, built_towers), data_root)
    shutil.rmtree(first)  # a finished run holds all its weights
    assert same_embeddings(load_run(tmp_path / "second")[:2], (trained, towers), data_root)


def test_locked_towers_of_a_trained_run_have_their_own_token_cache(run: Path, data_root: Path, tmp_path: Path) -> None:
    locked = {"model__image__lock": True, "model__text__lock": True, "optim__steps": 1}
    manifest_of = start_run(run, tmp_path / "second", data_root, **locked)
    _, towers, _, first = load_run(run)
    untrained = {m: tower.fingerprint for m, tower in towers.items()}
    assert all(manifest_of.facts["towers"][m] != untrained[m] for m in ("image", "text"))
    # the first validation comes from the cache, and is that of the trained run
    assert log(tmp_path / "second")[0]["validation"]["R-sum"] == pytest.approx(first.facts["fitted"]["best"], abs=2.0)


def test_what_cannot_be_a_start_is_one_line(run: Path, data_root: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="change the architecture of this run"):
        start_run(run, tmp_path / "a", data_root, model__width=32)
    assert not (tmp_path / "a").exists()
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    start_run(moved, tmp_path / "b", data_root, optim__steps=1)
    (tmp_path / "b" / manifest.NAME).unlink()
    moved.rename(tmp_path / "elsewhere")
    with pytest.raises(CcacoError, match="no run here") as error:
        explicit = SETTINGS | {"model.spec": str(moved), "optim.steps": 1}
        train(TrainRequest("scenes", explicit=explicit), tmp_path / "b", TrainOptions(resume=True), data_root=data_root)
    assert str(moved) in str(error.value)


def test_a_cross_branch_of_another_kind_starts_anew(run: Path, data_root: Path) -> None:
    data = shards.open(data_root / "scenes", "quick")
    same = TrainRequest("scenes", explicit={"model.spec": str(run), "device": "cpu"})
    other = TrainRequest("scenes", explicit={"model.spec": str(run), "device": "cpu", "model.fusion.kind": "maxsim"})
    assert build_start(same.resolve(data), data.modalities).cross_trained
    start = build_start(other.resolve(data), data.modalities)
    assert not start.cross_trained
    state, trained = start.aligner.state_dict(), load_run(run)[0].state_dict()
    assert all(torch.equal(state[name], trained[name]) for name in state if name.startswith("sides."))


def test_an_adapter_on_locked_towers_starts_at_the_zero_shot_cosine(spec: str, data_root: Path, tmp_path: Path) -> None:
    """Few pairs choose this recipe; tokens and embeddings come from the cache."""
    explicit = {key: value for key, value in SETTINGS.items() if key != "optim.batch_size"} | {"model.spec": spec}
    request = TrainRequest("scenes", explicit=explicit | {"optim.batch_size": 8})
    notes: list[str] = []
    run = train(request, tmp_path / "run", data_root=data_root, on_note=notes.append)
    assert run.facts["recipe"]["name"] == "adapter" and notes == [run.facts["recipe"]["reason"]]
    assert all(
        run.config["model"][m]["lock"] and run.config["model"][m]["head"] == "adapter" for m in ("image", "text")
    )
    assert run.config["model"]["audio"]["head"] == "new"
    data = shards.open(data_root / "scenes", "quick")
    start = build_start(request.resolve(data), data.modalities)
    assert same_embeddings((start.aligner, start.towers), open_model(spec)[:2], data_root)
    aligner, towers, *_ = load_run(tmp_path / "run")
    trained = run.facts["fitted"]["best_epoch"] >= 0
    assert same_embeddings((aligner, towers), open_model(spec)[:2], data_root) != trained


def test_gradnorm_is_refused_without_a_shared_projection(spec: str, data_root: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a pretrained model has none"):
        start_run(spec, tmp_path / "run", data_root, loss__balance="gradnorm")
    assert not (tmp_path / "run").exists()
