"""Image and text towers of open_clip: ViT, ModifiedResNet and timm image encoders, and its own text transformers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import TextTransformer, VisionTransformer, text_global_pool
from torch import Tensor, nn

from ccaco_cli.core.config import TowerConfig
from ccaco_cli.core.errors import TowerError
from ccaco_cli.core.manifest import write_json
from ccaco_cli.core.model.attention import masked_mean
from ccaco_cli.core.model.towers.dual_encoders import LogitScale
from ccaco_cli.core.model.towers.image_base import (
    ImageEncoding,
    ImageModule,
    ImagePreprocess,
    feature_map_tokens,
    image_tower,
    pooled_if_token_width,
)
from ccaco_cli.core.model.towers.pooling import Pooling
from ccaco_cli.core.model.towers.text_tokenizers import ClipTokens
from ccaco_cli.core.model.towers.torchvision_timm import TimmModule
from ccaco_cli.core.model.towers.tower import JointSpace, PositionRule, Tower, TowerSpec
from ccaco_cli.core.model.towers.weights import (
    RANDOM,
    check_state_keys,
    fingerprint,
    first_line,
    hub_access,
    nearest,
    weights_file,
)
from ccaco_cli.core.types import Features

CONFIG = "open_clip_config.json"  # the name and layout that open_clip itself publishes and reads
POOLED_AT_END = ("argmax", "eos")


class VitModule(ImageModule):
    """open_clip's VisionTransformer: normalised [class token, patches].

    Args:
        projected: pooled is the model's embedding [B, E]; else the vector before the projection.
    """

    def __init__(self, vit: VisionTransformer, preprocess: ImagePreprocess, *, projected: bool):
        super().__init__(preprocess)
        self.body, self.projected = vit, projected
        at_class_token = vit.attn_pool is None and vit.pool_type == "tok" and not projected
        self.pooled_from = "first" if at_class_token else "model"
        if not projected:
            vit.proj = None

    def encode(self, pixels: Tensor) -> ImageEncoding:
        output = self.body.forward_intermediates(
            pixels,
            indices=1,
            normalize_intermediates=self.body.attn_pool is None,
            output_fmt="NLC",
            output_extra_tokens=True,
        )
        tokens = torch.cat([output["image_intermediates_prefix"][-1], output["image_intermediates"][-1]], 1)
        pooled = output["image_features"]
        return tokens, pooled if self.projected else pooled_if_token_width(pooled, tokens), self.body.grid_size

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.body.set_grad_checkpointing(enable)


class ResNetModule(ImageModule):
    """open_clip's ModifiedResNet: its last feature map.

    Args:
        projected: pooled is the model's embedding [B, E], from its attention pool, which ends in the projection; else
            the mean.
    """

    def __init__(self, resnet: ModifiedResNet, preprocess: ImagePreprocess, *, projected: bool):
        super().__init__(preprocess)
        self.body, self.projected = resnet, projected
        if not projected:
            resnet.attnpool = None

    def encode(self, pixels: Tensor) -> ImageEncoding:
        output = self.body.forward_intermediates(pixels, indices=1, intermediates_only=not self.projected)
        tokens, mean, grid = feature_map_tokens(output["image_intermediates"][-1])
        return tokens, output["image_features"] if self.projected else mean, grid


class TextModule(nn.Module):
    """open_clip's TextTransformer: token states after its last norm.

    Args:
        text: the transformer.
        projected: pooled is the model's embedding [B, E]; else the projection is removed.
        hide_padding: mask padding in a bidirectional tower.
        pad_id: a published bidirectional tower (SigLIP) was trained to attend to padding, and may pool the last
            position: texts are padded with this id to the full length, whatever the length of the batch. None = causal,
            or ``hide_padding``.
        mean: pool by masked mean in place of the transformer's own pooling.
        word_mixing: applied to the word vectors [B, L, W] and the mask [B, L] before positions are added.
    """

    def __init__(
        self,
        text: TextTransformer,
        *,
        projected: bool = False,
        hide_padding: bool = False,
        pad_id: int | None = None,
        mean: bool = False,
        word_mixing: nn.Module | None = None,
    ):
        super().__init__()
        self.body, self.word_mixing = text, word_mixing
        self.hide_padding, self.mean, self.pad_id = hide_padding, mean, pad_id
        self.projected = projected
        if not projected:
            text.text_projection = None
        self.num_layers = len(text.transformer.resblocks)
        self.selected_layers: Sequence[int] = [self.num_layers]

    def forward(self, inputs: dict[str, Tensor]) -> Features:
        ids, mask, text = inputs["ids"], inputs["mask"], self.body
        real_length = ids.shape[1]
        if self.pad_id is not None:
            ids = F.pad(ids, (0, text.num_pos - real_length), value=self.pad_id)
        length = ids.shape[1]
        attention_mask = None if text.attn_mask is None else text.attn_mask[:length, :length]
        states = text.token_embedding(ids)
        if self.word_mixing is not None:
            states = self.word_mixing(states, mask)
        states = states + text.positional_embedding[:length]
        if self.hide_padding:
            padding = torch.zeros(mask.shape, dtype=states.dtype, device=states.device).masked_fill(
                ~mask, float("-inf")
            )
            attention_mask = padding[:, None].expand(-1, length, -1).repeat_interleave(text.heads, 0)
        _, outputs = text.transformer.forward_intermediates(
            states, attention_mask, [layer - 1 for layer in self.selected_layers if layer]
        )
        selected = outputs if self.selected_layers[0] else [states, *outputs]
        final = [text.ln_final(state) for state in selected]
        states = torch.cat(final, -1)
        pooled_states = final[-1] if self.projected else states
        if self.mean:
            pooled = masked_mean(pooled_states, mask)
        else:
            pooled = text_global_pool(pooled_states, ids, text.pool_type, text.eos_id)
        if self.projected and text.text_projection is not None:
            linear = isinstance(text.text_projection, nn.Linear)
            pooled = text.text_projection(pooled) if linear else pooled @ text.text_projection
        return Features(states[:, :real_length], mask, pooled)

    @property
    def pooled_from(self) -> Pooling:
        """How ``pooled`` follows from the tokens; that of a padded tower may come from a position of padding."""
        if self.projected:
            return "model"
        if self.mean:
            return "mean"
        rules: dict[str, Pooling] = {"first": "first", "argmax": "last", "eos": "last"}
        return rules.get(self.body.pool_type, "model")

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.body.set_grad_checkpointing(enable)

    def select_hidden_states(self, layers: Sequence[int]) -> None:
        self.selected_layers = layers

    def extend_context(self, count: int, rule: PositionRule) -> None:
        text = self.body
        text.positional_embedding = nn.Parameter(rule(text.positional_embedding.detach(), count).contiguous())
        text.num_pos = text.context_length = count
        if text.attn_mask is not None:
            text.attn_mask = text.build_causal_mask()


def text_tower(
    spec: TowerSpec,
    module: TextModule,
    tokenizer: ClipTokens,
    *,
    pretrained: bool,
    facts: Sequence[object],
    save_assets: Callable[[Path], str],
    space: JointSpace | None = None,
) -> Tower:
    """Completes a text tower around open_clip's TextTransformer; ``facts`` name the architecture in the fingerprint."""
    return Tower(
        spec=spec,
        modality="text",
        module=module,
        preprocess=tokenizer,
        width=module.body.width,
        tokens=tokenizer.context_length,
        grid=None,
        pretrained=pretrained,
        fingerprint=fingerprint(module, spec.family, *facts, tokenizer, space),
        save_assets=save_assets,
        space=space,
        tokenizer=tokenizer,
        set_grad_checkpointing=module.set_grad_checkpointing,
        hidden_states=module.num_layers + 1,
        select_hidden_states=module.select_hidden_states,
        extend_context=module.extend_context,
        pooled_from=module.pooled_from,
    )


def build_image(spec: TowerSpec, config: TowerConfig) -> Tower:
    """Builds the image tower of ``open_clip:NAME@TAG|FILE|none`` or ``open_clip:FOLDER[@FILE|none]``.

    FOLDER holds open_clip_config.json. Tokens are patches at the model's own width (ViT: class token first); pooled is
    the model's vector before the projection where it has the tokens' width, else the mean. ``save_assets`` writes
    open_clip_config.json (architecture, size, preprocessing).
    """
    model, model_config = _create(spec, config)
    projected = config.head != "new"
    preprocess = _image_preprocess(model.visual.preprocess_cfg, spec, exact=projected)
    module = _image_module(model.visual, preprocess, spec, projected=projected)
    return image_tower(
        spec,
        module,
        preprocess,
        pretrained=spec.weights != RANDOM,
        facts=(model_config["vision_cfg"], model_config.get("quick_gelu", False)),
        save_assets=partial(_save, _assets(model, model_config), None),
        set_grad_checkpointing=None if isinstance(module, ResNetModule) else module.set_grad_checkpointing,
        scale=_logit_scale(model) if projected else None,
    )


def build_text(spec: TowerSpec, config: TowerConfig) -> Tower:
    """Builds the text tower of ``open_clip:NAME@TAG|FILE|none`` or ``open_clip:FOLDER[@FILE|none]``.

    FOLDER holds open_clip_config.json. Tokens are states after the last norm; pooled is the state that open_clip pools.
    ``save_assets`` writes open_clip_config.json, and the hub tokenizer if there is one.
    """
    model, model_config = _create(spec, config)
    text = model.text
    if not isinstance(text, TextTransformer) or text.cls_emb is not None:
        raise TowerError(
            "this open_clip text tower is not supported", where=spec, expected="a CLIP text transformer", next="hf:NAME"
        )
    name = f"local-dir:{spec.name}" if Path(spec.name).is_dir() else _model_name(spec)
    with hub_access(spec):
        tokenizer = open_clip.get_tokenizer(name, context_length=text.context_length)
    trim = text.attn_mask is not None and text.pool_type in POOLED_AT_END
    hub_tokenizer = getattr(tokenizer, "tokenizer", None)
    pad_id = None if trim else getattr(hub_tokenizer, "pad_token_id", 0)
    projected = config.head != "new"
    return text_tower(
        spec,
        TextModule(text, projected=projected, pad_id=pad_id),
        ClipTokens(tokenizer, text.context_length, trim=trim),
        pretrained=spec.weights != RANDOM,
        facts=(model_config["text_cfg"], model_config.get("quick_gelu", False)),
        save_assets=partial(_save, _assets(model, model_config), hub_tokenizer),
        space=JointSpace(model_config["embed_dim"], *_logit_scale(model)) if projected else None,
    )


def _logit_scale(model: Any) -> LogitScale:
    bias = getattr(model, "logit_bias", None)
    return float(model.logit_scale.detach().exp()), None if bias is None else float(bias.detach())


def _create(spec: TowerSpec, config: TowerConfig) -> tuple[Any, dict[str, Any]]:
    """Returns the open_clip model and its resolved config (what ``save_assets`` writes)."""
    name, file = _model_name(spec), weights_file(spec)
    model_config, tags, name = _model_config(spec, name)
    if file is None and spec.weights not in ("", RANDOM, *tags):
        raise TowerError(
            "unknown open_clip weights", where=spec, expected=nearest(spec.weights, [*tags, RANDOM]) + ", or a file"
        )
    tag = spec.weights if spec.weights in tags else None
    # OpenAI's weights need QuickGELU even under the plain name; open_clip only warns.
    model_config["quick_gelu"] = bool(
        model_config.get("quick_gelu") or (tag and open_clip.get_pretrained_cfg(name, tag).get("quick_gelu"))
    )
    if config.size:
        model_config["vision_cfg"]["image_size"] = config.size
    context_length = config.context_length
    if context_length:  # ``positions.extend_context`` extends the tower's own to a longer one
        own_length = model_config["text_cfg"].get("context_length", 77)
        context_length = model_config["text_cfg"]["context_length"] = min(context_length, own_length)
    with hub_access(spec):
        model = open_clip.create_model(
            name,
            tag,
            load_weights=not spec.weights or tag is not None,
            force_quick_gelu=model_config["quick_gelu"],
            force_custom_text=True,
            force_image_size=config.size or None,
            force_context_length=context_length or None,
            pretrained_text=False,
            require_pretrained=not spec.weights,
        )
    if file:
        _load_file(model, file, name)
    return model, model_config


def _model_config(spec: TowerSpec, name: str) -> tuple[dict[str, Any], list[str], str]:
    """Returns (config, published tags of weights, name for open_clip) of a model by folder or by name."""
    if (Path(spec.name) / CONFIG).is_file():
        folder_config = json.loads((Path(spec.name) / CONFIG).read_text("utf-8"))["model_cfg"]
        return folder_config, [], f"local-dir:{spec.name}"
    if name not in (names := open_clip.list_models()):
        raise TowerError(
            "unknown open_clip model", where=spec, expected=f"{nearest(name, names)}, or a folder with {CONFIG}"
        )
    tags = open_clip.list_pretrained_tags_by_model(name)
    if not spec.weights:
        raise TowerError(
            "the SPEC names no weights", where=spec, expected=f"@{RANDOM}, @FILE or @TAG, {nearest('', tags)}"
        )
    return deepcopy(open_clip.get_model_config(name)), tags, name


def _load_file(model: nn.Module, file: Path, name: str) -> None:
    try:
        keys = open_clip.load_checkpoint(model, str(file), strict=False)
    except (
        Exception
    ) as error:  # conversion of foreign checkpoints fails in different ways, all of which mean "does not fit"
        line = next((x for x in str(error).splitlines() if "size mismatch" in x), first_line(error)).strip()
        raise TowerError(
            f"weights do not fit this tower ({line})", where=file, expected=f"a state dict of open_clip's {name}"
        ) from error
    check_state_keys(keys.missing_keys, keys.unexpected_keys, (), file)


def _image_module(
    visual: nn.Module, preprocess: ImagePreprocess, spec: TowerSpec, *, projected: bool
) -> VitModule | ResNetModule | TimmModule:
    if isinstance(visual, VisionTransformer):
        return VitModule(visual, preprocess, projected=projected)
    if isinstance(visual, ModifiedResNet):
        return ResNetModule(visual, preprocess, projected=projected)
    if isinstance(visual, TimmModel):
        return TimmModule(visual.trunk, preprocess, visual.head if projected else None)
    raise TowerError(
        "this open_clip image tower is not supported",
        where=spec,
        expected="ViT, ModifiedResNet or timm",
        next="timm:NAME",
    )


def _image_preprocess(recipe: dict[str, Any], spec: TowerSpec, *, exact: bool) -> ImagePreprocess:
    side = recipe["size"]
    height, width = (side, side) if isinstance(side, int) else side
    if recipe["resize_mode"] == "longest" or (recipe["resize_mode"] == "shortest" and height != width):
        raise TowerError(
            "this open_clip preprocessing is not supported", where=spec, expected="a square crop or a squashed picture"
        )
    resize = (height,) if recipe["resize_mode"] == "shortest" else (height, width)
    return ImagePreprocess(
        (height, width), resize, recipe["interpolation"], tuple(recipe["mean"]), tuple(recipe["std"]), exact
    )


def _assets(model: Any, model_config: dict[str, Any]) -> dict[str, Any]:
    return {"model_cfg": model_config, "preprocess_cfg": model.visual.preprocess_cfg}


def _save(assets: dict[str, Any], tokenizer: Any, folder: Path) -> str:
    write_json(folder / CONFIG, assets)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return f"open_clip:{folder}@{RANDOM}"


def _model_name(spec: TowerSpec) -> str:
    return spec.name.replace("/", "-")
