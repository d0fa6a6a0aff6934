from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ccaco_cli.core import manifest
from ccaco_cli.core.config import RunConfig
from ccaco_cli.core.config_io import override
from ccaco_cli.core.data import shards
from ccaco_cli.core.data.shards import PairData
from ccaco_cli.core.errors import ConfigError, ManifestError
from ccaco_cli.core.evaluation.protocols import Evaluation
from ccaco_cli.core.experiments.request import TrainRequest
from ccaco_cli.core.experiments.run_folder import load_run
from ccaco_cli.core.scoring.score import score
from ccaco_cli.core.scoring.split_scorer import SplitEncodings
from ccaco_cli.core.training import loop
from ccaco_cli.core.types import Embedding, EncodedSamples
from ccaco_cli.core.workflows.train import train

VECTORS = override(RunConfig(), {"loss.beta": 0.0})


@pytest.fixture(scope="module")
def data(data_root: Path) -> PairData:
    return shards.open(data_root / "scenes")


def vectors(z: Any) -> EncodedSamples:
    z = torch.as_tensor(z, dtype=torch.float32)
    return EncodedSamples(Embedding(z, z))


def encodings(data: PairData, name: str, *, knows_words: bool = True) -> SplitEncodings:
    """A model that knows every caption of a row (one dimension a caption text), or only whose caption it is."""
    split = data.split(name)
    texts = sorted(set(split.captions))
    column = np.array([texts.index(t) for t in split.captions]) if knows_words else split.caption_row
    width = len(texts) if knows_words else len(split)
    captions = np.eye(width)[column]
    pictures = np.zeros((len(split), width))
    np.add.at(pictures, (split.caption_row, column), 1)
    return SplitEncodings(vectors(pictures), vectors(captions), np.arange(len(split)), split.caption_row)


def results(folder: Path) -> dict[str, Any]:
    return {p.stem: json.loads(p.read_text()) for p in sorted((folder / "results").iterdir())}


def test_a_model_that_knows_all_is_right_in_everything(data: PairData, tmp_path: Path) -> None:
    facts = score(data, lambda name: encodings(data, name), None, VECTORS, tmp_path)
    cosine = results(tmp_path)["test.cosine"]
    assert facts["metrics"]["test.cosine"]["binding_accuracy"] == 1.0
    assert facts["metrics"]["test.cosine"]["matching_accuracy"] > 0.9  # two pictures may share a caption
    assert facts["metrics"]["test.cosine"] == cosine["metrics"]
    split = data.split("test")
    pairs = [len(split.meta(row)["binding"]) for row in range(len(split))]
    assert sum(pairs) > 10
    assert len(cosine["per_item"]["binding"]) == sum(pairs)
    assert cosine["per_item"]["binding_row"] == [row for row, n in enumerate(pairs) for _ in range(n)]
    assert len(cosine["per_item"]["matching"]) == len(split.captions)
    metas = [split.meta(row) for row in range(len(split))]
    assert cosine["strata"] == {
        "things": [meta["things"] for meta in metas],
        "relation": [meta["relation"] for meta in metas],
        "twin": [(meta["twin"] or {"kind": "none"})["kind"] for meta in metas],
    }
    rows_by_kind: dict[str, list[int]] = {}
    for row in cosine["per_item"]["binding_row"]:
        rows_by_kind.setdefault(metas[row]["twin"]["kind"], []).append(row)
    assert len(rows_by_kind) > 1
    for kind, kind_rows in rows_by_kind.items():
        assert cosine["per_item"][f"binding_{kind}_row"] == kind_rows
        assert cosine["metrics"][f"binding_{kind}_accuracy"] == 1.0
    assert (facts["headline"], facts["pool_rules"]["test.cosine"], cosine["pool_rule"], cosine["scoring"]) == (
        "cosine",
        "full",
        "full",
        "cosine",
    )


@pytest.mark.parametrize("value", [1.0, float("nan")])
def test_constant_and_nan_embeddings_choose_nothing_right(data: PairData, tmp_path: Path, value: float) -> None:
    def encode(name: str) -> SplitEncodings:
        split = data.split(name)
        vectors_a, vectors_b = (vectors(np.full((n, 3), value)) for n in (len(split), len(split.captions)))
        return SplitEncodings(vectors_a, vectors_b, np.arange(len(split)), split.caption_row)

    cosine = score(data, encode, None, VECTORS, tmp_path)["metrics"]["test.cosine"]
    assert cosine["binding_accuracy"] == cosine["matching_accuracy"] == 0.0
    chance = 1 / len(data.split("test")) if value == 1.0 else 0.0
    assert cosine["text_to_image_R@1"] == pytest.approx(chance)


def test_a_blind_model_binds_wrongly_half_the_time(data: PairData, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def encode(name: str) -> SplitEncodings:
        split = data.split(name)
        vectors_a, vectors_b = (vectors(rng.normal(size=(n, 9))) for n in (len(split), len(split.captions)))
        return SplitEncodings(vectors_a, vectors_b, np.arange(len(split)), split.caption_row)

    cosine = score(data, encode, None, VECTORS, tmp_path)["metrics"]["test.cosine"]
    assert 0.2 < cosine["binding_accuracy"] < 0.8
    assert 0.3 < cosine["matching_accuracy"] < 0.7


def test_every_arm_is_scored_on_the_small_pool_too(data: PairData, tmp_path: Path) -> None:
    config = override(VECTORS, {"eval.small": 10})
    facts = score(data, lambda name: encodings(data, name, knows_words=False), None, config, tmp_path)
    by_stage = results(tmp_path)
    assert set(by_stage) == {"val.cosine", "test.cosine", "test.small"}
    small = Evaluation.from_dict(by_stage["test.small"])
    captions = int((data.split("test").caption_row < 10).sum())
    assert small.pools == ((10, captions),)
    assert (small.protocol, by_stage["test.small"]["pool_rule"], facts["pool_rules"]["test.small"]) == ("first-10",) * 3
    assert by_stage["test.small"]["strata"] == by_stage["test.cosine"]["strata"], "choices are made on all rows"
    assert facts["headline"] == "cosine"
    assert small.metrics["text_to_image_R@1"] == 1.0


SMALLER = {"eval.small": 10, "eval.exhaustive": 5}


@pytest.mark.parametrize(("settings", "headline"), [({}, "cross"), (SMALLER, "small")])
def test_without_a_contrastive_half_the_pool_is_bounded(
    small: dict[str, Any], data_root: Path, tmp_path: Path, settings: dict[str, Any], headline: str
) -> None:
    manifest = train(
        TrainRequest("scenes", "vilbert", explicit=small | {"optim.steps": 2} | settings),
        tmp_path / "r",
        data_root=data_root,
    )
    assert set(manifest.facts["metrics"]) == {f"val.{headline}", f"test.{headline}"}
    assert manifest.facts["headline"] == headline
    test = results(tmp_path / "r")[f"test.{headline}"]
    assert test["scoring"] == "cross"
    assert {"binding_accuracy", "matching_accuracy", "matching_sign_accuracy"} <= test["metrics"].keys()
    assert "warnings" in manifest.facts


def test_two_stage_accuracies_are_of_the_two_stage_score(run: Path) -> None:
    by_stage, facts = results(run), manifest.open(run, kind="run").facts
    assert facts["metrics"]["test.two-stage"]["binding_accuracy"] == np.mean(
        by_stage["test.two-stage"]["per_item"]["binding"]
    )
    if facts["weight"] == 0:
        assert by_stage["test.two-stage"]["per_item"] == by_stage["test.cosine"]["per_item"]


def test_handmade_ends_as_an_ordinary_run_without_a_model(
    small: dict[str, Any], data_root: Path, tmp_path: Path
) -> None:
    request = TrainRequest("scenes", "handmade", explicit=small)
    first, second = (train(request, tmp_path / name, data_root=data_root) for name in "ab")
    assert first.facts["metrics"] == second.facts["metrics"]
    assert set(first.facts["metrics"]) == {"val.cosine", "test.cosine"}
    assert (first.facts["headline"], first.facts["fitted"]["steps"], first.facts["warnings"]) == ("cosine", 0, [])
    assert Evaluation.from_dict(results(tmp_path / "a")["test.cosine"]).metrics == first.facts["metrics"]["test.cosine"]
    assert "validation" in json.loads((tmp_path / "a/metrics.jsonl").read_text())
    with pytest.raises(ManifestError, match="no model"):
        load_run(tmp_path / "a", "cpu")


def test_an_unknown_method_leaves_nothing_behind(small: dict[str, Any], data_root: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'magic' does not fit: method; expected gradient \| cca"):
        train(TrainRequest("scenes", explicit=small | {"method": "magic"}), tmp_path / "r", data_root=data_root)
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    "name",
    ["early", "unified", "-residual", "-collaboration", "listwise", "mse", "pool-attention"],
)
def test_arms_of_every_kind_train_and_are_scored(
    small: dict[str, Any], data_root: Path, tmp_path: Path, name: str
) -> None:
    batch = {"optim.batch_size": 9}  # eight negatives for each pair of the arm listwise
    settings = small | batch | {"optim.steps": 1, "eval.exhaustive": 4, "eval.small": 6}
    manifest = train(TrainRequest("scenes", name, explicit=settings), tmp_path / "r", data_root=data_root)
    headline = manifest.facts["metrics"][f"test.{manifest.facts['headline']}"]
    assert np.isfinite(list(headline.values())).all()
    assert manifest.facts["pool_rules"]["test.small"] == "first-6"
    assert manifest.facts["fitted"]["steps"] == 1


@pytest.mark.parametrize("bad_value", ["nan", "constant"])
def test_a_broken_arm_scores_chance_and_is_flagged(
    small: dict[str, Any], data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad_value: str
) -> None:
    real = loop.fit

    def broken(aligner: Any, *arguments: Any, **more: Any) -> Any:
        project = aligner.sides["image"].heads[0].project
        project.requires_grad_(False)
        torch.nn.init.constant_(project.weight, float("nan") if bad_value == "nan" else 0.0)
        return real(aligner, *arguments, **more)

    monkeypatch.setattr(loop, "fit", broken)
    manifest = train(TrainRequest("scenes", explicit=small), tmp_path / "r", data_root=data_root)
    metrics = manifest.facts["metrics"][f"test.{manifest.facts['headline']}"]
    pictures = len(shards.open(data_root / "scenes").split("test"))
    assert metrics["text_to_image_R@1"] == pytest.approx(1 / pictures if bad_value == "constant" else 0.0)
    kinds = {w["kind"] for w in manifest.facts["warnings"]}
    assert {"constant-embeddings"} <= kinds if bad_value == "constant" else {"not-finite", "nan-embeddings"} <= kinds
    assert metrics["matching_accuracy"] == 0.0
