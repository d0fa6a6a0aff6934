"""A tower family that is declared in one entry can be trained, indexed, searched and explained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ccaco_cli.core.config import LossConfig, ModelConfig, TowerConfig
from ccaco_cli.core.errors import ConfigError, TowerError
from ccaco_cli.core.experiments.request import TrainRequest
from ccaco_cli.core.modalities import MODALITIES
from ccaco_cli.core.model import aligner as aligners
from ccaco_cli.core.model import towers
from ccaco_cli.core.model.towers.tower import Tower, TowerSpec
from ccaco_cli.core.reporting.hit_explanation import explain_hits
from ccaco_cli.core.retrieval.index import Index
from ccaco_cli.core.retrieval.search import SearchOptions, encode_query, search
from ccaco_cli.core.types import Features
from ccaco_cli.core.workflows.embed import EmbedRequest, embed
from ccaco_cli.core.workflows.train import train

SIDE, CELLS, WIDTH = 16, 4, 12


class DummyModule(torch.nn.Module):
    """Mean colours of a 4 x 4 grid, and one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, WIDTH)

    def forward(self, inputs: dict[str, torch.Tensor]) -> Features:
        pixels = inputs["pixels"].to(self.linear.weight.dtype) / 255
        colours = torch.nn.functional.adaptive_avg_pool2d(pixels, CELLS)
        tokens = self.linear(colours.flatten(2).transpose(1, 2))
        return Features(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool), tokens.mean(1))


def preprocess(image: Image.Image) -> torch.Tensor:
    pixels = np.asarray(image.convert("RGB").resize((SIDE, SIDE)))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).contiguous()


def build_dummy(spec: TowerSpec, config: TowerConfig) -> Tower:
    return Tower(
        spec=spec,
        modality="image",
        module=DummyModule(),
        preprocess=preprocess,
        width=WIDTH,
        tokens=CELLS * CELLS,
        grid=(CELLS, CELLS),
        pretrained=False,
        fingerprint=f"dummy {config.size}",
        save_assets=lambda folder: str(spec),
        input_size=(SIDE, SIDE),
    )


@pytest.fixture
def dummy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODALITIES["image"].tower_families, "dummy", build_dummy)  # type: ignore[arg-type]


def test_a_tower_family_is_one_entry(dummy: None, data_root: Path, small: dict[str, Any], tmp_path: Path) -> None:
    settings = small | {"model.image.spec": "dummy:first", "optim.epochs": 1}
    manifest = train(TrainRequest("scenes", explicit=settings), tmp_path / "run", data_root=data_root)
    assert manifest.config["model"]["image"]["spec"] == "dummy:first"

    request = EmbedRequest(
        tmp_path / "run", "scenes", out=tmp_path / "embeddings", index=tmp_path / "scenes.idx", device="cpu"
    )
    embed(request, data_root=data_root)
    index = Index(tmp_path / "scenes.idx")
    thumbnail = index.sides["image"].item(0)["thumbnail"]
    (tmp_path / "query.png").write_bytes(thumbnail)
    by_image = search(index, "image", encode_query(index, "image", [tmp_path / "query.png"]), SearchOptions(2))[0]
    assert [hit.rank for hit in by_image] == [1, 2]
    by_text = search(index, "text", encode_query(index, "text", ["a red circle"]), SearchOptions(2))[0]
    assert all(hit.item["thumbnail"] for hit in by_text)

    (explained,) = explain_hits(index, "text", "a red circle", by_text[:1], "attention")
    assert explained.explanation.words == ("red", "circle")
    assert explained.explanation.heat.shape == (2, CELLS, CELLS)
    assert explained.image is not None and explained.image.shape == (SIDE, SIDE, 3)


def test_capabilities_that_a_tower_does_not_declare_are_refused_in_words(dummy: None) -> None:
    config = ModelConfig(image=TowerConfig("dummy"))
    aligner, _ = aligners.build(config, LossConfig(), ("image", "text"))
    with pytest.raises(ConfigError, match=r"no gradient checkpointing.*dummy"):
        aligner.set_grad_checkpointing()
    with pytest.raises(TowerError, match=r"gives its last state only.*dummy"):
        towers.build(TowerConfig("dummy", states=2), "image")
    with pytest.raises(TowerError, match="without a grid of patches"):
        towers.build(TowerConfig("tiny", tiles="2x2"), "text")
    with pytest.raises(TowerError, match="family dummy has no text tower"):
        towers.build(TowerConfig("dummy"), "text")


def test_every_family_of_the_table_has_a_builder() -> None:
    for name in MODALITIES:
        for family in towers.families(name):
            with pytest.raises(TowerError):
                towers.build(TowerConfig(f"{family}:no such name"), name)
