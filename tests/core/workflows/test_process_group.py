"""``train``, ``embed`` and ``ablate`` in two processes leave what one leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ccaco_cli.core import manifest
from ccaco_cli.core.experiments.grid import AblationRequest
from ccaco_cli.core.experiments.request import TrainRequest
from ccaco_cli.core.experiments.run_folder import TrainOptions
from ccaco_cli.core.workflows.ablate import ablate
from ccaco_cli.core.workflows.embed import EmbedRequest, embed
from ccaco_cli.core.workflows.train import train
from tests.manifests import edited
from tests.processes import launch

BEST = "checkpoints/best/model.safetensors"


def log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def train_one(small: dict[str, Any], data_root: Path, folder: Path) -> None:
    train(TrainRequest("scenes", explicit=small), folder, data_root=data_root)


def test_a_run_of_two_processes_is_the_run_of_one(
    small: dict[str, Any], run: Path, data_root: Path, tmp_path: Path
) -> None:
    assert launch(2, train_one, small, data_root, tmp_path / "pair") == [0, 0]
    pair, single = (manifest.open(folder, kind="run", verify="full") for folder in (tmp_path / "pair", run))
    assert len(log(tmp_path / "pair")) == len(log(run))
    for entry, same in zip(log(tmp_path / "pair"), log(run), strict=True):
        for key in ("total", "contrastive", "cross", "grad_norm", "logit_scale"):
            assert (key in entry) == (key in same)
            assert entry.get(key, 0.0) == pytest.approx(same.get(key, 0.0), rel=2e-3), (same["step"], key)
    weights, same_weights = load_file(tmp_path / "pair" / BEST), load_file(run / BEST)
    assert weights.keys() == same_weights.keys()
    far = {
        k for k, v in weights.items() if not torch.allclose(v.float(), same_weights[k].float(), rtol=1e-2, atol=2e-3)
    }
    assert not far
    assert pair.facts["metrics"]["val.cosine"]["R-sum"] == pytest.approx(
        single.facts["metrics"]["val.cosine"]["R-sum"], abs=20
    )
    assert sorted(p.name for p in tmp_path.iterdir() if not p.name.startswith(".")) == ["pair"]


def embed_one(run: Path, data_root: Path, folder: Path) -> None:
    files = {"out": folder / "test", "index": folder / "scenes.idx"}
    embed(EmbedRequest(run, "scenes", **files, device="cpu", shard=10, precision="fp32"), data_root=data_root)


def test_shards_and_index_of_two_processes_are_those_of_one(
    run: Path, data_root: Path, embedded: Any, index: Path, tmp_path: Path
) -> None:
    assert launch(2, embed_one, run, data_root, tmp_path) == [0, 0]
    assert manifest.open(tmp_path / "test", kind="embeddings", verify="full").files == embedded.files
    files, same = (manifest.open(path, kind="index", verify="full").files for path in (tmp_path / "scenes.idx", index))
    assert files == same


def ablate_one(small: dict[str, Any], data_root: Path, folder: Path) -> None:
    ablate(
        AblationRequest(
            TrainRequest("scenes", explicit=small | {"optim.steps": 1}), ["ccaco", "clip", "-collaboration"], 1
        ),
        folder,
        data_root=data_root,
    )


def test_cells_are_divided_and_the_whole_is_that_of_one(small: dict[str, Any], data_root: Path, tmp_path: Path) -> None:
    for name, world in (("pair", 2), ("one", 1)):
        assert launch(world, ablate_one, small, data_root, tmp_path / name) == [0] * world
    pair, single = (manifest.open(tmp_path / name, kind="ablation") for name in ("pair", "one"))
    assert [c["name"] for c in pair.facts["cells"]] == [c["name"] for c in single.facts["cells"]]
    assert not any("error" in cell for cell in pair.facts["cells"])
    for cell in pair.facts["cells"]:
        runs = [manifest.open(tmp_path / name / cell["name"], kind="run") for name in ("pair", "one")]
        assert runs[0].facts["metrics"] == runs[1].facts["metrics"]


def started(small: dict[str, Any], data_root: Path, folder: Path, changes: dict[str, Any], accept: bool) -> None:
    from ccaco_cli.core.errors import ConfigError

    try:
        train(TrainRequest("scenes", explicit=small | changes), folder, TrainOptions(True, accept), data_root=data_root)
    except ConfigError as error:
        (folder.parent / "said").write_text(str(error))
        raise SystemExit(2) from None


def test_what_changed_since_the_first_start_is_named_and_refused_or_accepted(
    small: dict[str, Any], data_root: Path, tmp_path: Path
) -> None:
    import shutil

    folder = tmp_path / "r"
    train(TrainRequest("scenes", explicit=small), folder, data_root=data_root)
    (folder / manifest.NAME).unlink()  # as if it had been killed before its end
    assert launch(2, started, small, data_root, folder, {"loss.beta": 0.25}, False) == [2, 2]
    report = (tmp_path / "said").read_text()
    assert "loss.beta was 0.5, is 0.25" in report
    assert "processes were 1, are 2" in report and "float noise" in report
    assert "--accept-changes" in report
    shutil.copytree(data_root / "scenes", tmp_path / "data/scenes")
    with edited(tmp_path / "data/scenes") as body:
        body["facts"]["licence"] = "another"
    assert launch(1, started, small, tmp_path / "data", folder, {}, False) == [2]
    assert "the data set was" in (tmp_path / "said").read_text()
    assert launch(1, started, small, data_root, folder, {"loss.beta": 0.25, "workers": 1}, True) == [0]
    assert manifest.open(folder, kind="run").facts["resumed_with"] == ["loss.beta was 0.5, is 0.25"]
