"""Image towers of torchvision and timm: their last feature map as tokens, never the classifier on top.

Pictures are resized to the crop itself, as CLIP does: a classifier's larger resize throws away the border, and captions speak of all of it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torchvision.models as zoo
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from ccaco_cli.core.errors import TowerError
from ccaco_cli.core.model.towers.pictures import (
    Encoding,
    ImagePreprocess,
    PictureModule,
    map_tokens,
    own_pooled,
    picture_tower,
)
from ccaco_cli.core.model.towers.tower import Tower, TowerSpec
from ccaco_cli.core.model.towers.weights import RANDOM, fit, hub, nearest, read_state, refuse_modality, weights_file

HEADS = ("fc", "classifier", "head", "heads", "aux", "aux1", "aux2", "AuxLogits")
HEAD_KEYS = tuple(f"{name}." for name in HEADS)


class TorchvisionModule(PictureModule):
    """A torchvision classifier, cut behind its last feature map (or before the class token is taken out, for ViT).

    probe  pixels at which the cut is looked for: a size at which the last map has more than one cell
    """

    def __init__(self, model: nn.Module, picture: ImagePreprocess, probe: int):
        super().__init__(picture)
        node = _last_tokens(model, probe)
        self.body = create_feature_extractor(model, {node: "tokens"}, suppress_diff_warning=True)

    def encode(self, pixels: Tensor) -> Encoding:
        found = self.body(pixels)["tokens"]
        if found.dim() == 4:
            return map_tokens(found)
        side = math.isqrt(found.shape[1] - 1)
        return found, found[:, 0], (side, side)


class TimmModule(PictureModule):
    """A timm model without classifier. Also what open_clip wraps for its timm image towers."""

    def __init__(self, model: Any, picture: ImagePreprocess):
        super().__init__(picture)
        self.body = model

    def encode(self, pixels: Tensor) -> Encoding:
        found = self.body.forward_features(pixels)
        if found.dim() == 4:
            tokens, _, grid = map_tokens(
                found if found.shape[1] == self.body.num_features else found.permute(0, 3, 1, 2)
            )
        else:
            tokens, prefix = found, getattr(self.body, "num_prefix_tokens", 0)
            side = math.isqrt(found.shape[1] - prefix)
            grid = (side, side) if side * side == found.shape[1] - prefix else None
        return tokens, own_pooled(self.body.forward_head(found, pre_logits=True), tokens), grid

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.body.set_grad_checkpointing(enable)


def build_torchvision(spec: TowerSpec, modality: str, size: int, context_length: int) -> Tower:
    """``torchvision:NAME[.TAG][@TAG|FILE|none]``: any classifier of torchvision.models.

    ``@TAG`` (IMAGENET1K_V2) picks weights and preprocessing, ``.TAG`` the preprocessing only; without ``@`` the best weights are taken.
    Tokens are the last feature map (ResNet-50 at 224 px: 7 x 7 x 2048), row by row; pooled is their mean (ViT: the class token, first).
    """
    refuse_modality(spec, modality, ("image",))
    name, _, tag = spec.name.partition(".")
    if name not in (names := zoo.list_models(module=zoo)):
        raise TowerError("unknown torchvision model", where=spec, expected=nearest(name, names))
    known = zoo.get_model_weights(name).__members__
    file = weights_file(spec)
    if spec.weights not in ("", RANDOM) and file is None:
        tag = spec.weights
    # Weights of unknown origin are taken to follow the first (classic) recipe; a name without @ takes the newest weights.
    tag = tag or ("DEFAULT" if not spec.weights else next(iter(known)))
    if tag not in known:
        raise TowerError(
            "unknown torchvision weights", where=spec, expected=nearest(tag, [*known, RANDOM]) + ", or a file"
        )
    chosen = known[tag]
    recipe = chosen.transforms()
    crop = size or recipe.crop_size[0]
    picture = ImagePreprocess((crop, crop), (crop,), recipe.interpolation.value, tuple(recipe.mean), tuple(recipe.std))

    is_vit = name.startswith("vit_")  # made for one size; the others take any
    load = chosen if spec.weights != RANDOM and file is None else None
    with hub(spec):
        model = zoo.get_model(name, weights=load, **({"image_size": crop} if is_vit else {}))
    if file:
        fit(model, read_state(file), file, HEAD_KEYS)
    module = TorchvisionModule(model, picture, crop if is_vit else recipe.crop_size[0])
    rebuilt = f"torchvision:{name}.{chosen.name}@{RANDOM}"
    return picture_tower(
        spec, module, picture, pretrained=spec.weights != RANDOM, facts=(name,), save_assets=lambda folder: rebuilt
    )


def build_timm(spec: TowerSpec, modality: str, size: int, context_length: int) -> Tower:
    """``timm:NAME[.TAG][@TAG|FILE|none]``: any model of timm, without classifier.

    ``.TAG`` or ``@TAG`` picks weights and preprocessing (``timm:resnet50.a1_in1k``); with ``@FILE`` and ``@none`` the preprocessing only.
    Tokens are ``forward_features`` (prefix tokens such as the class token first); pooled is timm's own where it is as wide, else the mean.
    """
    import timm

    refuse_modality(spec, modality, ("image",))
    file = weights_file(spec)
    name, _, tag = spec.name.partition(".")
    if spec.weights not in ("", RANDOM) and file is None:
        tag = spec.weights
    if name not in (names := timm.list_models()):
        raise TowerError("unknown timm model", where=spec, expected=nearest(name, names))
    full = f"{name}.{tag}" if tag else name
    if tag and full not in (tags := timm.list_pretrained(f"{name}.*")):
        raise TowerError("unknown timm weights", where=spec, expected=nearest(full, [*tags, f"{name}@{RANDOM}"]))
    known = timm.get_pretrained_cfg(full)
    fixed: dict[str, Any] = {"img_size": size} if size and known is not None and known.fixed_input_size else {}
    with hub(spec):
        model = timm.create_model(full, pretrained=spec.weights != RANDOM and file is None, num_classes=0, **fixed)
    if file:
        fit(model, read_state(file), file, HEAD_KEYS)
    recipe = timm.data.resolve_model_data_config(model)
    height, width = (size, size) if size else recipe["input_size"][1:]
    picture = ImagePreprocess(
        size=(height, width),
        resize=(height, width) if recipe["crop_mode"] == "squash" or height != width else (height,),
        interpolation=recipe["interpolation"],
        mean=tuple(recipe["mean"]),
        std=tuple(recipe["std"]),
    )
    rebuilt = f"timm:{full}@{RANDOM}"
    return picture_tower(
        spec,
        TimmModule(model, picture),
        picture,
        pretrained=spec.weights != RANDOM,
        facts=(name,),
        save_assets=lambda folder: rebuilt,
    )


def _last_tokens(model: nn.Module, size: int) -> str:
    """Name of the last node, below the classifier, that still holds a map [1, W, h, w] of more than one cell, or tokens [1, N, W]."""
    nodes = get_graph_node_names(model, suppress_diff_warning=True)[1]
    body = [n for n in nodes if n.partition(".")[0] not in HEADS]
    training = model.training
    with torch.no_grad():
        found = create_feature_extractor(model, body, suppress_diff_warning=True).eval()(torch.zeros(1, 3, size, size))
    model.train(training)
    spatial = [
        n
        for n, x in found.items()
        if isinstance(x, Tensor) and (x.dim() == 3 or (x.dim() == 4 and x.shape[2] * x.shape[3] > 1))
    ]
    return str(spatial[-1])
