"""Text and image towers of transformers: any AutoModel with ``last_hidden_state``, from the hub or a folder."""

from __future__ import annotations

import inspect
import json
import math
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer
from transformers.utils import logging as hf_logging

from ccaco_cli.core.config import TowerConfig
from ccaco_cli.core.errors import TowerError
from ccaco_cli.core.model.attention import masked_mean
from ccaco_cli.core.model.towers.image_base import (
    ImageEncoding,
    ImageModule,
    ImagePreprocess,
    feature_map_tokens,
    image_tower,
    pooled_if_token_width,
)
from ccaco_cli.core.model.towers.positions import extend_embeddings
from ccaco_cli.core.model.towers.text_tokenizers import HfTokens
from ccaco_cli.core.model.towers.tower import PositionRule, Tower, TowerSpec
from ccaco_cli.core.model.towers.weights import (
    RANDOM,
    check_state_keys,
    fingerprint,
    hub_access,
    load_state,
    read_state,
    weights_file,
)
from ccaco_cli.core.types import Features

BODY = {"image": "vision_model", "text": "text_model"}
"""Modality -> attribute of a CLIP-like model that holds its encoder."""
NO_LIMIT = 1 << 20
"""Tokenizers without a limit report 1e30 tokens."""


class HfTextModule(nn.Module):
    """Token states of a transformers text encoder; pooled is the masked mean, or the model's own.

    Args:
        model: the transformers model.
        use_pooler: take the model's own pooled output.
    """

    def __init__(self, model: Any, *, use_pooler: bool):
        super().__init__()
        self.body, self.use_pooler = model, use_pooler
        self.num_layers: int = getattr(model.config, "num_hidden_layers", 0)
        self.selected_layers: Sequence[int] = [self.num_layers]

    def forward(self, inputs: dict[str, Tensor]) -> Features:
        ids, mask, lower_layers = inputs["ids"], inputs["mask"], self.selected_layers[:-1]
        output = self.body(input_ids=ids, attention_mask=mask.long(), output_hidden_states=bool(lower_layers))
        tokens = output.last_hidden_state
        if lower_layers:  # many models normalise the states of the last layer only
            states = (F.layer_norm(output.hidden_states[layer], tokens.shape[-1:]) for layer in lower_layers)
            tokens = torch.cat([*states, tokens], -1)
        pooled = pooled_if_token_width(output.pooler_output, tokens) if self.use_pooler else None
        return Features(tokens, mask, masked_mean(tokens, mask) if pooled is None else pooled)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        set_grad_checkpointing(self.body, enable)

    def select_hidden_states(self, layers: Sequence[int]) -> None:
        self.selected_layers = layers

    def extend_context(self, count: int, rule: PositionRule) -> None:
        extend_embeddings(self.body, count, rule)


class HfImageModule(ImageModule):
    """Normalised patch tokens of a transformers vision encoder (special tokens first), or its last feature map."""

    def __init__(self, model: Any, preprocess: ImagePreprocess):
        super().__init__(preprocess)
        self.body = model
        self.grid = _patch_grid(model.config, preprocess.size)
        config_size = getattr(model.config, "image_size", preprocess.size[0])
        resized = (
            preprocess.size[0] != config_size
            and "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
        )
        self.options = {"interpolate_pos_encoding": True} if resized else {}
        # CLIP normalises its class token only; the patches get the same norm, so that all tokens lie in one space.
        self.norm_last = model.config.model_type == "clip_vision_model"

    def encode(self, pixels: Tensor) -> ImageEncoding:
        output = self.body(pixel_values=pixels, **self.options)
        tokens = output.last_hidden_state
        if tokens.dim() == 4:
            return feature_map_tokens(tokens)
        if self.norm_last:
            tokens = self.body.post_layernorm(tokens)
        grid = self.grid if self.grid and math.prod(self.grid) <= tokens.shape[1] else None
        if grid is None or math.prod(grid) < tokens.shape[1]:
            return tokens, tokens[:, 0], grid  # the first token is a class token
        return tokens, pooled_if_token_width(getattr(output, "pooler_output", None), tokens), grid

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        set_grad_checkpointing(self.body, enable)


def build_image(spec: TowerSpec, config: TowerConfig) -> Tower:
    """Builds the image tower of ``hf:NAME[@REVISION|FILE|none]`` or ``hf:FOLDER[@FILE|none]``.

    Pooled is the class token; where there is none, the output of the model's pooler, or the mean.
    ``save_assets`` writes the config and the image processor.
    """
    hf_config, processor, model = load_pretrained(spec, AutoImageProcessor)
    body, _ = _encoder(model, "image")
    preprocess = image_preprocess(processor, config.size, spec)
    module = HfImageModule(body, preprocess)
    return image_tower(
        spec,
        module,
        preprocess,
        pretrained=spec.weights != RANDOM,
        facts=(architecture_json(body.config),),
        save_assets=partial(save_components, [hf_config.save_pretrained, processor.save_pretrained]),
        set_grad_checkpointing=module.set_grad_checkpointing,
    )


def build_text(spec: TowerSpec, config: TowerConfig) -> Tower:
    """Builds the text tower of ``hf:NAME[@REVISION|FILE|none]`` or ``hf:FOLDER[@FILE|none]``.

    Tokens are ``last_hidden_state``; pooled is their masked mean (as of sentence encoders), or the end-of-text state of
    CLIP-like models. ``save_assets`` writes the config and the tokenizer.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads do not survive the fork of loader workers
    hf_config, hf_tokenizer, model = load_pretrained(spec, AutoTokenizer)
    body, clip_like = _encoder(model, "text")
    hf_tokenizer.padding_side = hf_tokenizer.truncation_side = "right"
    if hf_tokenizer.pad_token is None:
        hf_tokenizer.pad_token = hf_tokenizer.eos_token
    limits = [
        hf_tokenizer.model_max_length,
        getattr(body.config, "max_position_embeddings", NO_LIMIT),
        config.context_length or NO_LIMIT,
    ]
    tokenizer = HfTokens(hf_tokenizer, int(min(limits)))
    module = HfTextModule(body, use_pooler=clip_like)
    return Tower(
        spec=spec,
        modality="text",
        module=module,
        preprocess=tokenizer,
        width=body.config.hidden_size,
        tokens=tokenizer.context_length,
        grid=None,
        pretrained=spec.weights != RANDOM,
        fingerprint=fingerprint(module, spec.family, architecture_json(body.config), tokenizer),
        save_assets=partial(save_components, [hf_config.save_pretrained, hf_tokenizer.save_pretrained]),
        tokenizer=tokenizer,
        set_grad_checkpointing=module.set_grad_checkpointing,
        hidden_states=module.num_layers + 1,
        select_hidden_states=module.select_hidden_states,
        extend_context=module.extend_context,
    )


def _encoder(model: Any, modality: str) -> tuple[Any, bool]:
    """Returns the encoder of one modality, and whether the model is CLIP-like (has one for each modality)."""
    clip_like = hasattr(model, BODY[modality])
    body = getattr(model, BODY[modality]) if clip_like else model
    if "add_pooling_layer" in inspect.signature(type(body).__init__).parameters:
        body.pooler = None  # it was trained on other tasks, and would get no gradient here
    return body, clip_like


def load_pretrained(spec: TowerSpec, auto_processor: Any) -> tuple[Any, Any, Any]:
    """Loads ``hf:NAME|FOLDER[@REVISION|FILE|none]``.

    Args:
        auto_processor: the Auto class of the preprocessing (AutoTokenizer, AutoImageProcessor, AutoFeatureExtractor).
    Returns:
        (config, processor, model) of transformers.
    """
    is_path = spec.name.startswith((".", "/", "~")) or spec.name.count("/") > 1
    name = str(Path(spec.name).expanduser()) if is_path else spec.name
    if is_path and not Path(name).is_dir():
        raise TowerError("no model folder here", where=name, expected="a folder with config.json, or a name on the hub")
    if not spec.name:
        raise TowerError("no model is named", where=spec, expected="hf:NAME or hf:FOLDER")
    file = weights_file(spec)
    revision = "main" if file or spec.weights in ("", RANDOM) else spec.weights
    with hub_access(spec):
        config = AutoConfig.from_pretrained(name, revision=revision)
        processor = auto_processor.from_pretrained(name, revision=revision)
        model = _load_model(spec, name, config, revision, load=spec.weights != RANDOM and file is None)
    if file:
        load_state(model, read_state(file), file, ("pooler.",))
    return config, processor, model


def architecture_json(config: Any) -> str:
    """The config of a transformers model, without name and versions, as it enters a fingerprint."""
    volatile = ("_name_or_path", "transformers_version", "dtype", "torch_dtype")
    architecture = {k: v for k, v in config.to_dict().items() if k not in volatile}
    return json.dumps(architecture, sort_keys=True, default=str)


def _load_model(spec: TowerSpec, name: str, config: Any, revision: str, *, load: bool) -> Any:
    if not load:
        return AutoModel.from_config(config)
    verbosity, progress_bar = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        model, info = AutoModel.from_pretrained(name, revision=revision, output_loading_info=True, dtype=torch.float32)
    finally:
        hf_logging.set_verbosity(verbosity)
        if progress_bar:
            hf_logging.enable_progress_bar()
    # transformers fills missing weights with random numbers and reports it in a log line only
    check_state_keys([k for k in info["missing_keys"] if "pooler." not in k], (), (), spec)
    return model


def image_preprocess(processor: Any, size: int, spec: TowerSpec) -> ImagePreprocess:
    """Reads the geometry and the normalisation of a transformers image processor.

    Args:
        size: pixels of the square input; 0 = the processor's own.
    Raises:
        TowerError: it scales pixels to a range other than 0..1.
    """
    if abs(getattr(processor, "rescale_factor", 1 / 255) - 1 / 255) > 1e-6:
        raise TowerError(
            "this image processor is not supported", where=spec, expected="pixels scaled to 0..1", next="timm:NAME"
        )
    target, crop = processor.size, getattr(processor, "crop_size", None)
    short_side = target.get("shortest_edge")
    crop_share = getattr(processor, "crop_pct", None) or 1.0  # ConvNeXt resizes to a larger image, then crops
    if short_side is None:
        final = (target["height"], target["width"])
        resize: tuple[int, ...] = final
    else:
        cropped = getattr(processor, "do_center_crop", False) and crop
        final = (crop["height"], crop["width"]) if cropped and crop else (short_side, short_side)
        resize = (int(short_side / crop_share),)
    if size:
        resize = (size, size) if short_side is None else (round(size * resize[0] / min(final)),)
        final = (size, size)
    interpolation = Image.Resampling(processor.resample).name.lower()
    normalised = getattr(processor, "do_normalize", True)
    mean, std = (tuple(processor.image_mean), tuple(processor.image_std)) if normalised else ((0.0,) * 3, (1.0,) * 3)
    return ImagePreprocess(final, resize, interpolation, mean, std)


def _patch_grid(config: Any, size: tuple[int, int]) -> tuple[int, int] | None:
    patch = getattr(config, "patch_size", None)
    if isinstance(patch, int):
        patch = (patch, patch)
    return (size[0] // patch[0], size[1] // patch[1]) if patch else None


def set_grad_checkpointing(model: Any, enable: bool) -> None:
    """Turns gradient checkpointing of a transformers model on or off (the method was renamed within transformers 5)."""
    kind = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    getattr(model, f"{kind}_checkpointing_{'enable' if enable else 'disable'}")()


def save_components(savers: list[Callable[[Path], Any]], folder: Path) -> str:
    """``Tower.save_assets`` of transformers towers: runs every saver on the folder and returns the SPEC."""
    folder.mkdir(parents=True, exist_ok=True)
    for save in savers:
        save(folder)
    return f"hf:{folder}@{RANDOM}"
