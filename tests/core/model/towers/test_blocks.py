"""The blocks of towers: which parameters lie before, in and after them, and training the last ones only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ccaco_cli.core.config import LossConfig, ModelConfig, OptimConfig, TowerConfig
from ccaco_cli.core.errors import ConfigError
from ccaco_cli.core.model import aligner as aligners
from ccaco_cli.core.model import towers
from ccaco_cli.core.model.aligner import Aligner
from ccaco_cli.core.model.towers.blocks import find_blocks
from ccaco_cli.core.training.optim import adamw
from tests.pretrained_models import hf_folder, open_clip_folder

COUNTS = {
    "open_clip:vit": (2, 2),
    "open_clip:vit-attention": (2, 2),
    "open_clip:resnet": (4, 2),
    "open_clip:timm": (4, 2),
    "open_clip:siglip": (6, 2),
    "hf:clip": (2, 2),
    "hf:siglip": (2, 2),
    "hf:align": (2, 2),
}
"""Kind of ``pretrained_models`` -> blocks of the image and of the text tower."""
FIRST = ("conv1", "embedding", "embeddings", "ln_pre", "pre_layrnorm", "bn1", "cls_token", "pos_embed", "patch_embed")
LAST = ("proj", "text_projection", "visual_projection", "ln_post", "ln_final", "final_layer_norm", "attn_pool", "head")


def spec_of(kind: str, path: Path) -> str:
    family, _, name = kind.partition(":")
    return f"{family}:{(open_clip_folder if family == 'open_clip' else hf_folder)(path / name, name)}"


def build(spec: str, image: dict[str, Any] | None = None, text: dict[str, Any] | None = None) -> Aligner:
    sides = {m: TowerConfig(spec=spec, head="pretrained", **s or {}) for m, s in (("image", image), ("text", text))}
    return aligners.build(ModelConfig(**sides), LossConfig(), ("image", "text"))[0]  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", COUNTS)
def test_stems_come_first_and_projections_last(kind: str, tmp_path: Path) -> None:
    spec = spec_of(kind, tmp_path)
    for modality, count in zip(("image", "text"), COUNTS[kind], strict=True):
        module = towers.build(TowerConfig(spec=spec, head="pretrained"), modality).module
        blocks = find_blocks(module)
        assert blocks is not None and blocks.count == count
        assert blocks.depth.keys() == {name for name, _ in module.named_parameters()}
        assert set(blocks.depth.values()) >= set(range(count + 1))
        for name, depth in blocks.depth.items():
            numbered = any(part.isdigit() or part.startswith("layer") for part in name.split("."))
            if not numbered and any(part in FIRST for part in name.split(".")):
                assert depth == 0, name
            elif not numbered and any(part in LAST for part in name.split(".")):
                assert depth == count + 1, name


@pytest.mark.parametrize("kind", ["open_clip:vit", "open_clip:resnet", "open_clip:timm", "hf:clip"])
def test_only_the_last_blocks_and_what_follows_them_learn(kind: str, tmp_path: Path) -> None:
    spec = spec_of(kind, tmp_path)
    aligner = build(spec, {"unlock": 1}, {"lock": True}).train()
    encoder = aligner.encoder("image")
    blocks = find_blocks(encoder.tower)
    assert blocks is not None
    trainable = {name: p.requires_grad for name, p in encoder.tower.named_parameters()}
    assert trainable == {name: depth >= blocks.count for name, depth in blocks.depth.items()}
    assert not any(p.requires_grad for p in aligner.encoder("text").tower.parameters())
    modes = [module.training for module in encoder.tower.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert not modes or set(modes) == {True, False}, "statistics of frozen blocks are fixed"
    everything = build(spec, {"unlock": -99})
    learning = [name for name, p in everything.encoder("image").tower.named_parameters() if p.requires_grad]
    assert {blocks.depth[name] for name in learning} == set(blocks.depth.values()) - {0}


def test_too_many_blocks_and_none_are_one_line(tmp_path: Path) -> None:
    spec = spec_of("open_clip:vit", tmp_path)
    with pytest.raises(ConfigError, match=r"this tower has 2 blocks.*model.image.unlock = 99.*1 to 2"):
        build(spec, {"unlock": 99})
    config = ModelConfig(image=TowerConfig(spec="tiny", unlock=1))  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match=r"no blocks.*model.image.unlock = 1, tiny"):
        aligners.build(config, LossConfig(), ("image", "text"))
    aligner = aligners.build(ModelConfig(), LossConfig(), ("image", "text"))[0]
    with pytest.raises(ConfigError, match=r"no blocks.*--layer-decay 0.5, tiny"):
        adamw(aligner, OptimConfig(layer_decay=0.5))


def test_rates_fall_by_block_from_the_output_to_the_input(tmp_path: Path) -> None:
    aligner = build(spec_of("open_clip:vit", tmp_path))
    optimizer = adamw(aligner, OptimConfig(layer_decay=0.5, cross_lr=3.0))
    ratio = {id(p): group["ratio"] for group in optimizer.param_groups for p in group["params"]}
    names = {name: ratio[id(p)] for name, p in aligner.named_parameters()}
    tower = "sides.image.tower.body"
    assert names[f"{tower}.conv1.weight"] == 0.5**3
    assert names[f"{tower}.transformer.resblocks.0.mlp.c_fc.weight"] == 0.5**2
    assert names[f"{tower}.transformer.resblocks.1.mlp.c_fc.bias"] == 0.5
    assert names[f"{tower}.proj"] == names["log_scale"] == 1.0
    assert names["cross_projection.image.weight"] == 3.0
