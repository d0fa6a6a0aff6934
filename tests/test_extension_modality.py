"""A modality that is declared in one entry goes from records to embeddings."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, field, fields
from importlib import import_module
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch
from PIL import Image

from ccaco_cli.core.config import LossConfig, ModelConfig, TowerConfig
from ccaco_cli.core.data import shards
from ccaco_cli.core.data.loader import MediaColumn, PairDataset, PairPlan, load
from ccaco_cli.core.encoding.columns import columns
from ccaco_cli.core.encoding.encode import encode
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.modalities import MODALITIES, Modality
from ccaco_cli.core.model import aligner as aligners
from ccaco_cli.core.model.towers.tower import Tower, TowerSpec
from ccaco_cli.core.retrieval.index import thumbnail
from ccaco_cli.core.types import Features, PairRecord

STEPS, CHANNELS = 5, 3


def signal_bytes(seed: int) -> bytes:
    out = io.BytesIO()
    np.save(out, np.random.default_rng(seed).standard_normal((STEPS, CHANNELS)).astype(np.float32))
    return out.getvalue()


def decode(data: bytes) -> np.ndarray[Any, Any]:
    try:
        array: np.ndarray[Any, Any] = np.load(io.BytesIO(data), allow_pickle=False)
    except ValueError:
        raise DataError("not a signal") from None
    return array


def check(data: bytes, rules: Any) -> tuple[bytes, dict[str, float], dict[str, Any]]:
    return data, {"steps": float(len(decode(data)))}, {}


def picture(data: bytes, side: int) -> Image.Image:
    return Image.fromarray((decode(data) * 50 + 128).clip(0, 255).astype(np.uint8))


class SignalTower(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(CHANNELS, 8)

    def forward(self, inputs: dict[str, torch.Tensor]) -> Features:
        tokens = self.linear(inputs["signal"])
        return Features(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool), tokens.mean(1))


def build_tower(spec: TowerSpec, config: TowerConfig) -> Tower:
    return Tower(spec, "signal", SignalTower(), torch.from_numpy, 8, STEPS, None, False, "toy", lambda folder: "toy")


@dataclass(frozen=True)
class ModelWithSignal(ModelConfig):
    """The one further place: the settings ``model.signal``."""

    signal: TowerConfig = field(default_factory=lambda: TowerConfig(spec="toy"))


@pytest.fixture
def signal(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = Modality(
        "signal",
        "array",
        check=check,
        decode=decode,
        collate=lambda samples: {"signal": torch.stack(list(samples))},
        picture=picture,
        tower_families={"toy": build_tower},
        probe_samples=lambda: [decode(signal_bytes(0)), decode(signal_bytes(1))],
        folder="signal",
    )
    monkeypatch.setitem(MODALITIES, "signal", entry)


def test_a_modality_is_one_entry(signal: None, tmp_path: Path) -> None:
    records = [
        PairRecord(
            f"id{i}",
            f"id{i}",
            ("train", "train", "val")[i % 3],
            {"signal": b"broken" if i == 0 else signal_bytes(i)},
            [f"caption {i}"],
        )
        for i in range(12)
    ]
    manifest = shards.write(
        records,
        tmp_path / "d",
        shards.DatasetInfo("d", ("signal", "text")),
        shards.WriteOptions(workers=0, max_rejects=0.2),
    )
    assert manifest.facts["rejects"] == {"not a signal": 1}
    assert manifest.facts["inspection"]["train"]["steps"] == {"min": STEPS, "mean": STEPS, "max": STEPS}

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


def test_the_config_has_one_section_for_each_modality() -> None:
    hints = get_type_hints(ModelConfig)
    assert [f.name for f in fields(ModelConfig) if hints[f.name] is TowerConfig] == list(MODALITIES)


def test_every_function_of_every_entry_exists() -> None:
    source = Path(import_module("ccaco_cli.core.modalities").__file__ or "").read_text("utf-8")
    paths = re.findall(r'lazy\("([\w.]+):(\w+)"\)', source)
    assert len(paths) > 15
    for module, name in paths:
        assert callable(getattr(import_module(f"ccaco_cli.core.{module}"), name))
