"""Text and image towers of transformers: any AutoModel that gives ``last_hidden_state``, by name on the hub or from a folder."""

from __future__ import annotations

import inspect
import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import tokenizers
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer
from transformers.utils import logging as hf_logging

from ccaco_cli.core.errors import TowerError
from ccaco_cli.core.model.towers.open_clip import masked_mean, vocabulary, words_of
from ccaco_cli.core.model.towers.pictures import (
    Encoding,
    ImagePreprocess,
    PictureModule,
    map_tokens,
    own_pooled,
    picture_tower,
)
from ccaco_cli.core.model.towers.positions import lengthen_embeddings
from ccaco_cli.core.model.towers.tower import Tower, TowerSpec
from ccaco_cli.core.model.towers.weights import (
    RANDOM,
    fingerprint,
    fit,
    hub,
    read_state,
    refuse_misfit,
    refuse_modality,
    weights_file,
)
from ccaco_cli.core.types import Features

PART = {"image": "vision", "text": "text"}
NO_LIMIT = 1 << 20  # tokenizers without a limit say 1e30


class HfText(nn.Module):
    """Token states of a transformers text encoder; pooled is the masked mean, or what a CLIP-like model pools itself."""

    def __init__(self, model: Any, *, own_pool: bool):
        super().__init__()
        self.body, self.own_pool = model, own_pool
        self.layers: int = getattr(model.config, "num_hidden_layers", 0)
        self.depths = [self.layers]

    def forward(self, inputs: dict[str, Tensor]) -> Features:
        ids, mask, below = inputs["ids"], inputs["mask"], self.depths[:-1]
        found = self.body(input_ids=ids, attention_mask=mask.long(), output_hidden_states=bool(below))
        tokens = found.last_hidden_state
        if below:  # of many models only the last layer's states are normed
            states = (F.layer_norm(found.hidden_states[number], tokens.shape[-1:]) for number in below)
            tokens = torch.cat([*states, tokens], -1)
        pooled = own_pooled(found.pooler_output, tokens) if self.own_pool else None
        return Features(tokens, mask, masked_mean(tokens, mask) if pooled is None else pooled)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        grad_checkpointing(self.body, enable)

    def lengthen(self, count: int, rule: Callable[[Tensor, int], Tensor]) -> None:
        """Room for ``count`` tokens, learned positions by ``rule`` (``positions.RULES``)."""
        lengthen_embeddings(self.body, count, rule)


class HfPicture(PictureModule):
    """Patch tokens of a transformers vision encoder after its last norm (special tokens first), or its last map."""

    def __init__(self, model: Any, picture: ImagePreprocess):
        super().__init__(picture)
        self.body = model
        self.cells = _cells(model.config, picture.size)
        config_size = getattr(model.config, "image_size", picture.size[0])
        resized = (
            picture.size[0] != config_size and "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
        )
        self.options = {"interpolate_pos_encoding": True} if resized else {}
        # CLIP norms its class token only; the patches get the same norm, so that all tokens live in one space.
        self.norm_last = model.config.model_type == "clip_vision_model"

    def encode(self, pixels: Tensor) -> Encoding:
        found = self.body(pixel_values=pixels, **self.options)
        tokens = found.last_hidden_state
        if tokens.dim() == 4:
            return map_tokens(tokens)
        if self.norm_last:
            tokens = self.body.post_layernorm(tokens)
        grid = self.cells if self.cells and math.prod(self.cells) <= tokens.shape[1] else None
        special = grid is None or math.prod(grid) < tokens.shape[1]
        return tokens, tokens[:, 0] if special else own_pooled(getattr(found, "pooler_output", None), tokens), grid

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        grad_checkpointing(self.body, enable)


@dataclass(frozen=True)
class HfTokens:
    """list[str] -> {"ids" int64 [n, L], "mask" bool [n, L], "cut" bool [n] True = was longer}, padded to the longest of the list."""

    tokenizer: Any
    context_length: int

    def __call__(self, texts: list[str]) -> dict[str, Tensor]:
        found = self.tokenizer(
            list(texts), padding="longest", truncation=True, max_length=self.context_length, return_tensors="pt"
        )
        mask = found["attention_mask"].bool()
        if found.encodings:
            cut = torch.tensor([bool(encoding.overflowing) for encoding in found.encodings])
        else:  # tokenizers written in Python do not say
            cut = torch.tensor([len(ids) > self.context_length for ids in self.tokenizer(list(texts))["input_ids"]])
        return {"ids": found["input_ids"], "mask": mask, "cut": cut}

    def words(self, text: str) -> list[tuple[str, list[int]]]:
        """The words of a text and the places of their tokens; tokens of no word (start, end) are left out."""
        return words_of(self.tokenizer, text, self.context_length)

    def __repr__(self) -> str:
        return f"HfTokens({vocabulary(self.tokenizer)} {self.context_length})"

    def portable(self) -> tuple[str, dict[str, Any]] | None:
        """As ``ClipTokens.portable``."""
        if not self.tokenizer.is_fast:
            return None
        made = tokenizers.Tokenizer.from_str(self.tokenizer.backend_tokenizer.to_str())
        made.no_padding()
        made.enable_truncation(self.context_length)
        return made.to_str(), {"clean": "none", "pad_id": self.tokenizer.pad_token_id, "pad_to": 0}


def build(spec: TowerSpec, modality: str, size: int, context_length: int) -> Tower:
    """``hf:NAME[@REVISION|FILE|none]`` or ``hf:FOLDER[@FILE|none]``; of CLIP-like models the side that is asked for.

    Text: ``last_hidden_state``, pooled by masked mean (as sentence encoders are), by its own end-of-text state for CLIP-like models.
    Image: pooled is the class token, or the pooler's output or the mean where there is none.
    ``save_assets`` writes the config and the tokenizer or image processor.
    """
    refuse_modality(spec, modality, ("image", "text"))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads do not survive the fork of loader workers
    config, reader, model = opened(spec, AutoTokenizer if modality == "text" else AutoImageProcessor)
    joint = hasattr(model, f"{PART[modality]}_model")
    body = getattr(model, f"{PART[modality]}_model") if joint else model
    if "add_pooling_layer" in inspect.signature(type(body).__init__).parameters:
        body.pooler = None  # trained on other tasks, and without gradient here
    facts = told(body.config)
    save = partial(save_all, [config.save_pretrained, reader.save_pretrained])
    pretrained = spec.weights != RANDOM
    if modality == "image":
        picture = geometry(reader, size, spec)
        return picture_tower(
            spec, HfPicture(body, picture), picture, pretrained=pretrained, facts=(facts,), save_assets=save
        )

    reader.padding_side = reader.truncation_side = "right"
    if reader.pad_token is None:
        reader.pad_token = reader.eos_token
    limits = [
        reader.model_max_length,
        getattr(body.config, "max_position_embeddings", NO_LIMIT),
        context_length or NO_LIMIT,
    ]
    tokens = HfTokens(reader, int(min(limits)))
    module = HfText(body, own_pool=joint)
    return Tower(
        spec=spec,
        modality="text",
        module=module,
        preprocess=tokens,
        width=body.config.hidden_size,
        tokens=tokens.context_length,
        grid=None,
        pretrained=pretrained,
        fingerprint=fingerprint(module, spec.family, facts, tokens),
        save_assets=save,
    )


def opened(spec: TowerSpec, readers: Any) -> tuple[Any, Any, Any]:
    """(config, reader, model) of ``hf:NAME|FOLDER[@REVISION|FILE|none]``; ``readers`` = the Auto class of what prepares its inputs."""
    looks_local = spec.name.startswith((".", "/", "~")) or spec.name.count("/") > 1
    name = str(Path(spec.name).expanduser()) if looks_local else spec.name
    if looks_local and not Path(name).is_dir():
        raise TowerError("no model folder here", where=name, expected="a folder with config.json, or a name on the hub")
    if not spec.name:
        raise TowerError("no model is named", where=spec, expected="hf:NAME or hf:FOLDER")
    file = weights_file(spec)
    revision = "main" if file or spec.weights in ("", RANDOM) else spec.weights
    with hub(spec):
        config = AutoConfig.from_pretrained(name, revision=revision)
        reader = readers.from_pretrained(name, revision=revision)
        model = _model(spec, name, config, revision, load=spec.weights != RANDOM and file is None)
    if file:
        fit(model, read_state(file), file, ("pooler.",))
    return config, reader, model


def told(config: Any) -> str:
    """What names an architecture in a fingerprint."""
    kind = {
        k: v
        for k, v in config.to_dict().items()
        if k not in ("_name_or_path", "transformers_version", "dtype", "torch_dtype")
    }
    return json.dumps(kind, sort_keys=True, default=str)


def _model(spec: TowerSpec, name: str, config: Any, revision: str, *, load: bool) -> Any:
    if not load:
        return AutoModel.from_config(config)
    shown = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        model, found = AutoModel.from_pretrained(name, revision=revision, output_loading_info=True, dtype=torch.float32)
    finally:
        hf_logging.set_verbosity(shown[0])
        if shown[1]:
            hf_logging.enable_progress_bar()
    # transformers fills what a checkpoint lacks with random numbers and says so in a log line only.
    refuse_misfit([k for k in found["missing_keys"] if "pooler." not in k], (), (), spec)
    return model


def geometry(processor: Any, size: int, spec: TowerSpec) -> ImagePreprocess:
    """The geometry and numbers of a transformers image processor."""
    if abs(getattr(processor, "rescale_factor", 1 / 255) - 1 / 255) > 1e-6:
        raise TowerError(
            "this image processor is not supported", where=spec, expected="pixels scaled to 0..1", next="timm:NAME"
        )
    asked, crop = processor.size, getattr(processor, "crop_size", None)
    short = asked.get("shortest_edge")
    percent = getattr(processor, "crop_pct", None) or 1.0  # ConvNeXt's way to say: larger, then crop
    if short is None:
        final = (asked["height"], asked["width"])
        resize: tuple[int, ...] = final
    else:
        cropped = getattr(processor, "do_center_crop", False) and crop
        final = (crop["height"], crop["width"]) if cropped and crop else (short, short)
        resize = (int(short / percent),)
    if size:
        resize = (size, size) if short is None else (round(size * resize[0] / min(final)),)
        final = (size, size)
    how = Image.Resampling(processor.resample).name.lower()
    normal = getattr(processor, "do_normalize", True)
    mean, std = (tuple(processor.image_mean), tuple(processor.image_std)) if normal else ((0.0,) * 3, (1.0,) * 3)
    return ImagePreprocess(final, resize, how, mean, std)


def _cells(config: Any, size: tuple[int, int]) -> tuple[int, int] | None:
    patch = getattr(config, "patch_size", None)
    if isinstance(patch, int):
        patch = (patch, patch)
    return (size[0] // patch[0], size[1] // patch[1]) if patch else None


def grad_checkpointing(model: Any, enable: bool) -> None:
    kind = (
        "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    )  # renamed within transformers 5
    getattr(model, f"{kind}_checkpointing_{'enable' if enable else 'disable'}")()


def save_all(savers: list[Callable[[Path], Any]], folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for save in savers:
        save(folder)
    return f"hf:{folder}@{RANDOM}"
