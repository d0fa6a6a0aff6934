"""A query is encoded exactly as an item of a data set is: every tower family and modality, locked and not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf

from ccaco_cli.core.config import LossConfig, ModelConfig, TowerConfig
from ccaco_cli.core.data import shards
from ccaco_cli.core.data.preparation import prepare
from ccaco_cli.core.data.shards import PairData, WriteOptions
from ccaco_cli.core.data.sources.source import SourceOptions
from ccaco_cli.core.encoding.columns import columns
from ccaco_cli.core.encoding.encode import EncodeOptions, encode
from ccaco_cli.core.encoding.samples import encode_samples
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.model import aligner as aligners

ITEMS = [0, 2, 5]
SMALL: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "cat", "on", "the", "sofa"]


def hf_image(folder: Path) -> str:
    hf.ViTModel(hf.ViTConfig(image_size=32, patch_size=8, **SMALL)).save_pretrained(folder)
    hf.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return f"hf:{folder}"


def hf_text(folder: Path) -> str:
    hf.BertModel(hf.BertConfig(vocab_size=len(WORDS), max_position_embeddings=24, **SMALL)).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    hf.BertTokenizerFast(vocab=str(folder / "vocab.txt"), model_max_length=20).save_pretrained(folder)
    return f"hf:{folder}"


def hf_audio(folder: Path) -> str:
    hf.ASTModel(hf.ASTConfig(max_length=64, num_mel_bins=32, patch_size=16, **SMALL)).save_pretrained(folder)
    hf.ASTFeatureExtractor(num_mel_bins=32, max_length=64).save_pretrained(folder)
    return f"hf:{folder}"


def hf_video(folder: Path) -> str:
    config = hf.VideoMAEConfig(image_size=32, patch_size=16, num_frames=4, tubelet_size=2, **SMALL)
    hf.VideoMAEModel(config).save_pretrained(folder)
    size = {"shortest_edge": 32}
    hf.VideoMAEImageProcessor(size=size, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return f"hf:{folder}"


def open_clip(folder: Path) -> str:
    vision = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8}
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
    config = {"embed_dim": 32, "vision_cfg": vision, "text_cfg": text}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    return f"open_clip:{folder}@none"


def named(spec: str) -> Callable[[Path], str]:
    def build(folder: Path) -> str:
        return spec

    build.__name__ = spec
    return build


TOWERS: list[tuple[str, Callable[[Path], str], dict[str, Any]]] = [
    ("image", named("tiny"), {"size": 48}),
    ("image", named("tiny:vit"), {"size": 64, "cache_tokens": 9}),
    ("image", named("tiny"), {"size": 64, "tiles": "2x2", "cache_tokens": 9}),
    ("image", named("timm:vit_tiny_patch16_224@none"), {"size": 64, "cache_tokens": 4}),
    ("image", named("torchvision:squeezenet1_1@none"), {"cache_tokens": 49}),
    ("image", open_clip, {"cache_tokens": 9}),
    ("image", hf_image, {"cache_tokens": 9}),
    ("text", named("tiny"), {}),
    ("text", open_clip, {}),
    ("text", hf_text, {}),
    ("audio", named("tiny"), {}),
    ("audio", hf_audio, {"cache_tokens": 4}),
    ("video", named("tiny"), {}),
    ("video", named("frames:tiny"), {}),
    ("video", hf_video, {"seconds": 1.0}),
]


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> PairData:
    out = tmp_path_factory.mktemp("data") / "bounces"
    prepare("bounces", out=out, options=SourceOptions(limit=6, size=32), write=WriteOptions(workers=0))
    return shards.open(out)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> PairData:
    """Larger than the towers take, so that decoding at a reduced size and resizing count."""
    out = tmp_path_factory.mktemp("data") / "scenes"
    prepare("scenes", out=out, options=SourceOptions(limit=7, size=160), write=WriteOptions(workers=0))
    return shards.open(out)


def samples_of(data: PairData, modality: str, folder: Path) -> tuple[list[Any], list[Any]]:
    """The same samples as bytes (or texts), and as files."""
    split = data.split("test")
    if modality == "text":
        texts = [split.captions[item] for item in ITEMS]
        return texts, texts
    media = list(split.media(modality, ITEMS))
    files = [folder / f"{item}.{modality}" for item in ITEMS]
    for file, data_of_file in zip(files, media, strict=True):
        file.write_bytes(data_of_file)
    return media, files


@pytest.mark.parametrize("lock", [False, True], ids=["trained", "locked"])
@pytest.mark.parametrize(
    ("modality", "spec", "settings"), TOWERS, ids=lambda value: getattr(value, "__name__", str(value))
)
def test_a_query_is_encoded_as_the_item_is(
    modality: str,
    spec: Callable[[Path], str],
    settings: dict[str, Any],
    lock: bool,
    pictures: PairData,
    recordings: PairData,
    tmp_path: Path,
) -> None:
    data = pictures if modality in pictures.modalities else recordings
    sides: dict[str, Any] = {m: TowerConfig("tiny") for m in data.modalities}
    sides[modality] = TowerConfig(spec(tmp_path), lock=lock, **settings)
    config = ModelConfig(width=16, **sides)
    torch.manual_seed(0)
    aligner, towers = aligners.build(config, LossConfig(), data.modalities)
    column = columns(data, "test", aligner, towers, config)[modality]
    for max_tokens in (0, 4):
        options = EncodeOptions(max_tokens)
        items = encode(aligner, modality, column, items=ITEMS, local_tokens=True, options=options)
        for samples in samples_of(data, modality, tmp_path):
            queries = encode_samples(aligner, towers[modality], samples, options=options)
            assert torch.allclose(queries.z, items.z, atol=1e-3)
            assert torch.equal(queries.local_tokens.mask, items.local_tokens.mask)
            mask = items.local_tokens.mask
            difference = (queries.local_tokens.tokens[mask].float() - items.local_tokens.tokens[mask].float()).abs()
            assert difference.max() <= 2e-3 * items.local_tokens.tokens.float().abs().max()
        grid = aligner.sides[modality].grid
        if grid is not None and max_tokens:
            assert items.local_tokens.mask.shape[1] <= max_tokens + towers[modality].tokens - np.prod(
                towers[modality].grid
            )


def test_what_cannot_be_read_is_named(pictures: PairData, tmp_path: Path) -> None:
    config = ModelConfig(width=16, image=TowerConfig("tiny", size=32))
    aligner, towers = aligners.build(config, LossConfig(), ("image", "text"))
    (tmp_path / "words.jpg").write_text("no image")
    for name, message in (
        ("words.jpg", r"not a picture: .*words\.jpg"),
        ("none.jpg", r"cannot read this file .*none\.jpg"),
    ):
        with pytest.raises(DataError, match=message):
            encode_samples(aligner, towers["image"], [tmp_path / name])
