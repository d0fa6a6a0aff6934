"""A modality that is declared in one entry goes from records to embeddings."""

from __future__ import annotations

import csv
import io
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field, fields
from importlib import import_module
from pathlib import Path
from typing import get_type_hints

import pytest
import torch
from PIL import Image

from ccaco_cli.core import manifest
from ccaco_cli.core.config import LossConfig, ModelConfig, TowerConfig
from ccaco_cli.core.data import shards
from ccaco_cli.core.data.loader import MediaColumn, PairDataset, PairPlan, load
from ccaco_cli.core.encoding.columns import columns
from ccaco_cli.core.encoding.encode import encode
from ccaco_cli.core.modalities import MODALITIES
from ccaco_cli.core.model import aligner as aligners
from ccaco_cli.core.retrieval.index import thumbnail
from ccaco_cli.core.types import PairRecord
from tests.signal_modality import CHANNELS, SIGNAL, STEPS, signal_bytes

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class ModelWithSignal(ModelConfig):
    """As ``ModelConfig`` is made when the record is in the table before the import."""

    signal: TowerConfig = field(default_factory=lambda: TowerConfig(spec="toy"))


@pytest.fixture
def signal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODALITIES, "signal", SIGNAL)


def pair(number: int, split: str, media: bytes) -> PairRecord:
    return PairRecord(f"id{number}", f"id{number}", split, {"signal": media}, [f"caption {number}"])


def test_a_modality_is_one_entry(signal: None, tmp_path: Path) -> None:
    records = [pair(i, ("train", "train", "val")[i % 3], signal_bytes(i) if i else b"broken") for i in range(12)]
    dataset_manifest = shards.write(
        records,
        tmp_path / "d",
        shards.DatasetInfo("d", ("signal", "text")),
        shards.WriteOptions(workers=0, max_rejects=0.2),
    )
    assert dataset_manifest.facts["rejects"] == {"not a signal": 1}
    assert dataset_manifest.facts["inspection"]["train"]["steps"] == {"min": STEPS, "mean": STEPS, "max": STEPS}

    data, config = shards.open(tmp_path / "d"), ModelWithSignal(width=16)
    aligner, towers = aligners.build(config, LossConfig(), data.modalities)
    by_modality = columns(data, "train", aligner, towers, config)
    assert type(by_modality["signal"]) is MediaColumn
    split = data.split("train")
    dataset = PairDataset(*by_modality.values(), split.group, split.domain)
    plan = PairPlan(*by_modality.values(), split.family, batch_size=4, seed=0)
    batch = next(iter(load(dataset, plan.epoch(0), 0)))
    z, features = aligner.encode("signal", batch.a)
    assert z.z.shape == (4, 16) and features.tokens.shape == (4, STEPS, 8)
    local = [aligner.local_tokens(m, aligner.encode(m, x)[1]) for m, x in (("signal", batch.a), ("text", batch.b))]
    match = aligner.cross(*local).match_logit
    match.sum().backward()
    assert match.shape == (4, 4) and aligner.sides["signal"].tower.linear.weight.grad is not None

    samples = encode(aligner, "signal", by_modality["signal"], local_tokens=True)
    assert samples.embedding.z.shape == (7, 16) and samples.tokens is not None
    locked = ModelWithSignal(width=16, signal=TowerConfig(spec="toy", lock=True))
    cached = columns(data, "train", aligner, towers, locked)["signal"]
    again = encode(aligner, "signal", cached)
    assert torch.allclose(samples.embedding.z, again.embedding.z, atol=5e-3)
    assert Image.open(io.BytesIO(thumbnail("signal", split.media("signal", [0])[0]))).size == (CHANNELS, STEPS)


def test_a_record_is_all_that_a_run_needs(signal: None, tmp_path: Path) -> None:
    """The commands take a data set of the modality; its options and settings exist."""
    records = [pair(i, ("train", "train", "val", "test")[i % 4], signal_bytes(i)) for i in range(32)]
    info = shards.DatasetInfo("d", ("signal", "text"), facts={"protocol": "signals"})
    shards.write(records, tmp_path / "data/d", info, shards.WriteOptions(workers=0))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}

    def ccaco(*words: str) -> str:
        command = [sys.executable, "-m", "tests.signal_modality", *words]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    options = ["--signal-tower", "toy", "--lock-signal", "--set", "model.signal.cache_tokens=9", "--epochs", "1"]
    ccaco("train", "--dataset", "d", "--name", "toy", *options, "--batch-size", "4", "--device", "cpu")
    trained = manifest.open(tmp_path / "runs/toy", kind="run")
    signal_config = trained.config["model"]["signal"]
    assert (signal_config["spec"], signal_config["lock"], signal_config["cache_tokens"]) == ("toy", True, 9)
    (row,) = csv.DictReader(io.StringIO(ccaco("report", "runs/toy", "--format", "csv", "--wide")))
    assert 0 <= float(row["text_to_signal_R@5"]) <= 100
    ccaco("embed", "--run", "runs/toy", "--dataset", "d", "--split", "test", "--index", "d.idx")
    (hit, *_) = csv.DictReader(io.StringIO(ccaco("retrieve", "caption 3", "--index", "d.idx", "--format", "csv")))
    assert hit["id"] in {f"id{i}" for i in range(3, 32, 4)}


def test_the_config_has_one_section_for_each_modality() -> None:
    hints = get_type_hints(ModelConfig)
    assert [f.name for f in fields(ModelConfig) if hints[f.name] is TowerConfig] == list(MODALITIES)


def test_every_function_of_every_entry_exists() -> None:
    source = Path(import_module("ccaco_cli.core.modalities").__file__ or "").read_text("utf-8")
    paths = re.findall(r'lazy\("([\w.]+):(\w+)"\)', source)
    assert len(paths) > 15
    for module, name in paths:
        assert callable(getattr(import_module(f"ccaco_cli.core.{module}"), name))
