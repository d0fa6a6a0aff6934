from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ccaco_cli.core import config_io, manifest
from ccaco_cli.core.config import RunConfig
from ccaco_cli.core.data import shards
from ccaco_cli.core.encoding.columns import columns
from ccaco_cli.core.encoding.encode import encode
from ccaco_cli.core.errors import CcacoError, ConfigError, DataError, ManifestError
from ccaco_cli.core.evaluation.metrics import similarity_ranks
from ccaco_cli.core.evaluation.protocols import Evaluation
from ccaco_cli.core.experiments.request import TrainRequest
from ccaco_cli.core.experiments.run_folder import TrainOptions, load_run
from ccaco_cli.core.experiments.split_encoding import SplitEncoder
from ccaco_cli.core.model import weights
from ccaco_cli.core.training import checkpoint
from ccaco_cli.core.workflows.train import train
from tests.manifests import edited

BEST = "checkpoints/best/model.safetensors"


def losses(folder: Path) -> list[dict[str, Any]]:
    return [
        e for line in (folder / "metrics.jsonl").read_text().splitlines() if "validation" not in (e := json.loads(line))
    ]


def test_a_run_is_complete(run: Path, small: dict[str, Any], data_root: Path) -> None:
    run_manifest = manifest.open(run, kind="run", verify="full")
    assert run_manifest.facts["name"] == "first"
    assert run_manifest.facts["modalities"] == ["image", "text"]
    assert set(run_manifest.facts["metrics"]) == {"val.cosine", "val.two-stage", "test.cosine", "test.two-stage"}
    assert [entry["name"] for entry in run_manifest.files] == [BEST]
    assert run_manifest.inputs["dataset"]["sha256"] == shards.open(data_root / "scenes").manifest.sha256
    assert config_io.from_dict(run_manifest.config) == config_io.override(
        RunConfig(), config_io.load(run / "config.toml")
    )
    assert [e["step"] for e in losses(run)] == [1, 2, 3, 4, 5, 6]
    assert {"contrastive", "cross", "total"} <= losses(run)[-1].keys()


def test_figures_are_those_of_the_best_checkpoint(run: Path, data_root: Path) -> None:
    aligner, towers, config, facts = load_run(run, "cpu")
    data = shards.open(data_root / "scenes")
    group = data.split("test").group
    parts = columns(data, "test", aligner, towers, config.model)
    first, second = (encode(aligner, m, c) for m, c in parts.items())
    ids = [group[c.row] for c in parts.values()]
    assert facts.facts["metrics"]["test.cosine"]["image_to_text_R@5"] == pytest.approx(
        similarity_ranks(first.z, second.z, *ids).hits(5).mean()
    )
    stored = Evaluation.from_dict(json.loads((run / "results/test.cosine.json").read_text()))
    assert np.array_equal(stored.b_to_a[0].rank, similarity_ranks(second.z, first.z, *reversed(ids)).rank)
    assert stored.metrics == facts.facts["metrics"]["test.cosine"]


def test_the_same_command_gives_the_same_bits_after_a_kill_too(
    run: Path, small: dict[str, Any], data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request, folder, real = TrainRequest("scenes", explicit=small), tmp_path / "again", checkpoint.save

    def killed(*arguments: Any, **more: Any) -> None:
        real(*arguments, **more)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            train(request, folder, data_root=data_root)
    with pytest.raises(DataError, match=r"interrupted run.*--resume latest"):
        train(request, folder, data_root=data_root)
    with pytest.raises(ConfigError, match=r"this was changed: optim.lr was 0.002, is 0.5.*--accept-changes"):
        train(
            TrainRequest("scenes", explicit=small | {"optim.lr": 0.5}),
            folder,
            TrainOptions(resume=True),
            data_root=data_root,
        )
    run_manifest = train(request, folder, TrainOptions(resume=True), data_root=data_root)
    assert (folder / BEST).read_bytes() == (run / BEST).read_bytes()
    assert losses(folder) == losses(run)
    assert run_manifest.facts["metrics"] == manifest.open(run, kind="run").facts["metrics"]
    for file in sorted((run / "results").iterdir()):
        assert (folder / "results" / file.name).read_bytes() == file.read_bytes()
    with pytest.raises(DataError, match="this run is finished"):
        train(request, folder, TrainOptions(resume=True), data_root=data_root)


@pytest.mark.parametrize(
    ("arm", "stage", "part", "weight"),
    [("clip", "cosine", "contrastive", 1.0), ("-contrastive", "cross", "cross", 0.5)],
)
def test_a_model_of_one_half(
    small: dict[str, Any], data_root: Path, tmp_path: Path, arm: str, stage: str, part: str, weight: float
) -> None:
    run_manifest = train(
        TrainRequest("scenes", arm, explicit=small | {"optim.steps": 2, "loss.alpha": 1.0, "loss.separation": 0.0}),
        tmp_path / "r",
        data_root=data_root,
    )
    assert {name.partition(".")[2] for name in run_manifest.facts["metrics"]} == {stage}
    assert run_manifest.facts["headline"] == stage
    assert run_manifest.facts["weight"] == 0
    for entry in losses(tmp_path / "r"):
        assert {"contrastive", "cross"} & entry.keys() == {part}
        assert entry["total"] == pytest.approx(weight * entry[part], abs=1e-5)
    assert {p.name for p in (tmp_path / "r/results").iterdir()} == {
        f"{name}.json" for name in run_manifest.facts["metrics"]
    }


def test_a_locked_tower_is_rebuilt_as_it_was_or_refused(small: dict[str, Any], data_root: Path, tmp_path: Path) -> None:
    settings = small | {"optim.steps": 1, "model.image.lock": True, "loss.beta": 0.0}
    train(TrainRequest("scenes", explicit=settings), tmp_path / "r", data_root=data_root)
    assert not any(name.startswith("sides.image.tower") for name in load_file(tmp_path / "r" / BEST))
    torch.manual_seed(4321)
    aligner, _, _, _ = load_run(tmp_path / "r", "cpu")
    assert not any(p.requires_grad for p in aligner.sides["image"].tower.parameters())
    with edited(tmp_path / "r") as body:
        body["facts"]["towers"]["image"] = "0" * 64
    with pytest.raises(ManifestError, match="not those of this run"):
        load_run(tmp_path / "r", "cpu")


def test_an_altered_checkpoint_is_refused(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "r")
    data = bytearray((tmp_path / "r" / BEST).read_bytes())
    data[-1] ^= 1
    (tmp_path / "r" / BEST).write_bytes(data)
    with pytest.raises(ManifestError, match=r"altered.*model\.safetensors"):
        load_run(tmp_path / "r", "cpu")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"eval.select": "R_sum"}, "R-sum"),
        ({"eval.protocol": "coco"}, "coco-5k"),
        ({"eval.protocol": "coco-5k"}, "5000"),
        ({"loss.cross": "nce"}, "infonce"),
        ({"device": "cuda:77"}, "device"),
        ({"model.image.spec": "tinny"}, "tinny"),
        ({"model.fusion.kind": "sum"}, "attended"),
        ({"optim.batch_size": 0}, "batch_size"),
    ],
)
def test_what_cannot_work_leaves_nothing_behind(
    small: dict[str, Any], data_root: Path, tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(CcacoError, match=words):
        train(TrainRequest("scenes", explicit=small | settings), tmp_path / "r", data_root=data_root)
    assert not (tmp_path / "r").exists()


def test_the_best_epoch_is_scored_and_not_the_last(
    small: dict[str, Any], data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = iter([2.0, 1.0])
    monkeypatch.setattr(SplitEncoder, "validate", lambda *arguments, **more: {"R-sum": next(figures)})
    train(TrainRequest("scenes", explicit=small | {"optim.lr": 0.02}), tmp_path / "r", data_root=data_root)
    aligner, towers, config, facts = load_run(tmp_path / "r", "cpu")
    assert facts.facts["fitted"]["best_epoch"] == 0
    data = shards.open(data_root / "scenes")
    group = data.split("test").group
    parts = columns(data, "test", aligner, towers, config.model)

    def ranks() -> Any:
        first, second = (encode(aligner, m, c) for m, c in parts.items())
        return similarity_ranks(second.z, first.z, *(group[c.row] for c in reversed(parts.values()))).rank

    stored = Evaluation.from_dict(json.loads((tmp_path / "r/results/test.cosine.json").read_text())).b_to_a[0].rank
    assert np.array_equal(stored, ranks())
    last = checkpoint.latest(tmp_path / "r/checkpoints")
    assert last
    weights.load_weights(last / weights.WEIGHTS, aligner)
    assert not np.array_equal(stored, ranks()), "the last epoch would have told something else"
