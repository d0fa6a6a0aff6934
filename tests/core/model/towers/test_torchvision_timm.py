"""torchvision and timm towers: the last map of each, the family's own preprocessing, weights from a file."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision.models as zoo
from PIL import Image
from safetensors.torch import load_file, save_file

from ccaco_cli.core.config import TowerConfig
from ccaco_cli.core.errors import TowerError
from ccaco_cli.core.model.towers import build
from ccaco_cli.core.model.towers.image_base import ImagePreprocess, image_tower
from ccaco_cli.core.model.towers.probing import probe
from ccaco_cli.core.model.towers.torchvision_timm import TimmModule, TorchvisionModule
from ccaco_cli.core.model.towers.tower import TowerSpec
from tests.towers import check_reduced_precision


def photo(width: int = 320, height: int = 250) -> Image.Image:
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (height // 10, width // 10, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    ("spec", "size", "width", "grid", "extra"),
    [
        ("torchvision:resnet50@none", 32, 2048, (1, 1), 0),
        ("torchvision:squeezenet1_0@none", 0, 512, (13, 13), 0),
        ("torchvision:mobilenet_v3_small@none", 64, 576, (2, 2), 0),
        ("timm:resnet18.a1_in1k@none", 64, 512, (2, 2), 0),
        ("timm:vit_tiny_patch16_224@none", 64, 192, (4, 4), 1),
        ("timm:convnext_atto@none", 64, 320, (2, 2), 0),
        ("timm:mobilenetv3_small_050@none", 64, 288, (2, 2), 0),
    ],
)
def test_tokens_are_the_last_map(spec: str, size: int, width: int, grid: tuple[int, int], extra: int) -> None:
    tower = build(TowerConfig(spec, size=size), "image")
    assert (tower.width, tower.grid, tower.tokens) == (width, grid, grid[0] * grid[1] + extra)
    assert not tower.pretrained
    inputs = {"pixels": torch.stack([tower.preprocess(photo())] * 2)}
    with torch.no_grad():
        features = tower.module.eval()(inputs)
    assert (
        features.tokens.shape == (2, tower.tokens, width)
        and features.pooled.shape == (2, width)
        and features.mask.all()
    )
    check_reduced_precision(tower, inputs)
    assert not [n for n, _ in tower.module.named_parameters() if ".fc." in n or ".classifier." in n or ".heads." in n]


def test_torchvision_tokens_equal_the_model_s_own_features() -> None:
    torch.manual_seed(0)
    tower = build(TowerConfig("torchvision:resnet18@none", size=96), "image")
    torch.manual_seed(0)
    model = zoo.resnet18().eval()
    pixels = torch.randint(0, 256, (2, 3, 96, 96), dtype=torch.uint8)
    x = (pixels / 255 - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(
        3, 1, 1
    )
    with torch.no_grad():
        wanted = torch.nn.Sequential(*list(model.children())[:-2])(x).flatten(2).transpose(1, 2)
        features = tower.module.eval()({"pixels": pixels})
    torch.testing.assert_close(features.tokens, wanted, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(features.pooled, wanted.mean(1), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["squeezenet1_0", "efficientnet_b0"])
def test_torchvision_preprocessing_is_its_own(name: str) -> None:
    tower = build(TowerConfig(f"torchvision:{name}@none"), "image")
    recipe = zoo.get_model_weights(name)["IMAGENET1K_V1"].transforms(resize_size=224)
    normalised = (tower.preprocess(photo()) / 255 - torch.tensor(recipe.mean).view(3, 1, 1)) / torch.tensor(
        recipe.std
    ).view(3, 1, 1)
    torch.testing.assert_close(normalised, recipe(photo()))


def test_timm_preprocessing_is_its_own() -> None:
    from timm.data import create_transform, resolve_data_config

    tower = build(TowerConfig("timm:resnet18.a1_in1k@none"), "image")
    config = resolve_data_config({}, model=timm.create_model("resnet18.a1_in1k"))
    wanted = create_transform(**{**config, "crop_pct": 1.0})(photo())
    picture: Any = tower.preprocess
    normalised = (picture(photo()) / 255 - torch.tensor(picture.mean).view(3, 1, 1)) / torch.tensor(picture.std).view(
        3, 1, 1
    )
    torch.testing.assert_close(normalised, wanted)


def test_a_tag_in_the_name_keeps_its_preprocessing_offline(tmp_path: Path) -> None:
    towers: Any = [build(TowerConfig(f"torchvision:mobilenet_v2{tag}@none"), "image") for tag in ("", ".IMAGENET1K_V2")]
    classic, newer = towers
    assert (classic.preprocess.resize, newer.preprocess.resize) == ((224,), (224,))
    again = newer.save_assets(tmp_path)
    assert again == "torchvision:mobilenet_v2.IMAGENET1K_V2@none" and not list(tmp_path.iterdir())
    assert (
        build(TowerConfig("timm:resnet18.a1_in1k@none"), "image").save_assets(tmp_path) == "timm:resnet18.a1_in1k@none"
    )


@pytest.mark.parametrize("family", ["torchvision", "timm"])
def test_weights_file_with_any_classifier(tmp_path: Path, family: str) -> None:
    torch.manual_seed(0)
    model = zoo.resnet18(num_classes=7) if family == "torchvision" else timm.create_model("resnet18", num_classes=7)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    torch.manual_seed(1)
    tower = build(TowerConfig(f"{family}:resnet18@{tmp_path / 'w.safetensors'}", size=64), "image")
    torch.manual_seed(2)
    again = build(TowerConfig(f"{family}:resnet18@{tmp_path / 'w.safetensors'}", size=64), "image")
    assert tower.pretrained and tower.fingerprint == again.fingerprint
    assert tower.fingerprint != build(TowerConfig(f"{family}:resnet18@none", size=64), "image").fingerprint
    assert torch.equal(tower.module.state_dict()["body.conv1.weight"], model.state_dict()["conv1.weight"])


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    save_file(zoo.squeezenet1_0().state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(TowerError, match=r"missing \(bn1\.bias.*unexpected \(features.*w\.safetensors"):
        build(TowerConfig(f"torchvision:resnet18@{tmp_path / 'w.safetensors'}"), "image")


def test_a_picture_too_small_is_refused() -> None:
    with pytest.raises(TowerError, match="takes no pictures of 16 x 16"):
        build(TowerConfig("torchvision:squeezenet1_0@none", size=16), "image")


def test_torchvision_vit_keeps_its_class_token() -> None:
    model = zoo.VisionTransformer(32, 8, 1, 2, 16, 32).eval()
    picture = ImagePreprocess((32, 32), (32,), "bilinear", (0.0,) * 3, (1.0,) * 3)
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        features = TorchvisionModule(model, picture, 32).eval()({"pixels": pixels})
        model.heads = torch.nn.Identity()
        torch.testing.assert_close(features.pooled, model(pixels / 255), atol=1e-5, rtol=1e-5)
    assert features.tokens.shape == (2, 17, 16)


def test_timm_checkpointing() -> None:
    build(TowerConfig("timm:resnet18@none", size=64), "image").module.set_grad_checkpointing(True)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("name", "settings", "pooling"),
    [
        ("vit_tiny_patch16_224", {}, "first"),
        ("vit_tiny_patch16_224", {"reg_tokens": 2}, "first"),
        ("vit_tiny_patch16_224", {"global_pool": "avg"}, "model"),  # a norm follows the mean
        ("vit_tiny_patch16_224", {"global_pool": "avg", "fc_norm": False}, "model"),  # without the class token
        ("vit_tiny_patch16_224", {"global_pool": "avg", "fc_norm": False, "class_token": False}, "mean"),
        ("vit_tiny_patch16_224", {"global_pool": "avg", "fc_norm": False, "pool_include_prefix": True}, "mean"),
        ("vit_tiny_patch16_224", {"global_pool": "map", "class_token": False}, "model"),
        ("deit_tiny_distilled_patch16_224", {}, "model"),  # the mean of two special tokens
        ("resnet18", {}, "mean"),
        ("resnet18", {"global_pool": "max"}, "model"),
        ("efficientnet_b0", {}, "mean"),
        ("regnetx_002", {}, "mean"),
        ("convnext_atto", {}, "model"),  # a norm follows the mean
    ],
)
def test_timm_pooling_is_declared_and_probed(name: str, settings: dict[str, Any], pooling: str) -> None:
    torch.manual_seed(0)
    size = {"img_size": 64} if "_patch" in name else {}
    model = timm.create_model(name, num_classes=0, **settings, **size)
    preprocess = ImagePreprocess((64, 64), (64,), "bilinear", (0.5,) * 3, (0.5,) * 3)
    tower = image_tower(
        TowerSpec("timm", name, "none"),
        TimmModule(model, preprocess),
        preprocess,
        pretrained=False,
        facts=(name, settings),
        save_assets=lambda folder: "",
    )
    assert tower.pooled_from == pooling
    probe(tower)
    for wrong in {"first", "mean"} - {pooling} if tower.grid else ():
        with pytest.raises(TowerError, match=f"is not the {wrong} of its tokens|no class token before its patches"):
            probe(replace(tower, pooled_from=wrong, pretrained=True, fingerprint=wrong + tower.fingerprint))


def test_real_squeezenet() -> None:
    root = os.environ.get("CCACO_REAL_DATA")
    if not root:
        pytest.skip("CCACO_REAL_DATA is not set")
    file = Path(root).parent / "models/squeezenet1_0/model.safetensors"
    if not file.is_file():
        pytest.skip(f"no weights at {file}")
    tower = build(TowerConfig(f"torchvision:squeezenet1_0@{file}"), "image")
    assert (tower.width, tower.tokens, tower.grid, tower.pretrained) == (512, 169, (13, 13), True)
    model = zoo.squeezenet1_0().eval()
    model.load_state_dict(load_file(file))
    with torch.no_grad():
        wanted = (
            model.features(zoo.SqueezeNet1_0_Weights.DEFAULT.transforms(resize_size=224)(photo())[None])
            .flatten(2)
            .transpose(1, 2)
        )
        features = tower.module.eval()({"pixels": tower.preprocess(photo())[None]})
    torch.testing.assert_close(features.tokens, wanted, atol=1e-3, rtol=1e-3)
    assert features.tokens.std() > 0.1
