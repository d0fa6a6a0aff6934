"""The registry: SPEC -> tower, and what it says to a SPEC that it cannot build."""

from __future__ import annotations

import pytest

from ccaco_cli.core.config import TowerConfig
from ccaco_cli.core.errors import TowerError
from ccaco_cli.core.model.towers import build, families
from ccaco_cli.core.model.towers.tower import TowerSpec


@pytest.mark.parametrize(
    "text", ["tiny", "hf:bert-base-uncased", "open_clip:ViT-B-32@openai", "torchvision:resnet50@none", "tiny@none"]
)
def test_spec_survives_parsing(text: str) -> None:
    assert str(TowerSpec.parse(text)) == text


def test_families_are_the_documented_ones() -> None:
    assert set(families("image")) >= {"tiny", "open_clip", "torchvision", "timm", "hf"}
    assert set(families("text")) >= {"tiny", "open_clip", "hf"}
    assert set(families("audio")) >= {"tiny", "hf"}
    assert set(families("video")) >= {"tiny", "frames", "hf"}


@pytest.mark.parametrize(
    ("spec", "modality", "message"),
    [
        ("", "image", "empty tower SPEC"),
        ("tinny", "image", "expected one of tiny"),
        ("tiny:vti", "image", "tiny:vit"),
        ("tiny:vit", "text", "unknown tiny text tower"),
        ("tiny@laion", "image", "expected tiny or tiny@none"),
        ("timm:resnet18@none", "audio", "family timm has no audio tower"),
        ("timm:resnet18@none", "text", "no text tower"),
        ("timm:resnet1o@none", "image", "resnet18"),
        ("timm:resnet18.a1_in1", "image", "resnet18.a1_in1k"),
        ("torchvision:resnet5@none", "image", "resnet50"),
        ("torchvision:resnet50@IMAGENET1K_V3", "image", "IMAGENET1K_V2"),
        ("torchvision:resnet50@nowhere.pth", "image", "no weights file here: nowhere.pth"),
        ("open_clip:ViT-B-3@openai", "image", "ViT-B-32"),
        ("open_clip:ViT-B-32@opena", "text", "openai"),
        ("open_clip:ViT-B-32", "text", "the SPEC names no weights"),
        ("hf:", "text", "no model is named"),
        ("hf:/no/such/folder", "text", "no model folder here: /no/such/folder"),
    ],
)
def test_a_wrong_spec_says_what_is_wrong_in_one_line(spec: str, modality: str, message: str) -> None:
    with pytest.raises(TowerError) as caught:
        build(TowerConfig(spec), modality)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
