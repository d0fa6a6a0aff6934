"""open_clip towers, on small models in open_clip's own folder layout."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import save_file

from ccaco_cli.core.config import TowerConfig
from ccaco_cli.core.errors import TowerError
from ccaco_cli.core.model.attention import masked_mean
from ccaco_cli.core.model.towers import build, open_clip_models
from ccaco_cli.core.model.towers.dual_encoders import sharing_loads
from ccaco_cli.core.model.towers.image_base import ImagePreprocess
from ccaco_cli.core.model.towers.open_clip_models import CONFIG
from tests.towers import check_reduced_precision

TEXTS = ["a dog!", "an orange cat napping on a sofa", "word " * 40]
VIT = {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8}
RESNET = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 64}
TEXT = {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}


def folder(root: Path, vision: dict[str, Any], preprocess: dict[str, Any] | None = None, **text: Any) -> Path:
    model = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": {**TEXT, **text}}
    (root / CONFIG).write_text(json.dumps({"model_cfg": model, "preprocess_cfg": preprocess or {}}))
    return root


def photo() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(
        (160, 120), Image.Resampling.BICUBIC
    )


@pytest.mark.parametrize(("vision", "width", "grid", "tokens"), [(VIT, 64, (4, 4), 17), (RESNET, 256, (2, 2), 4)])
def test_image_side(tmp_path: Path, vision: dict[str, Any], width: int, grid: tuple[int, int], tokens: int) -> None:
    tower = build(TowerConfig(f"open_clip:{folder(tmp_path, vision)}@none"), "image")
    assert (tower.width, tower.grid, tower.tokens, tower.pretrained) == (width, grid, tokens, False)
    inputs = {"pixels": torch.stack([tower.preprocess(photo())] * 2)}
    features = tower.module(inputs)
    assert features.tokens.shape == (2, tokens, width) and features.pooled.shape == (2, width)
    features.pooled.sum().backward()
    unused = [n for n, p in tower.module.named_parameters() if p.grad is None]
    assert unused == []
    check_reduced_precision(tower, inputs)


def test_projected_features_equal_open_clip_s(tmp_path: Path) -> None:
    """What open_clip encodes is our pooled vector times its projection, for both sides, from one checkpoint."""
    name = f"local-dir:{folder(tmp_path, VIT)}"
    torch.manual_seed(5)
    model = open_clip.create_model(name, load_weights=False).eval()
    file = tmp_path / "both.safetensors"
    save_file(model.state_dict(), file)
    image, text = (build(TowerConfig(f"open_clip:{tmp_path}@{file}"), side) for side in ("image", "text"))
    recipe = image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)
    with torch.no_grad():
        wanted = model.encode_image(recipe(photo())[None])
        features = image.module.eval()({"pixels": image.preprocess(photo())[None]})
        torch.testing.assert_close(features.pooled @ model.visual.proj, wanted, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(features.tokens[:, 0], features.pooled, atol=1e-5, rtol=1e-5)
        wanted = model.encode_text(open_clip.get_tokenizer(name)(TEXTS))
        text_features = text.module.eval()(text.preprocess(TEXTS))
        torch.testing.assert_close(text_features.pooled @ model.text_projection, wanted, atol=1e-4, rtol=1e-4)
    assert image.pretrained and text.pretrained and text.tokens == 20


def test_padding_changes_nothing(tmp_path: Path) -> None:
    tower = build(TowerConfig(f"open_clip:{folder(tmp_path, VIT)}@none"), "text")
    module, read = tower.module.eval(), pickle.loads(pickle.dumps(tower.preprocess))
    check_reduced_precision(tower, read(TEXTS))
    with torch.no_grad():
        batched = module(read(TEXTS))
        assert batched.mask.sum(1).tolist() == [5, 9, 20]
        for row, text in enumerate(TEXTS):
            alone = module(read([text]))
            assert alone.tokens.shape[1] == batched.mask[row].sum()
            torch.testing.assert_close(alone.pooled[0], batched.pooled[row], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(
                alone.tokens[0], batched.tokens[row, : alone.tokens.shape[1]], atol=1e-5, rtol=1e-5
            )


def test_a_tower_that_looks_at_padding_is_always_padded_alike(tmp_path: Path) -> None:
    tower = build(TowerConfig(f"open_clip:{folder(tmp_path, VIT, no_causal_mask=True, pool_type='last')}@none"), "text")
    alone, batched = tower.preprocess(TEXTS[:1]), tower.preprocess(TEXTS)
    assert alone["ids"].shape == (1, 20) and alone["mask"].sum() == 5
    with torch.no_grad():
        module = tower.module.eval()
        torch.testing.assert_close(module(alone).pooled[0], module(batched).pooled[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("modality", ["image", "text"])
def test_assets_rebuild_architecture_and_preprocessing(tmp_path: Path, modality: str) -> None:
    squash = {"resize_mode": "squash", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bilinear"}
    spec = f"open_clip:{folder(tmp_path, {**VIT, 'patch_size': 16}, squash)}@none"
    tower = build(TowerConfig(spec, size=48, context_length=11), modality)
    again = build(TowerConfig(tower.save_assets(tmp_path / "assets" / "image")), modality)
    again.module.load_state_dict(tower.module.state_dict())
    assert (again.width, again.tokens, again.grid) == (tower.width, tower.tokens, tower.grid)
    assert again.tokens == (10 if modality == "image" else 11)
    assert repr(again.preprocess) == repr(tower.preprocess)
    if modality == "image":
        assert isinstance(again.preprocess, ImagePreprocess)
        assert again.preprocess.resize == (48, 48) and again.preprocess.mean == (0.5, 0.5, 0.5)


def test_openai_weights_get_quick_gelu(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments: dict[str, Any] = {}

    def create(name: str, tag: str, **options: Any) -> None:
        arguments.update(options, name=name, tag=tag)
        raise RuntimeError("stop here")

    monkeypatch.setattr(open_clip, "create_model", create)
    for name, tag, wanted in (
        ("ViT-B-32", "openai", True),
        ("ViT-B-32", "laion2b_s34b_b79k", False),
        ("ViT-B-32-quickgelu", "none", True),
    ):
        with pytest.raises(TowerError, match="stop here"):
            build(TowerConfig(f"open_clip:{name}@{tag}"), "image")
        assert arguments["force_quick_gelu"] is wanted, (name, tag)


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    model = open_clip.create_model(f"local-dir:{folder(tmp_path, VIT)}", load_weights=False)
    state = model.state_dict()
    file = tmp_path / "w.safetensors"
    save_file({**state, "ln_final.weight": torch.ones(7)}, file)
    with pytest.raises(TowerError, match=r"ln_final\.weight.*w\.safetensors"):
        build(TowerConfig(f"open_clip:{tmp_path}@{file}"), "text")
    save_file({k: v for k, v in state.items() if k != "visual.conv1.weight"}, file)
    with pytest.raises(TowerError, match=r"1 missing \(visual\.conv1\.weight\)"):
        build(TowerConfig(f"open_clip:{tmp_path}@{file}"), "image")


def test_a_folder_without_weights_needs_none(tmp_path: Path) -> None:
    with pytest.raises(TowerError, match=r"no weights in this folder.*open_clip_model\.safetensors.*@none"):
        build(TowerConfig(f"open_clip:{folder(tmp_path, VIT)}"), "image")


def test_coca_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TowerError, match="not supported"):
        build(TowerConfig(f"open_clip:{folder(tmp_path, VIT, embed_cls=True)}@none"), "text")


@pytest.mark.parametrize("modality", ["image", "text"])
def test_checkpointing_changes_nothing(tmp_path: Path, modality: str) -> None:
    tower = build(TowerConfig(f"open_clip:{folder(tmp_path, VIT)}@none"), modality)
    inputs = tower.preprocess(TEXTS) if modality == "text" else {"pixels": tower.preprocess(photo())[None]}
    plain = tower.module(inputs).tokens
    tower.module.set_grad_checkpointing(True)  # type: ignore[operator]
    tokens = tower.module(inputs).tokens
    torch.testing.assert_close(plain, tokens)
    tokens.sum().backward()


def test_masked_mean() -> None:
    tokens = torch.tensor([[[1.0], [3.0], [100.0]], [[2.0], [4.0], [6.0]]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    assert masked_mean(tokens, mask).tolist() == [[2.0], [4.0]]


@pytest.mark.parametrize(("text", "loads"), [("vit", 1), ("other", 2)])
def test_both_sides_come_from_one_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, loads: int) -> None:
    calls: list[int] = []
    load = open_clip_models._load
    monkeypatch.setattr(
        open_clip_models, "_load", lambda spec, size, **options: calls.append(size) or load(spec, size, **options)
    )
    specs = []
    for name in ("vit", text):
        (tmp_path / name).mkdir(exist_ok=True)
        specs.append(f"open_clip:{folder(tmp_path / name, VIT)}@none")
    with sharing_loads():
        image = build(TowerConfig(spec=specs[0], size=48), "image")
        captions = build(TowerConfig(spec=specs[1]), "text")
    assert calls == [48, 0][:loads]
    assert (image.input_size, captions.width) == ((48, 48), TEXT["width"])
