from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ccaco_cli.core.config import LossConfig, ModelConfig
from ccaco_cli.core.config_io import override
from ccaco_cli.core.data import loader, shards
from ccaco_cli.core.data.loader import CachedColumn, MediaColumn, PixelColumn, TextColumn
from ccaco_cli.core.data.shards import PairData
from ccaco_cli.core.encoding import columns as module
from ccaco_cli.core.encoding.columns import columns
from ccaco_cli.core.model import aligner as aligners


@pytest.fixture
def data(data_root: Path) -> PairData:
    return shards.open(data_root / "scenes")


def build(**settings: Any) -> tuple[Any, Any, ModelConfig]:
    config = override(
        ModelConfig(width=16), {"image.size": 32} | {k.replace("__", "."): v for k, v in settings.items()}
    )
    torch.manual_seed(0)
    aligner, towers = aligners.build(config, LossConfig(), ("image", "text"))
    return aligner.eval(), towers, config


def test_small_pictures_are_pixels_and_captions_text(data: PairData) -> None:
    by_modality = columns(data, "val", *build())
    assert list(by_modality) == ["image", "text"]
    assert isinstance(by_modality["image"], PixelColumn)
    assert isinstance(by_modality["text"], TextColumn)
    assert len(by_modality["image"].row) == 25
    assert len(by_modality["text"].row) == 125


def test_large_pictures_are_decoded_when_requested(data: PairData, monkeypatch: pytest.MonkeyPatch) -> None:
    assert loader.PIXELS_IN_CACHE == module.PIXELS_IN_CACHE
    monkeypatch.setattr(module, "PIXELS_IN_CACHE", 16)
    assert type(columns(data, "val", *build())["image"]) is MediaColumn


def test_a_locked_tower_is_read_from_the_cache(data: PairData) -> None:
    aligner, towers, config = build(image__lock=True, image__cache_tokens=100, text__lock=True)
    messages: list[str] = []
    by_modality = columns(
        data, "val", aligner, towers, config, lambda done, total, facts: messages.append(facts["what"])
    )
    raw = columns(data, "val", *build())
    items = np.array([3, 0, 11])
    for modality in ("image", "text"):
        assert isinstance(by_modality[modality], CachedColumn)
        cached, fresh = (aligner.encode(modality, c[modality].inputs(items))[0].z for c in (by_modality, raw))
        assert torch.allclose(cached, fresh, atol=5e-3)
    assert set(messages) == {"image tokens of val", "text tokens of val"}
    messages.clear()
    columns(data, "val", aligner, towers, config, lambda done, total, facts: messages.append(facts["what"]))
    assert messages == []
    fewer = columns(data, "val", *build(image__lock=True, image__cache_tokens=1))["image"]
    assert fewer.length is not None
    assert set(fewer.length.tolist()) == {1}
