"""Audio towers: the small one, and small random models of transformers' families saved to a folder."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf

from ccaco_cli.core.config import TowerConfig
from ccaco_cli.core.data.clips import Clip
from ccaco_cli.core.data.loader import pad
from ccaco_cli.core.errors import TowerError
from ccaco_cli.core.model.towers import build
from ccaco_cli.core.model.towers.audio import NORMALISATIONS
from ccaco_cli.core.model.towers.tower import Tower
from tests.recordings import sound, tone
from tests.towers import check_reduced_precision

SMALL: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture(scope="module")
def long() -> Clip:
    return Clip(sound(tone(1.0, 44_100, channels=2), 44_100))


@pytest.fixture(scope="module")
def short() -> Clip:
    return Clip(sound(tone(0.01, 16_000), 16_000))


def encode(tower: Tower, *recordings: Clip) -> Any:
    inputs = pad([tower.preprocess(r) for r in recordings])
    check_reduced_precision(tower, inputs)
    with torch.no_grad():
        return tower.module.eval()(inputs)


def test_tiny_gives_a_token_each_80_ms(long: Clip, short: Clip) -> None:
    tower = build(TowerConfig("tiny"), "audio")
    mel = tower.preprocess(long)
    assert mel.dtype == torch.float16 and mel.shape == (98, 128)
    features = encode(tower, long, short)
    assert features.tokens.shape == (2, 13, tower.width) and features.mask.sum(1).tolist() == [13, 1]
    assert (tower.tokens, tower.grid, tower.pretrained) == (125, None, False) and features.tokens[
        1, 1:
    ].abs().max() == 0
    alone = encode(tower, short)
    torch.testing.assert_close(features.pooled[1], alone.pooled[0], atol=1e-5, rtol=1e-5)  # padding changes nothing
    torch.testing.assert_close(features.tokens[1, :1], alone.tokens[0], atol=1e-5, rtol=1e-5)
    assert pickle.loads(pickle.dumps(tower.preprocess)) == tower.preprocess


def test_when_a_sound_comes_matters() -> None:
    early, late = np.zeros((2, 1, 16_000), np.float32)
    early[:, 1_000:3_000], late[:, 11_000:13_000] = (tone(0.125, 16_000) for _ in range(2))
    torch.manual_seed(0)
    tower = build(TowerConfig("tiny"), "audio")
    z = torch.nn.functional.normalize(encode(tower, *(Clip(sound(s, 16_000)) for s in (early, late))).pooled, dim=-1)
    assert float(z[0] @ z[1]) < 0.999


def test_log_mel_is_what_the_published_extractor_gives(long: Clip) -> None:
    wave = long.samples(16_000)
    wanted = hf.ASTFeatureExtractor(max_length=98)(wave - wave.mean(), sampling_rate=16_000, return_tensors="pt")[
        "input_values"
    ][0]
    torch.testing.assert_close(
        build(TowerConfig("tiny"), "audio").preprocess(long).float(), wanted, atol=5e-3, rtol=1e-3
    )
    ours = build(TowerConfig("tiny", normalisation="kinetics-sounds"), "audio").preprocess(long).float()
    (mean, std), (mean_ks, std_ks) = NORMALISATIONS["audioset"], NORMALISATIONS["kinetics-sounds"]
    torch.testing.assert_close(ours, (wanted * 2 * std + mean - mean_ks) / (2 * std_ks), atol=5e-3, rtol=1e-3)


def test_the_window_cuts(long: Clip) -> None:
    tower = build(TowerConfig("tiny", seconds=0.5), "audio")
    assert len(tower.preprocess(long)) == 48 and tower.tokens == 7
    assert tower.fingerprint != build(TowerConfig("tiny"), "audio").fingerprint


@pytest.fixture
def ast(tmp_path: Path) -> Path:
    hf.ASTModel(hf.ASTConfig(max_length=64, num_mel_bins=32, patch_size=16, **SMALL)).save_pretrained(tmp_path)
    hf.ASTFeatureExtractor(num_mel_bins=32, max_length=64).save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def clap(tmp_path: Path) -> Path:
    audio = {
        "hidden_size": 32,
        "patch_embeds_hidden_size": 8,
        "depths": [1, 1],
        "num_attention_heads": [2, 2],
        "num_hidden_layers": 2,
    }
    audio |= {"num_mel_bins": 16, "spec_size": 64, "window_size": 4, "patch_size": 4, "patch_stride": [4, 4]}
    text = {**SMALL, "vocab_size": 20}
    hf.ClapModel(hf.ClapConfig(text_config=text, audio_config=audio, projection_dim=8)).save_pretrained(tmp_path)
    hf.ClapFeatureExtractor(
        feature_size=16, sampling_rate=48_000, max_length_s=1, truncation="rand_trunc"
    ).save_pretrained(tmp_path)
    return tmp_path


def wave(kind: str, tmp_path: Path, norm: str) -> Path:
    config = {"wav2vec2": hf.Wav2Vec2Config, "hubert": hf.HubertConfig, "wavlm": hf.WavLMConfig}[kind]
    model = {"wav2vec2": hf.Wav2Vec2Model, "hubert": hf.HubertModel, "wavlm": hf.WavLMModel}[kind]
    convs = {"conv_dim": (8, 8), "conv_stride": (5, 64), "conv_kernel": (10, 64), "num_feat_extract_layers": 2}
    more = {
        "num_conv_pos_embeddings": 4,
        "num_conv_pos_embedding_groups": 2,
        "feat_extract_norm": norm,
        "do_stable_layer_norm": norm == "layer",
    }
    model(config(**SMALL, **convs, **more)).save_pretrained(tmp_path)
    hf.Wav2Vec2FeatureExtractor(return_attention_mask=norm == "layer").save_pretrained(tmp_path)
    return tmp_path


def test_ast(ast: Path, long: Clip, short: Clip) -> None:
    tower = build(TowerConfig(f"hf:{ast}"), "audio")
    features = encode(tower, long, short)
    assert (
        tower.grid == (2, 5) and features.tokens.shape == (2, tower.tokens, 16) == (2, 12, 16) and features.mask.all()
    )
    model = hf.AutoModel.from_pretrained(ast).eval()
    inputs = hf.AutoFeatureExtractor.from_pretrained(ast)(
        long.samples(16_000, 10.0)[:10_240], sampling_rate=16_000, return_tensors="pt"
    )
    with torch.no_grad():
        wanted = model(**inputs).last_hidden_state[0]
    torch.testing.assert_close(features.tokens[0], wanted, atol=2e-2, rtol=1e-2)
    torch.testing.assert_close(features.pooled[0], wanted[0], atol=2e-2, rtol=1e-2)
    other = build(TowerConfig(f"hf:{ast}", normalisation="kinetics-sounds"), "audio")
    assert (
        other.fingerprint != tower.fingerprint
        and other.preprocess(long).float().mean() != tower.preprocess(long).float().mean()
    )


def test_clap(clap: Path, long: Clip, short: Clip) -> None:
    tower = build(TowerConfig(f"hf:{clap}"), "audio")
    features = encode(tower, long, short)
    assert (
        features.tokens.shape == (2, tower.tokens, tower.width)
        and features.pooled.shape == (2, tower.width)
        and features.tokens.isfinite().all()
    )
    again = encode(tower, long)
    torch.testing.assert_close(
        features.tokens[0], again.tokens[0], atol=1e-4, rtol=1e-4
    )  # nothing random in what is heard


@pytest.mark.parametrize(
    ("kind", "norm"), [("wav2vec2", "group"), ("wav2vec2", "layer"), ("hubert", "layer"), ("wavlm", "group")]
)
def test_waves(kind: str, norm: str, tmp_path: Path, long: Clip, short: Clip) -> None:
    tower = build(TowerConfig(f"hf:{wave(kind, tmp_path, norm)}", seconds=2.0), "audio")
    features = encode(tower, long, short)
    assert features.tokens.shape[2] == tower.width == 16 and tower.tokens >= features.tokens.shape[1] == int(
        features.mask[0].sum()
    )
    assert 1 <= int(features.mask[1].sum()) < features.tokens.shape[1]
    torch.testing.assert_close(features.pooled[0], features.tokens[0].mean(0), atol=1e-5, rtol=1e-5)
    if norm == "layer":
        torch.testing.assert_close(
            encode(tower, short).pooled[0], features.pooled[1], atol=1e-3, rtol=1e-3
        )  # padding changes nothing


def test_saved_and_built_again_without_the_source(ast: Path, tmp_path: Path, long: Clip) -> None:
    tower = build(TowerConfig(f"hf:{ast}"), "audio")
    spec = tower.save_assets(tmp_path / "kept")
    again = build(TowerConfig(spec), "audio")
    again.module.load_state_dict(tower.module.state_dict())
    torch.testing.assert_close(encode(again, long).tokens, encode(tower, long).tokens)
    assert build(TowerConfig("tiny"), "audio").save_assets(tmp_path) == "tiny"


@pytest.mark.parametrize(
    ("spec", "settings", "message"),
    [
        ("tiny:big", {}, "unknown tiny audio tower"),
        ("tinny", {}, "unknown tower family"),
        ("tiny", {"normalisation": "imagenet"}, "unknown normalisation.*audioset | kinetics-sounds"),
        ("hf:/no/such/folder", {}, "no model folder here"),
    ],
)
def test_what_cannot_be_built(spec: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(TowerError, match=message):
        build(TowerConfig(spec, **settings), "audio")


def test_a_model_of_another_kind(tmp_path: Path) -> None:
    hf.ViTModel(hf.ViTConfig(image_size=32, patch_size=16, **SMALL)).save_pretrained(tmp_path)
    hf.Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    with pytest.raises(TowerError, match="a vit model is no audio tower"):
        build(TowerConfig(f"hf:{tmp_path}"), "audio")
    wave("wav2vec2", tmp_path, "group")
    with pytest.raises(TowerError, match="no log-mel normalisation"):
        build(TowerConfig(f"hf:{tmp_path}", normalisation="audioset"), "audio")
