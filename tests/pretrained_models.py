"""Small dual encoders with random weights, in the folder layouts in which open_clip and transformers publish theirs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn

OPEN_CLIP_WEIGHTS = "open_clip_model.safetensors"
LOGIT_SCALE, LOGIT_BIAS = 3.3, -7.0
CONTEXT = 20
WORDS = "a dog two cats chase very long red ball over the green hills of distant land and never stop running at all"
TEXTS = [
    "a dog",
    f"two cats chase a very long red ball {WORDS} {WORDS}",
    "",
    "a red ball over the green hills!",
    "Two Cats &amp; a  DOG, never.",
]
"""Captions of different length: one is too long for every model here, and one is empty."""
VIT = {"layers": 2, "width": 64, "head_width": 16, "patch_size": 16, "image_size": 32}
TEXT = {"context_length": CONTEXT, "vocab_size": 49408, "width": 48, "heads": 4, "layers": 2}
HF_IMAGE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
HF_TEXT = {**HF_IMAGE, "hidden_size": 24, "vocab_size": 64, "max_position_embeddings": CONTEXT}
HF_VIT = {**HF_IMAGE, "image_size": 32, "patch_size": 8}
HF_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

OPEN_CLIP: dict[str, dict[str, Any]] = {
    "vit": {"embed_dim": 24, "vision_cfg": VIT, "text_cfg": TEXT},
    "vit-quick-avg": {
        "embed_dim": 24,
        "quick_gelu": True,
        "vision_cfg": {**VIT, "pool_type": "avg", "final_ln_after_pool": True},
        "text_cfg": TEXT,
    },
    "vit-attention": {
        "embed_dim": 24,
        "vision_cfg": {**VIT, "attentional_pool": True, "attn_pooler_heads": 4, "attn_pooler_queries": 8},
        "text_cfg": TEXT,
    },
    "resnet": {
        "embed_dim": 32,
        "vision_cfg": {"layers": [1, 1, 1, 1], "width": 16, "image_size": 64, "patch_size": None},
        "text_cfg": TEXT,
    },
    "timm": {
        "embed_dim": 24,
        "vision_cfg": {
            "timm_model_name": "test_resnet",
            "timm_model_pretrained": False,
            "timm_pool": "",
            "timm_proj": "linear",
            "image_size": 64,
        },
        "text_cfg": TEXT,
    },
    "siglip": {  # padding is the end-of-text token, punctuation is removed, and the last position is pooled
        "embed_dim": 64,
        "init_logit_bias": LOGIT_BIAS,
        "custom_text": True,
        "vision_cfg": {
            "timm_model_name": "test_vit",
            "timm_model_pretrained": False,
            "timm_pool": "map",
            "timm_proj": "none",
            "image_size": 64,
        },
        "text_cfg": {
            "context_length": 16,
            "vocab_size": 64,
            "hf_tokenizer_name": "in-this-folder",
            "tokenizer_kwargs": {"clean": "canonicalize"},
            "width": 64,
            "heads": 4,
            "layers": 2,
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
            "norm_kwargs": {"eps": 1e-6},
        },
    },
    "hf-bert": {
        "embed_dim": 24,
        "vision_cfg": VIT,
        "text_cfg": {
            "hf_tokenizer_name": "in-this-folder",
            "hf_pooler_type": "cls_pooler",
            "hf_proj_type": "linear",
            "context_length": CONTEXT,
        },
    },
    "hf-roberta": {
        "embed_dim": 24,
        "vision_cfg": VIT,
        "text_cfg": {
            "hf_tokenizer_name": "in-this-folder",
            "hf_pooler_type": "mean_pooler",
            "hf_proj_type": "mlp",
            "context_length": CONTEXT,
        },
    },
}
"""Kind of ``open_clip_folder`` -> ``model_cfg`` of open_clip_config.json."""

SMALL_RUN = {
    "optim.batch_size": 8,
    "loss.cross_start": 0.0,
    "loss.cross_ramp": 0.0,
    "eval.shortlist": 8,
    "eval.shortlist_back": 8,
    "model.width": 16,
    "device": "cpu",
}
"""Settings of a run of a few steps that starts from one of these models; the cross branch learns at once."""


def open_clip_folder(path: Path, kind: str = "vit") -> Path:
    """Writes a small dual encoder in open_clip's own layout.

    Args:
        path: new folder.
        kind: key of ``OPEN_CLIP``.
    Returns:
        The folder: ``open_clip:FOLDER`` is its SPEC, ``local-dir:FOLDER`` its name for open_clip.
    """
    path.mkdir(parents=True, exist_ok=True)
    model_config = json.loads(json.dumps(OPEN_CLIP[kind]))
    if "hf_pooler_type" in model_config["text_cfg"]:
        config = transformers.BertConfig if kind == "hf-bert" else transformers.XLMRobertaConfig
        # the positions of RoBERTa start behind those of its padding token
        config(**{**HF_TEXT, "max_position_embeddings": CONTEXT + 2}, **HF_IDS).save_pretrained(path / "bert")
        model_config["text_cfg"]["hf_model_name"] = str(path / "bert")
    if "hf_tokenizer_name" in model_config["text_cfg"]:
        word_tokenizer(CONTEXT, pad="</s>" if kind == "siglip" else "<pad>").save_pretrained(path)
    squash = kind == "siglip"
    preprocess = {
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.3, 0.25],
        "interpolation": "bicubic",
        "resize_mode": "squash" if squash else "shortest",
    }
    config_file = path / "open_clip_config.json"
    config_file.write_text(json.dumps({"model_cfg": model_config, "preprocess_cfg": preprocess}))
    model = open_clip.create_model(f"local-dir:{path}", load_weights=False, pretrained_text=False)
    randomise(model)
    with torch.no_grad():
        model.logit_scale.fill_(LOGIT_SCALE)
        if getattr(model, "logit_bias", None) is not None:
            model.logit_bias.fill_(LOGIT_BIAS)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path / OPEN_CLIP_WEIGHTS)
    return path


def hf_folder(path: Path, kind: str = "clip") -> Path:
    """Writes a small dual encoder of transformers, with its tokenizer and its image processor or feature extractor.

    Args:
        path: new folder; ``hf:FOLDER`` is its SPEC.
        kind: key of ``HF``.
    """
    path.mkdir(parents=True, exist_ok=True)
    model, processor = HF[kind]()
    randomise(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters(recurse=False):
            parameter.fill_({"temperature": 0.04, "logit_bias": LOGIT_BIAS}.get(name, LOGIT_SCALE))
    model.save_pretrained(path)
    processor.save_pretrained(path)
    word_tokenizer(CONTEXT).save_pretrained(path)
    return path


def word_tokenizer(context_length: int, pad: str = "<pad>") -> transformers.PreTrainedTokenizerFast:
    """A tokenizer of the words of ``TEXTS``: <s> words </s>, cut to ``context_length`` tokens."""
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3}
    for word in (*WORDS.split(), "!", "&", ",", "."):
        vocabulary.setdefault(word, len(vocabulary))
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))  # type: ignore[call-arg]
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [(token, vocabulary[token]) for token in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=ends)
    special = {"pad_token": pad, "eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>"}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=context_length, cls_token="<s>", sep_token="</s>", **special
    )


def randomise(model: nn.Module) -> None:
    """Draws weights that are large enough for every part of a model to have an effect, and biases that are not zero."""
    generator = torch.Generator().manual_seed(3)

    def normal(tensor: torch.Tensor, mean: float, std: float) -> None:
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * std + mean)

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                normal(parameter, 0.0, 1.2 / math.sqrt(parameter[0].numel()))
            else:  # a norm's weight, or a bias
                normal(parameter, 1.0 if name.endswith("weight") else 0.0, 0.2)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                normal(buffer, 0.0, 0.2)
            elif name.endswith("running_var"):
                buffer.copy_(1 + torch.rand(buffer.shape, generator=generator))


def _clip() -> tuple[Any, Any]:
    config = transformers.CLIPConfig(vision_config=HF_VIT, text_config={**HF_TEXT, **HF_IDS}, projection_dim=16)
    return transformers.CLIPModel(config), _cropping(transformers.CLIPImageProcessor)


def _siglip() -> tuple[Any, Any]:
    text = {**HF_TEXT, **HF_IDS, "hidden_size": 32, "projection_size": 32}
    model = transformers.SiglipModel(transformers.SiglipConfig(vision_config=HF_VIT, text_config=text))
    return model, transformers.SiglipImageProcessor(size={"height": 32, "width": 32})


def _chinese_clip() -> tuple[Any, Any]:
    config = transformers.ChineseCLIPConfig(vision_config=HF_VIT, text_config=HF_TEXT, projection_dim=16)
    return transformers.ChineseCLIPModel(config), _cropping(transformers.ChineseCLIPImageProcessor)


def _align() -> tuple[Any, Any]:
    vision = {
        "image_size": 64,
        "hidden_dim": 64,
        "width_coefficient": 1.0,
        "depth_coefficient": 1.0,
        "in_channels": [32, 16],
        "out_channels": [16, 64],
        "strides": [1, 2],
        "kernel_sizes": [3, 3],
        "num_block_repeats": [1, 1],
        "expand_ratios": [1, 6],
        "depthwise_padding": [],
    }
    config = transformers.AlignConfig(vision_config=vision, text_config=HF_TEXT, projection_dim=64)
    processor = transformers.EfficientNetImageProcessor(
        size={"height": 64, "width": 64}, crop_size={"height": 60, "width": 60}, do_center_crop=True, include_top=False
    )
    return transformers.AlignModel(config), processor


def _altclip() -> tuple[Any, Any]:
    text = {**HF_TEXT, "max_position_embeddings": CONTEXT + 2, "project_dim": 20, **HF_IDS}
    config = transformers.AltCLIPConfig(vision_config=HF_VIT, text_config=text, projection_dim=16)
    return transformers.AltCLIPModel(config), _cropping(transformers.CLIPImageProcessor)


def _metaclip_2() -> tuple[Any, Any]:
    config = transformers.MetaClip2Config(vision_config=HF_VIT, text_config={**HF_TEXT, **HF_IDS}, projection_dim=16)
    return transformers.MetaClip2Model(config), _cropping(transformers.CLIPImageProcessor)


def _vision_text() -> tuple[Any, Any]:
    vision, text = (
        transformers.ViTModel(transformers.ViTConfig(**HF_VIT)),
        transformers.BertModel(transformers.BertConfig(**HF_TEXT, **HF_IDS)),
    )
    model = transformers.VisionTextDualEncoderModel(vision_model=vision, text_model=text)
    return model, _cropping(transformers.ViTImageProcessor)


def _clap() -> tuple[Any, Any]:
    audio = {
        "hidden_size": 16,
        "patch_embeds_hidden_size": 8,
        "depths": [1, 1],
        "num_attention_heads": [2, 2],
        "num_hidden_layers": 2,
        "num_mel_bins": 16,
        "spec_size": 64,
        "window_size": 4,
        "patch_size": 4,
        "patch_stride": [4, 4],
    }
    text = {**HF_TEXT, "max_position_embeddings": CONTEXT + 2, **HF_IDS}
    config = transformers.ClapConfig(text_config=text, audio_config=audio, projection_dim=8)
    extractor = transformers.ClapFeatureExtractor(
        feature_size=16, sampling_rate=48_000, max_length_s=1, truncation="rand_trunc"
    )
    return transformers.ClapModel(config), extractor


def _clap_fusion() -> tuple[Any, Any]:
    model, extractor = _clap()
    model.config.audio_config.enable_fusion = True
    extractor.truncation = "fusion"
    return type(model)(model.config), extractor


def _cropping(processor: Any) -> Any:
    return processor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, do_center_crop=True)


HF: dict[str, Callable[[], tuple[Any, Any]]] = {
    "clip": _clip,
    "siglip": _siglip,
    "chinese_clip": _chinese_clip,
    "align": _align,
    "altclip": _altclip,
    "metaclip_2": _metaclip_2,
    "vision-text-dual-encoder": _vision_text,
    "clap": _clap,
    "clap-fusion": _clap_fusion,
}
"""Kind of ``hf_folder`` -> () -> (model, image processor or feature extractor)."""
