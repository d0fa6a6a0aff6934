"""Text and image towers of transformers: any AutoModel with ``last_hidden_state``, from the hub or a folder."""

from __future__ import annotations

import inspect
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from transformers import MODEL_MAPPING, AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer
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
from ccaco_cli.core.model.towers.pooling import Pooling, last_token
from ccaco_cli.core.model.towers.positions import extend_embeddings, learned_positions
from ccaco_cli.core.model.towers.probing import evaluation
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
CLASS_TOKENS = ("cls_token", "class_token", "class_embedding")
"""Names of the parameter that holds the class token."""
CLIP_VISION = tuple(
    f"{name}_vision_model"
    for name in ("clip", "altclip", "chinese_clip", "clipseg", "metaclip_2", "mlcd", "owlvit", "owlv2", "xclip")
)
"""Models that normalise their class token only; the patches get the same norm, so that all tokens lie in one space."""
PADDED_TEXT = ("siglip_text_model", "siglip2_text_model")
"""Models that were trained to attend to padding, and that pool the last position of the full length."""
UNUSED = ("pooler.", "decoder.")
"""Parts of a model whose weights may be missing: published encoders of T5 have no decoder."""
CAUSAL = 1e-5
"""Largest relative change of the earlier tokens of a causal model when the last token of a text changes."""


@dataclass(frozen=True)
class TextPooling:
    """How a transformers text encoder is padded and pooled.

    Attributes:
        pooled_from: the rule for pooled; ``model``: its own pooled output.
        full_length: pad every text to this many tokens, without a mask; 0 = to the longest text of the batch.
        pad_id: of padding.
        use_pooler: take the model's own pooled output, where it has one of the tokens' width.
    """

    pooled_from: Pooling = "mean"
    full_length: int = 0
    pad_id: int = 0
    use_pooler: bool = False


class HfTextModule(nn.Module):
    """Token states of a transformers text encoder; pooled is the masked mean, the last real token or the model's own.

    Args:
        model: the transformers model.
        pooling: how texts are padded and pooled.
    """

    def __init__(self, model: Any, pooling: TextPooling):
        super().__init__()
        self.body, self.pooling = model, pooling
        self.num_layers: int = getattr(model.config, "num_hidden_layers", 0)
        self.selected_layers: Sequence[int] = [self.num_layers]

    def forward(self, inputs: dict[str, Tensor]) -> Features:
        ids, mask, lower_layers = inputs["ids"], inputs["mask"], self.selected_layers[:-1]
        pooling, length, attention_mask = self.pooling, ids.shape[1], {"attention_mask": mask.long()}
        if pooling.full_length:
            ids, attention_mask = F.pad(ids, (0, pooling.full_length - length), value=pooling.pad_id), {}
        output = self.body(input_ids=ids, output_hidden_states=bool(lower_layers), **attention_mask)
        tokens = output.last_hidden_state
        if lower_layers:  # many models normalise the states of the last layer only
            states = (F.layer_norm(output.hidden_states[layer], tokens.shape[-1:]) for layer in lower_layers)
            tokens = torch.cat([*states, tokens], -1)
        pooled = pooled_if_token_width(output.pooler_output, tokens) if pooling.use_pooler else None
        if pooling.full_length and pooled is None:
            pooled = tokens[:, -1]
        tokens = tokens[:, :length]
        if pooled is None:
            pooled = last_token(tokens, mask) if pooling.pooled_from == "last" else masked_mean(tokens, mask)
        return Features(tokens, mask, pooled)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        set_grad_checkpointing(self.body, enable)

    def select_hidden_states(self, layers: Sequence[int]) -> None:
        self.selected_layers = layers

    def extend_context(self, count: int, rule: PositionRule) -> None:
        extend_embeddings(self.body, count, rule)
        if self.pooling.full_length:
            self.pooling = replace(self.pooling, full_length=count)


class HfImageModule(ImageModule):
    """Normalised patch tokens of a transformers vision encoder (special tokens first), or its last feature map.

    Pooled is the class token; where there is none, the output of the model's pooler, or the mean.
    """

    def __init__(self, model: Any, preprocess: ImagePreprocess):
        super().__init__(preprocess)
        self.body = model
        self.patch_grid = _patch_grid(model.config, preprocess.size)
        self.has_class_token = any(name.rpartition(".")[2] in CLASS_TOKENS for name, _ in model.named_parameters())
        self.pooled_from = "first" if self.has_class_token else "model"
        self.detections = getattr(model.config, "num_detection_tokens", 0)  # YOLOS has them behind its patches
        config_size = getattr(model.config, "image_size", preprocess.size[0])
        parameters = inspect.signature(model.forward).parameters
        resized = preprocess.size[0] != config_size and "interpolate_pos_encoding" in parameters
        self.options = {"interpolate_pos_encoding": True} if resized else {}
        self.norm_last = model.config.model_type in CLIP_VISION
        # masked autoencoders drop random patches: none is dropped, and equal steps of "noise" keep their order
        self.masks_patches = "noise" in parameters and hasattr(model.config, "mask_ratio")
        if self.masks_patches:
            model.config.mask_ratio = 0.0

    def encode(self, pixels: Tensor) -> ImageEncoding:
        options: dict[str, Any] = dict(self.options)
        if self.masks_patches and self.patch_grid:
            order = torch.arange(math.prod(self.patch_grid), device=pixels.device, dtype=torch.float32)
            options["noise"] = order.expand(len(pixels), -1)
        output = self.body(pixel_values=pixels, **options)
        tokens = output.last_hidden_state
        if tokens.dim() == 4:
            return feature_map_tokens(tokens)
        if self.norm_last:
            tokens = self.body.post_layernorm(tokens)
        if self.detections:
            tokens = tokens[:, : -self.detections]
        # hierarchical models have fewer tokens than patches, and no grid is declared for them
        grid = self.patch_grid if self.patch_grid and math.prod(self.patch_grid) <= tokens.shape[1] else None
        if self.has_class_token:
            return tokens, tokens[:, 0], grid
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

    Tokens are ``last_hidden_state``, of an encoder-decoder those of its encoder. Pooled is their masked mean (as of
    sentence encoders), of causal models the last real token, of CLIP-like models their own. ``save_assets`` writes the
    config and the tokenizer.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads do not survive the fork of loader workers
    hf_config, hf_tokenizer, model = load_pretrained(spec, AutoTokenizer)
    body, clip_like = _encoder(model, "text")
    hf_tokenizer.padding_side = hf_tokenizer.truncation_side = "right"
    if hf_tokenizer.pad_token is None:  # padding is masked, so that any token can stand for it
        hf_tokenizer.pad_token = hf_tokenizer.eos_token or hf_tokenizer.unk_token or hf_tokenizer.bos_token
    if hf_tokenizer.pad_token is None:
        raise TowerError(
            "the tokenizer of this model has no padding token", where=spec, expected="a pad_token or an eos_token in it"
        )
    limits = [
        hf_tokenizer.model_max_length,
        getattr(body.config, "max_position_embeddings", NO_LIMIT),
        learned_positions(body) or NO_LIMIT,
        config.context_length or NO_LIMIT,
    ]
    tokenizer = HfTokens(hf_tokenizer, int(min(limit for limit in limits if limit > 0)))  # XLNet's is -1: none
    module = HfTextModule(body, TextPooling())
    width, causal = _measure_text(module, tokenizer)
    if body.config.model_type in PADDED_TEXT:
        full_length = learned_positions(body) or tokenizer.context_length
        module.pooling = TextPooling("model", full_length, hf_tokenizer.pad_token_id, use_pooler=True)
    else:
        rule: Pooling = "last" if causal else "model" if clip_like else "mean"
        module.pooling = TextPooling(rule, use_pooler=clip_like)
    return Tower(
        spec=spec,
        modality="text",
        module=module,
        preprocess=tokenizer,
        width=width,
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
        pooled_from=module.pooling.pooled_from,
    )


def _measure_text(module: HfTextModule, tokenizer: HfTokens) -> tuple[int, bool]:
    """Encodes a text of a few words to learn the width, and whether the model is causal: then the last token of a text
    has no effect on the earlier ones."""
    ids = tokenizer(["a dog runs"])["ids"]
    changed = ids.clone()
    changed[0, -1] = ids[0, 0]
    if torch.equal(changed, ids):  # a tokenizer that knows no words
        changed[0, -1] = (ids[0, -1] + 1) % len(tokenizer.tokenizer)
    both, mask = torch.cat([ids, changed]), torch.ones_like(ids, dtype=torch.bool).expand(2, -1)
    with evaluation(module):
        tokens = module({"ids": both, "mask": mask}).tokens
    earlier, changed_earlier = tokens[:, :-1]
    change = (earlier - changed_earlier).norm(dim=-1) / earlier.norm(dim=-1).clamp_min(1e-12)
    return tokens.shape[2], ids.shape[1] > 1 and bool((change < CAUSAL).all())


def _encoder(model: Any, modality: str) -> tuple[Any, bool]:
    """Returns the encoder of one modality, and whether the model is CLIP-like (has one for each modality)."""
    clip_like = hasattr(model, BODY[modality])
    body = getattr(model, BODY[modality]) if clip_like else model
    if "decoder_input_ids" in inspect.signature(body.forward).parameters:  # an encoder-decoder such as T5
        body = body.get_encoder()
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
        if type(config) not in MODEL_MAPPING:
            raise TowerError(
                f"transformers has no encoder for a {config.model_type} model", where=spec, expected="an AutoModel"
            )
        processor = auto_processor.from_pretrained(name, revision=revision)
        model = _load_model(spec, name, config, revision, load=spec.weights != RANDOM and file is None)
    if file:
        load_state(model, read_state(file), file, UNUSED)
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
    check_state_keys([k for k in info["missing_keys"] if "pooler." not in k and not k.startswith(UNUSED)], (), (), spec)
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
