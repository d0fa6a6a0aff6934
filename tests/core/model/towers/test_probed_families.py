"""Small random models of many architectures pass the checks at build, with the outputs of their own library, or are
refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import transformers as hf
from torch import Tensor

from ccaco_cli.core.config import TowerConfig
from ccaco_cli.core.data.loader import pad
from ccaco_cli.core.errors import TowerError
from ccaco_cli.core.experiments.request import TrainRequest
from ccaco_cli.core.model.towers import build
from ccaco_cli.core.model.towers.probing import RandomRecording
from ccaco_cli.core.model.towers.tower import Tower
from ccaco_cli.core.types import Features
from ccaco_cli.core.workflows.train import train
from tests.core.model.towers.test_hf import CLIP_IDS, SMALL, TEXTS, WORDS, save_tokenizer
from tests.core.model.towers.test_open_clip import VIT, folder
from tests.towers import check_reduced_precision

VOCABULARY = {"vocab_size": len(WORDS)}
POSITIONS = {"max_position_embeddings": 24}
IMAGE = {"image_size": 32, "patch_size": 8}
T5 = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0, **VOCABULARY}
BART = {"d_model": 32, "decoder_start_token_id": 2, **VOCABULARY, **POSITIONS, **CLIP_IDS} | {
    f"{part}_{name}": number
    for part in ("encoder", "decoder")
    for name, number in {"layers": 2, "attention_heads": 2, "ffn_dim": 64}.items()
}
GPT = {**VOCABULARY, "bos_token_id": 2, "eos_token_id": 3}
SIGLIP_TEXT = {**SMALL, **VOCABULARY, **CLIP_IDS, "max_position_embeddings": 20}
CLIP_TEXT = SIGLIP_TEXT
SWIN = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4, "image_size": 32, "patch_size": 2}
Make = Callable[[], Any]


def save(model: Any, path: Path, modality: str = "text") -> str:
    torch.manual_seed(0)
    for parameter in model.parameters():  # larger than at the start of a training, so that faults show
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    model.eval().save_pretrained(path)
    if modality == "text":
        save_tokenizer(path)
    else:
        hf.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(path)
    return f"hf:{path}"


def encode_texts(tower: Tower, texts: list[str]) -> Features:
    """Encodes texts as the loader batches them: cut to the longest text."""
    inputs = tower.preprocess(texts)
    longest = int(inputs["mask"].sum(1).max())
    with torch.no_grad():
        features: Features = tower.module.eval()({k: inputs[k][:, :longest] for k in ("ids", "mask")})
    return features


def close(values: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(values, expected, atol=tolerance, rtol=tolerance)


def check_neighbours(tower: Tower) -> None:
    """Each text has the same output alone and in a batch of longer and shorter texts."""
    batched = encode_texts(tower, TEXTS)
    for row, text in enumerate(TEXTS):
        alone = encode_texts(tower, [text])
        close(alone.pooled[0], batched.pooled[row])
        close(alone.tokens[0], batched.tokens[row, : alone.tokens.shape[1]])


ENCODER_DECODERS: dict[str, Make] = {
    "t5": lambda: hf.T5Model(hf.T5Config(**T5)),
    "t5 encoder": lambda: hf.T5EncoderModel(hf.T5Config(**T5)),
    "mt5": lambda: hf.MT5Model(hf.MT5Config(**T5)),
    "bart": lambda: hf.BartModel(hf.BartConfig(**BART)),
    "pegasus": lambda: hf.PegasusModel(hf.PegasusConfig(**BART)),
}


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_of_an_encoder_decoder_the_encoder_is_used(name: str, tmp_path: Path) -> None:
    model = ENCODER_DECODERS[name]()
    tower = build(TowerConfig(save(model, tmp_path)), "text")
    inputs = tower.preprocess(["a dog runs"])
    with torch.no_grad():
        expected = model.get_encoder()(input_ids=inputs["ids"]).last_hidden_state[0]
    features = encode_texts(tower, ["a dog runs"])
    close(features.tokens[0], expected)
    close(features.pooled[0], expected.mean(0))
    assert tower.pooled_from == "mean"
    assert not [key for key, _ in tower.module.named_parameters() if "decoder" in key]
    check_neighbours(tower)
    if name in ("t5", "bart"):
        check_reduced_precision(tower, tower.preprocess(TEXTS))
    rebuilt = build(TowerConfig(tower.save_assets(tmp_path / "assets")), "text")
    rebuilt.module.load_state_dict(tower.module.state_dict())
    tower.module.set_grad_checkpointing(True)  # type: ignore[operator]


CAUSAL_MODELS: dict[str, Make] = {
    "gpt2": lambda: hf.GPT2Model(hf.GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=24, **GPT)),
    "gpt_neo": lambda: hf.GPTNeoModel(
        hf.GPTNeoConfig(
            hidden_size=32, num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]], **GPT, **POSITIONS
        )
    ),
    "opt": lambda: hf.OPTModel(
        hf.OPTConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            ffn_dim=64,
            word_embed_proj_dim=16,
            **POSITIONS,
            **VOCABULARY,
            **CLIP_IDS,
        )
    ),
    "llama": lambda: hf.LlamaModel(hf.LlamaConfig(num_key_value_heads=2, **SMALL, **POSITIONS, **GPT, pad_token_id=0)),
    "mamba": lambda: hf.MambaModel(hf.MambaConfig(hidden_size=32, num_hidden_layers=2, state_size=4, **GPT)),
}


def save_tokenizer_without_padding(path: Path, **special: str) -> None:
    words = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    hf.PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=20, **special).save_pretrained(path)


@pytest.mark.parametrize("name", CAUSAL_MODELS)
def test_causal_models_pool_the_last_real_token(name: str, tmp_path: Path) -> None:
    model, spec = CAUSAL_MODELS[name](), ""
    spec = save(model, tmp_path)
    for file in tmp_path.glob("*token*"):
        file.unlink()
    save_tokenizer_without_padding(tmp_path, eos_token="[SEP]", unk_token="[UNK]")
    tower = build(TowerConfig(spec), "text")
    assert tower.pooled_from == "last"
    features = encode_texts(tower, TEXTS)
    for row, text in enumerate(TEXTS):
        ids = tower.preprocess([text])["ids"]
        with torch.no_grad():
            expected = model(input_ids=ids).last_hidden_state[0]
        close(features.tokens[row, : len(expected)], expected)
        close(features.pooled[row], expected[-1])
    check_neighbours(tower)
    check_reduced_precision(tower, tower.preprocess(TEXTS))


def test_a_tokenizer_without_any_special_token_is_refused(tmp_path: Path) -> None:
    spec = save(CAUSAL_MODELS["gpt2"](), tmp_path)
    for file in tmp_path.glob("*token*"):
        file.unlink()
    save_tokenizer_without_padding(tmp_path)
    with pytest.raises(TowerError, match="tokenizer of this model has no padding token"):
        build(TowerConfig(spec), "text")


def siglip() -> Any:
    vision = {**SMALL, **IMAGE}
    return hf.SiglipModel(hf.SiglipConfig(text_config=SIGLIP_TEXT, vision_config=vision))


@pytest.mark.parametrize("context_length", [0, 12, 20])
def test_siglip_pools_the_last_position_of_the_full_length(context_length: int, tmp_path: Path) -> None:
    model = siglip()
    tower = build(TowerConfig(save(model, tmp_path), context_length=context_length), "text")
    assert tower.tokens == (context_length or 20)
    check_neighbours(tower)
    features = encode_texts(tower, TEXTS[:2])
    ids = hf.AutoTokenizer.from_pretrained(tmp_path)(
        TEXTS[:2], padding="max_length", max_length=20, return_tensors="pt"
    )["input_ids"]
    with torch.no_grad():
        expected = model.text_model(input_ids=ids)
    close(features.pooled, expected.pooler_output)
    close(features.tokens, expected.last_hidden_state[:, : features.tokens.shape[1]])
    check_neighbours(build(TowerConfig(f"hf:{tmp_path}", context_length=40), "text"))


def test_siglip_gives_several_states_too(tmp_path: Path) -> None:
    tower = build(TowerConfig(save(siglip(), tmp_path), states=3), "text")
    assert tower.width == 96
    check_neighbours(tower)


@pytest.mark.parametrize(
    "text",
    [
        {"no_causal_mask": True, "pool_type": "last"},
        {"no_causal_mask": True, "pool_type": "first"},
        {"no_causal_mask": True},
        {},
    ],
    ids=["siglip", "first", "bidirectional", "clip"],
)
def test_open_clip_texts_do_not_depend_on_their_batch(text: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    tower = build(TowerConfig(f"open_clip:{folder(tmp_path, VIT, **text)}@none"), "text")
    torch.nn.init.normal_(tower.module.body.positional_embedding)  # type: ignore[union-attr, arg-type]
    check_neighbours(tower)
    if text:  # what open_clip computes on its own padding
        ids = tower.preprocess(TEXTS)["ids"]
        with torch.no_grad():
            close(encode_texts(tower, TEXTS).pooled, tower.module.body(ids))  # type: ignore[operator]


TEXT_MODELS: dict[str, Make] = {
    "distilbert": lambda: hf.DistilBertModel(
        hf.DistilBertConfig(dim=32, n_layers=2, n_heads=2, hidden_dim=64, **VOCABULARY, **POSITIONS)
    ),
    "mpnet": lambda: hf.MPNetModel(hf.MPNetConfig(**SMALL, **VOCABULARY, max_position_embeddings=26, pad_token_id=0)),
    "roberta": lambda: hf.RobertaModel(hf.RobertaConfig(**SMALL, **VOCABULARY, **CLIP_IDS, max_position_embeddings=26)),
    "electra": lambda: hf.ElectraModel(hf.ElectraConfig(**SMALL, **VOCABULARY, **POSITIONS, embedding_size=16)),
    "albert": lambda: hf.AlbertModel(
        hf.AlbertConfig(**SMALL, **VOCABULARY, **POSITIONS, **CLIP_IDS, embedding_size=16)
    ),
    "xlnet": lambda: hf.XLNetModel(hf.XLNetConfig(d_model=32, n_layer=2, n_head=2, d_inner=64, **VOCABULARY)),
    "longformer": lambda: hf.LongformerModel(
        hf.LongformerConfig(**SMALL, **VOCABULARY, attention_window=4, max_position_embeddings=26, pad_token_id=0)
    ),
}


@pytest.mark.parametrize("name", TEXT_MODELS)
def test_bidirectional_encoders_pool_the_mean(name: str, tmp_path: Path) -> None:
    tower = build(TowerConfig(save(TEXT_MODELS[name](), tmp_path)), "text")
    assert tower.pooled_from == "mean"
    check_neighbours(tower)


def test_a_clip_text_model_by_itself_pools_the_end_of_text(tmp_path: Path) -> None:
    model = hf.CLIPTextModel(hf.CLIPTextConfig(**CLIP_TEXT))
    tower = build(TowerConfig(save(model, tmp_path)), "text")
    assert tower.pooled_from == "last"
    with torch.no_grad():
        close(encode_texts(tower, TEXTS[:1]).pooled, model(tower.preprocess(TEXTS[:1])["ids"]).pooler_output)


def test_roberta_counts_its_positions_behind_the_padding_token(tmp_path: Path) -> None:
    config = hf.RobertaConfig(**SMALL, **VOCABULARY, **CLIP_IDS, max_position_embeddings=14)
    tower = build(TowerConfig(save(hf.RobertaModel(config), tmp_path)), "text")
    assert tower.tokens == 13  # position 0 is that of padding
    assert encode_texts(tower, ["dog " * 40]).mask.sum() == 13


def test_a_longer_context_is_probed_with_a_text_that_fills_it(tmp_path: Path) -> None:
    tower = build(TowerConfig(save(CAUSAL_MODELS["gpt2"](), tmp_path), context_length=40), "text")
    assert encode_texts(tower, ["dog " * 60]).mask.sum() == 40
    bart = save(ENCODER_DECODERS["bart"](), tmp_path / "bart")  # its table has another name, and is not extended
    with pytest.raises(TowerError, match="cannot encode its text inputs"):
        build(TowerConfig(bart, context_length=40), "text")


REFUSED_TEXT: dict[str, tuple[Make, str]] = {
    "fnet": (
        lambda: hf.FNetModel(
            hf.FNetConfig(hidden_size=32, num_hidden_layers=2, intermediate_size=64, **VOCABULARY, **POSITIONS)
        ),
        "changes with padding",
    ),
    "convbert": (
        lambda: hf.ConvBertModel(hf.ConvBertConfig(**SMALL, **VOCABULARY, **POSITIONS, embedding_size=16)),
        "changes with padding",
    ),
    "funnel": (
        lambda: hf.FunnelModel(
            hf.FunnelConfig(d_model=32, n_head=2, d_head=16, d_inner=64, block_sizes=[1, 1], **VOCABULARY)
        ),
        "changes with padding",
    ),
    "whisper": (
        lambda: hf.WhisperModel(hf.WhisperConfig(**BART, num_mel_bins=8)),
        "no text tower can be built of this model",
    ),
    "siglip text": (
        lambda: hf.SiglipTextModel(hf.SiglipTextConfig(**SIGLIP_TEXT)),
        "transformers has no encoder for a siglip_text_model model",
    ),
}


@pytest.mark.parametrize("name", REFUSED_TEXT)
def test_text_models_that_are_refused(name: str, tmp_path: Path) -> None:
    make, message = REFUSED_TEXT[name]
    with pytest.raises(TowerError, match=message) as caught:
        build(TowerConfig(save(make(), tmp_path)), "text")
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["t5", "gpt2", "siglip"])
def test_corrected_texts_train(name: str, data_root: Path, small: dict[str, Any], tmp_path: Path) -> None:
    make = siglip if name == "siglip" else {**ENCODER_DECODERS, **CAUSAL_MODELS}[name]
    spec = save(make(), tmp_path / "model")
    settings = small | {"model.text.spec": spec, "optim.epochs": 1}
    run = train(TrainRequest("scenes", explicit=settings), tmp_path / "run", data_root=data_root)
    assert run.facts["metrics"]


def test_a_refused_tower_is_one_line_and_exit_code_2(
    ccaco: Callable[..., Any], data_root: Path, tmp_path: Path
) -> None:
    spec = save(REFUSED_TEXT["fnet"][0](), tmp_path / "model")
    done = ccaco(
        *("train", "--dataset", "scenes", "--data", data_root, "--logs", tmp_path / "runs", "--name", "refused"),
        *("--text-tower", spec, "--device", "cpu"),
    )
    assert done.code == 2
    assert "the output of this tower changes with padding: hf:" in done.err.splitlines()[-1]
    assert not (tmp_path / "runs" / "refused").exists()


def encode_images(tower: Tower, count: int = 3) -> Features:
    height, width = tower.input_size or (0, 0)
    pixels = torch.randint(0, 256, (count, 3, height, width), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features: Features = tower.module.eval()({"pixels": pixels.to(torch.uint8)})
    return features


def test_a_masked_autoencoder_keeps_all_patches_in_order(tmp_path: Path) -> None:
    tower = build(
        TowerConfig(save(hf.ViTMAEModel(hf.ViTMAEConfig(**SMALL, **IMAGE)), tmp_path, "image"), size=48), "image"
    )
    assert (tower.tokens, tower.grid, tower.pooled_from) == (37, (6, 6), "first")
    tower = build(TowerConfig(f"hf:{tmp_path}"), "image")
    assert (tower.tokens, tower.grid) == (17, (4, 4))
    first, second = encode_images(tower), encode_images(tower)
    assert torch.equal(first.tokens, second.tokens)
    check_reduced_precision(tower, {"pixels": torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)})
    # a ViT with the same weights has neither masking nor shuffling
    vit = hf.ViTModel(hf.ViTConfig(**SMALL, **IMAGE), add_pooling_layer=False).eval()
    missing = vit.load_state_dict(hf.AutoModel.from_pretrained(tmp_path).state_dict(), strict=False)
    assert not missing.missing_keys
    assert not missing.unexpected_keys
    tower.module.body = vit
    tower.module.masks_patches = False  # type: ignore[assignment]
    close(encode_images(tower).tokens, first.tokens)


IMAGE_MODELS: dict[str, tuple[Make, tuple[int, tuple[int, int] | None, str]]] = {
    "vit_msn": (lambda: hf.ViTMSNModel(hf.ViTMSNConfig(**SMALL, **IMAGE)), (17, (4, 4), "first")),
    "deit": (lambda: hf.DeiTModel(hf.DeiTConfig(**SMALL, **IMAGE)), (18, (4, 4), "first")),
    "beit": (lambda: hf.BeitModel(hf.BeitConfig(**SMALL, **IMAGE)), (17, (4, 4), "first")),
    "dinov2 with registers": (
        lambda: hf.Dinov2WithRegistersModel(hf.Dinov2WithRegistersConfig(**SMALL, **IMAGE)),
        (21, (4, 4), "first"),
    ),
    "ijepa": (lambda: hf.IJepaModel(hf.IJepaConfig(**SMALL, **IMAGE)), (16, (4, 4), "mean")),
    "siglip": (siglip, (16, (4, 4), "model")),
    "yolos": (
        lambda: hf.YolosModel(hf.YolosConfig(**SMALL, **IMAGE | {"image_size": [32, 32]}, num_detection_tokens=5)),
        (17, (4, 4), "first"),
    ),
    "swin": (lambda: hf.SwinModel(hf.SwinConfig(**SWIN)), (64, None, "mean")),
    "focalnet": (
        lambda: hf.FocalNetModel(
            hf.FocalNetConfig(
                image_size=32, embed_dim=8, depths=[1, 1], focal_levels=[1, 1], focal_windows=[1, 1], hidden_sizes=[8]
            )
        ),
        (16, None, "mean"),
    ),
}


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_image_models_have_the_declared_tokens_and_pooling(name: str, tmp_path: Path) -> None:
    make, expected = IMAGE_MODELS[name]
    tower = build(TowerConfig(save(make(), tmp_path, "image")), "image")
    assert (tower.tokens, tower.grid, tower.pooled_from) == expected
    batched, alone = encode_images(tower, 3), encode_images(tower, 1)
    close(batched.pooled[:1], alone.pooled)


@pytest.mark.parametrize("kind", ["clip", "altclip", "chinese_clip", "metaclip_2"])
def test_clip_like_images_pool_the_normalised_class_token(kind: str, tmp_path: Path) -> None:
    text: dict[str, Any] = {**CLIP_TEXT, **({"project_dim": 32} if kind == "altclip" else {})}
    config, model = {
        "clip": (hf.CLIPConfig, hf.CLIPModel),
        "altclip": (hf.AltCLIPConfig, hf.AltCLIPModel),
        "chinese_clip": (hf.ChineseCLIPConfig, hf.ChineseCLIPModel),
        "metaclip_2": (hf.MetaClip2Config, hf.MetaClip2Model),
    }[kind]
    pretrained = model(config(text_config=text, vision_config={**SMALL, **IMAGE}))
    tower = build(TowerConfig(save(pretrained, tmp_path, "image")), "image")
    features = encode_images(tower, 1)
    pixels = torch.randint(0, 256, (1, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        values = (pixels.to(torch.uint8).float() - tower.module.mean) / tower.module.std  # type: ignore[operator]
        close(features.pooled, pretrained.vision_model(pixel_values=values).pooler_output)


REFUSED_IMAGE: dict[str, Make] = {
    "siglip2": lambda: hf.Siglip2VisionModel(hf.Siglip2VisionConfig(**SMALL, patch_size=8, num_patches=16)),
    "imagegpt": lambda: hf.ImageGPTModel(hf.ImageGPTConfig(n_embd=32, n_layer=1, n_head=2)),
    "videomae": lambda: hf.VideoMAEModel(hf.VideoMAEConfig(**SMALL, **IMAGE, num_frames=4)),
}


@pytest.mark.parametrize("name", REFUSED_IMAGE)
def test_image_models_that_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(TowerError) as caught:
        build(TowerConfig(save(REFUSED_IMAGE[name](), tmp_path, "image")), "image")
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["test_vit", "test_vit2", "test_vit_relpos", "test_convnext", "test_efficientnet", "test_nfnet"]
)
def test_timm_models_pass(name: str) -> None:
    tower = build(TowerConfig(f"timm:{name}@none"), "image")
    close(encode_images(tower, 3).pooled[:1], encode_images(tower, 1).pooled)


def test_a_timm_model_with_several_feature_maps_is_refused() -> None:
    with pytest.raises(TowerError, match=r"no image tower can be built of this model.*timm:crossvit_9_240@none"):
        build(TowerConfig("timm:crossvit_9_240@none"), "image")


@pytest.mark.parametrize("pooling", [{}, {"pool_type": "avg"}, {"attentional_pool": True}])
def test_open_clip_images_say_how_they_pool(pooling: dict[str, Any], tmp_path: Path) -> None:
    tower = build(TowerConfig(f"open_clip:{folder(tmp_path, VIT | pooling)}@none"), "image")
    assert tower.pooled_from == ("model" if "pool_type" in pooling else "mean" if pooling else "first")


WAVES = ("Wav2Vec2", "Hubert", "WavLM", "UniSpeech", "UniSpeechSat", "Data2VecAudio", "Wav2Vec2Conformer")


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask:UserWarning")  # WavLM of transformers
@pytest.mark.parametrize("norm", ["group", "layer"])
@pytest.mark.parametrize("kind", WAVES)
def test_recordings_do_not_depend_on_the_length_of_others(kind: str, norm: str, tmp_path: Path) -> None:
    convolutions = {"conv_dim": (8, 8), "conv_stride": (5, 64), "conv_kernel": (10, 64), "num_feat_extract_layers": 2}
    positions = {"num_conv_pos_embeddings": 5 if kind == "Data2VecAudio" else 4, "num_conv_pos_embedding_groups": 2}
    config = getattr(hf, f"{kind}Config")(
        **SMALL, **convolutions, **positions, feat_extract_norm=norm, do_stable_layer_norm=norm == "layer"
    )
    torch.manual_seed(0)
    getattr(hf, f"{kind}Model")(config).save_pretrained(tmp_path)
    hf.Wav2Vec2FeatureExtractor(return_attention_mask=norm == "layer").save_pretrained(tmp_path)
    tower = build(TowerConfig(f"hf:{tmp_path}", seconds=1.0), "audio")
    assert tower.pooled_from == "mean"
    recordings = [RandomRecording(seed, seconds) for seed, seconds in enumerate((0.8, 0.3, 1.0, 0.3, 0.2))]
    values = [tower.preprocess(recording) for recording in recordings]
    with torch.no_grad():
        batched = tower.module.eval()(pad(values))
        for row, sample in enumerate(values):
            alone = tower.module(pad([sample]))
            close(batched.pooled[row], alone.pooled[0], 1e-3)
            close(batched.tokens[row, : alone.tokens.shape[1]], alone.tokens[0], 1e-3)
            assert int(batched.mask[row].sum()) == alone.tokens.shape[1]


def test_a_video_model_with_frames_of_another_size_is_refused(tmp_path: Path) -> None:
    spec = save(hf.VideoMAEModel(hf.VideoMAEConfig(**SMALL, **IMAGE, num_frames=4)), tmp_path, "image")
    with pytest.raises(TowerError, match=r"cannot encode its video inputs.*expected the size"):
        build(TowerConfig(spec, size=48, seconds=1.0), "video")


@pytest.mark.parametrize("modality", ["audio", "video"])
def test_clip_models_of_no_known_kind_are_refused(modality: str, tmp_path: Path) -> None:
    if modality == "audio":
        hf.WhisperModel(hf.WhisperConfig(**BART, num_mel_bins=8)).save_pretrained(tmp_path)
        hf.WhisperFeatureExtractor(feature_size=8).save_pretrained(tmp_path)
    else:
        save(hf.ViTMAEModel(hf.ViTMAEConfig(**SMALL, **IMAGE)), tmp_path, "image")
    with pytest.raises(TowerError, match=f"a (whisper|vit_mae) model is no {modality} tower"):
        build(TowerConfig(f"hf:{tmp_path}"), modality)
