"""Video towers: the small one, image towers over frames, and small random models of transformers' families saved to a
folder."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from ccaco_cli.core.config import TowerConfig
from ccaco_cli.core.data.clips import Clip
from ccaco_cli.core.data.loader import pad
from ccaco_cli.core.errors import TowerError
from ccaco_cli.core.model.towers import build
from ccaco_cli.core.model.towers.tower import Tower
from tests.recordings import film
from tests.towers import check_reduced_precision

SMALL: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture(scope="module")
def long() -> Clip:
    return Clip(film(seconds=1.5, fps=8))


@pytest.fixture(scope="module")
def short() -> Clip:
    return Clip(film(seconds=0.25, fps=8))


def encode(tower: Tower, *recordings: Clip) -> Any:
    inputs = pad([tower.preprocess(r) for r in recordings])
    check_reduced_precision(tower, inputs)
    with torch.no_grad():
        return tower.module.eval()(inputs)


@pytest.mark.parametrize("spec", ["tiny", "frames:tiny"])
def test_a_token_a_frame_and_padding_changes_nothing(spec: str, long: Clip, short: Clip) -> None:
    torch.manual_seed(0)
    tower = build(TowerConfig(spec, size=32, rate=8.0, seconds=5.0), "video")
    assert tower.preprocess(long).shape == (12, 3, 32, 32) and tower.preprocess(long).dtype == torch.uint8
    for layer in tower.module.temporal.encoder.layers:  # as after some training: time is looked at
        torch.nn.init.normal_(layer.linear2.weight)
        torch.nn.init.normal_(layer.self_attn.out_proj.weight)
    features = encode(tower, long, short)
    assert (
        features.tokens.shape == (2, 12, tower.width)
        and features.mask.sum(1).tolist() == [12, 2]
        and tower.tokens == 40
    )
    torch.testing.assert_close(features.pooled[1], encode(tower, short).pooled[0], atol=1e-4, rtol=1e-4)
    assert features.tokens[1, 2:].abs().max() == 0
    assert pickle.loads(pickle.dumps(tower.preprocess)) == tower.preprocess and not tower.pretrained


def test_when_a_thing_is_seen_matters() -> None:
    torch.manual_seed(0)
    tower = build(TowerConfig("tiny", rate=8.0), "video")
    frames = torch.zeros(2, 8, 3, 32, 32, dtype=torch.uint8)
    frames[0, 1], frames[1, 6] = 255, 255
    with torch.no_grad():
        tokens = tower.module.eval()({"values": frames, "mask": torch.ones(2, 8, dtype=torch.bool)}).tokens
    assert not torch.allclose(tokens[0, 1], tokens[1, 6], atol=1e-3)


def test_frames_start_with_what_the_image_tower_sees(long: Clip) -> None:
    torch.manual_seed(0)
    tower = build(TowerConfig("frames:torchvision:squeezenet1_1@none", size=64, rate=2.0), "video")
    with torch.no_grad():
        tower.module.temporal.gain.zero_()
        pooled = tower.module.eval().body({"pixels": tower.preprocess(long)}).pooled
    torch.testing.assert_close(encode(tower, long).tokens[0], pooled, atol=1e-5, rtol=1e-5)
    assert tower.width == 512


def test_frames_are_built_again_from_their_assets(tmp_path: Path, long: Clip) -> None:
    tower = build(TowerConfig("frames:torchvision:squeezenet1_1@none", size=64), "video")
    spec = tower.save_assets(tmp_path)
    assert spec.startswith("frames:torchvision:squeezenet1_1") and spec.endswith("@none")
    again = build(TowerConfig(spec, size=64), "video")
    again.module.load_state_dict(tower.module.state_dict())
    torch.testing.assert_close(encode(again, long).pooled, encode(tower, long).pooled)


MODELS = {
    "videomae": lambda: hf.VideoMAEModel(
        hf.VideoMAEConfig(image_size=32, patch_size=16, num_frames=4, tubelet_size=2, **SMALL)
    ),
    "timesformer": lambda: hf.TimesformerModel(
        hf.TimesformerConfig(image_size=32, patch_size=16, num_frames=4, **SMALL)
    ),
    "vivit": lambda: hf.VivitModel(hf.VivitConfig(image_size=32, num_frames=4, tubelet_size=[2, 16, 16], **SMALL)),
}


@pytest.mark.parametrize("kind", MODELS)
def test_transformers(kind: str, tmp_path: Path, long: Clip, short: Clip) -> None:
    torch.manual_seed(0)
    model = MODELS[kind]()
    model.save_pretrained(tmp_path)
    hf.VideoMAEImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(
        tmp_path
    )
    tower = build(TowerConfig(f"hf:{tmp_path}", seconds=1.0), "video")
    frames = tower.preprocess(short)
    assert frames.shape == (4, 3, 32, 32) and torch.equal(frames[1], frames[3]), "the last picture stays"
    features = encode(tower, long, short)
    steps = 4 if kind == "timesformer" else 2
    assert features.tokens.shape == (2, steps, 16) == (2, tower.tokens, tower.width) and features.mask.all()
    changed = tower.preprocess(long)
    changed[-1] = 255 - changed[-1]  # of a film, its last moment
    before, after = (tower.module({"values": x[None]}).tokens[0] for x in (tower.preprocess(long), changed))
    moved = (before - after).norm(dim=-1)
    assert moved.argmax() == steps - 1, "tokens are in the order of time"
    with pytest.raises(TowerError, match="takes 4 frames"):
        build(TowerConfig(f"hf:{tmp_path}", rate=25.0), "video")
    assert build(TowerConfig(tower.save_assets(tmp_path / "kept")), "video").tokens == steps


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("tiny:3d", "unknown tiny video tower"),
        ("timm:resnet18", "family timm has no video tower"),
        ("frames:tinny", "unknown tower family"),
    ],
)
def test_what_cannot_be_built(spec: str, message: str) -> None:
    with pytest.raises(TowerError, match=message):
        build(TowerConfig(spec), "video")
