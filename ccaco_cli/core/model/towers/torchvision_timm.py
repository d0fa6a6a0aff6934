"""Image towers of torchvision and timm: their last feature map as tokens, never the classifier on top.

Images are resized to the crop itself, as CLIP does. A classifier's larger resize cuts the border away, which captions
describe too.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torchvision.models as zoo
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from ccaco_cli.core.config import TowerConfig
from ccaco_cli.core.errors import TowerError
from ccaco_cli.core.model.towers.image_base import (
    ImageEncoding,
    ImageModule,
    ImagePreprocess,
    feature_map_tokens,
    image_tower,
    pooled_if_token_width,
)
from ccaco_cli.core.model.towers.pooling import Pooling
from ccaco_cli.core.model.towers.tower import Tower, TowerSpec
from ccaco_cli.core.model.towers.weights import RANDOM, hub_access, load_state, nearest, read_state, weights_file

HEADS = ("fc", "classifier", "head", "heads", "aux", "aux1", "aux2", "AuxLogits")
HEAD_KEYS = tuple(f"{name}." for name in HEADS)


class TorchvisionModule(ImageModule):
    """A torchvision classifier, cut behind its last feature map (ViT: before the class token is taken out).

    Args:
        model: the classifier.
        preprocess: its preprocessing.
        probe_size: pixels a side at which the cut is searched: a size at which the last map has more than one cell.
    """

    pooled_from = "first"

    def __init__(self, model: nn.Module, preprocess: ImagePreprocess, probe_size: int):
        super().__init__(preprocess)
        node = _last_tokens_node(model, probe_size)
        self.body = create_feature_extractor(model, {node: "tokens"}, suppress_diff_warning=True)

    def encode(self, pixels: Tensor) -> ImageEncoding:
        output = self.body(pixels)["tokens"]
        if output.dim() == 4:
            return feature_map_tokens(output)
        side = math.isqrt(output.shape[1] - 1)
        return output, output[:, 0], (side, side)


class TimmModule(ImageModule):
    """A timm model without classifier; open_clip wraps such models, too.

    Args:
        head: of open_clip's wrapper; pooled is then its embedding [B, E]. None = the model's own pooled vector.
    """

    def __init__(self, model: Any, preprocess: ImagePreprocess, head: nn.Module | None = None):
        super().__init__(preprocess)
        self.body, self.head = model, head
        self.pooled_from = timm_pooling(model) if head is None else "model"

    def encode(self, pixels: Tensor) -> ImageEncoding:
        output = self.body.forward_features(pixels)
        if output.dim() == 4:
            channels_first = output.shape[1] == self.body.num_features
            tokens, _, grid = feature_map_tokens(output if channels_first else output.permute(0, 3, 1, 2))
        else:
            tokens, prefix = output, getattr(self.body, "num_prefix_tokens", 0)
            side = math.isqrt(output.shape[1] - prefix)
            grid = (side, side) if side * side == output.shape[1] - prefix else None
        if self.head is not None:
            return tokens, self.head(self.body.forward_head(output)), grid
        return tokens, pooled_if_token_width(self.body.forward_head(output, pre_logits=True), tokens), grid

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.body.set_grad_checkpointing(enable)


def timm_pooling(model: Any) -> Pooling:
    """How the pooled vector of a timm model follows from its tokens.

    Returns:
        ``first`` or ``mean`` where nothing follows the pooling; ``model`` where a norm follows, and for attention
        pools, means without the special tokens, and models with a rule of their own.
    """
    from timm.layers import ClassifierHead, SelectAdaptivePool2d
    from timm.models import EfficientNet, ResNet, VisionTransformer

    rule = type(model).forward_head
    if rule is VisionTransformer.forward_head:
        if model.attn_pool is not None or not isinstance(model.fc_norm, nn.Identity):
            return "model"
        if model.global_pool == "token":
            return "first" if model.num_prefix_tokens else "model"
        all_tokens = not model.num_prefix_tokens or getattr(model, "pool_include_prefix", False)
        return "mean" if model.global_pool == "avg" and all_tokens else "model"
    head = getattr(model, "head", None)
    holder = head if type(head) is ClassifierHead else model
    pool = getattr(holder, "global_pool", None)
    is_plain = type(head) is ClassifierHead or rule in (ResNet.forward_head, EfficientNet.forward_head)
    averages = isinstance(pool, SelectAdaptivePool2d) and pool.pool_type in ("avg", "fast", "fastavg")
    return "mean" if is_plain and averages else "model"


def build_torchvision(spec: TowerSpec, config: TowerConfig) -> Tower:
    """Builds ``torchvision:NAME[.TAG][@TAG|FILE|none]``: any classifier of torchvision.models.

    ``@TAG`` (IMAGENET1K_V2) selects weights and preprocessing, ``.TAG`` the preprocessing only; without ``@`` the best
    weights are used. Tokens are the last feature map (ResNet-50 at 224 px: 7 x 7 x 2048), row by row; pooled is their
    mean (ViT: the class token, first).
    """
    name, _, tag = spec.name.partition(".")
    if name not in (names := zoo.list_models(module=zoo)):
        raise TowerError("unknown torchvision model", where=spec, expected=nearest(name, names))
    known = zoo.get_model_weights(name).__members__
    file = weights_file(spec)
    if spec.weights not in ("", RANDOM) and file is None:
        tag = spec.weights
    # Weights of unknown origin are assumed to follow the first (classic) recipe; a name without @ uses the newest
    # weights.
    tag = tag or ("DEFAULT" if not spec.weights else next(iter(known)))
    if tag not in known:
        raise TowerError(
            "unknown torchvision weights", where=spec, expected=nearest(tag, [*known, RANDOM]) + ", or a file"
        )
    published = known[tag]
    recipe = published.transforms()
    crop = config.size or recipe.crop_size[0]
    mean, std = tuple(recipe.mean), tuple(recipe.std)
    preprocess = ImagePreprocess((crop, crop), (crop,), recipe.interpolation.value, mean, std)

    is_vit = name.startswith("vit_")  # built for one size; the others take any
    load = published if spec.weights != RANDOM and file is None else None
    with hub_access(spec):
        model = zoo.get_model(name, weights=load, **({"image_size": crop} if is_vit else {}))
    if file:
        load_state(model, read_state(file), file, HEAD_KEYS)
    module = TorchvisionModule(model, preprocess, crop if is_vit else recipe.crop_size[0])
    rebuilt = f"torchvision:{name}.{published.name}@{RANDOM}"
    return image_tower(
        spec, module, preprocess, pretrained=spec.weights != RANDOM, facts=(name,), save_assets=lambda folder: rebuilt
    )


def build_timm(spec: TowerSpec, config: TowerConfig) -> Tower:
    """Builds ``timm:NAME[.TAG][@TAG|FILE|none]``: any model of timm, without classifier.

    ``.TAG`` or ``@TAG`` selects weights and preprocessing (``timm:resnet50.a1_in1k``); with ``@FILE`` and ``@none`` the
    preprocessing only. Tokens are ``forward_features`` (prefix tokens such as the class token first); pooled is timm's
    own where it has their width, else the mean.
    """
    import timm

    file = weights_file(spec)
    name, _, tag = spec.name.partition(".")
    if spec.weights not in ("", RANDOM) and file is None:
        tag = spec.weights
    if name not in (names := timm.list_models()):
        raise TowerError("unknown timm model", where=spec, expected=nearest(name, names))
    full = f"{name}.{tag}" if tag else name
    if tag and full not in (tags := timm.list_pretrained(f"{name}.*")):
        raise TowerError("unknown timm weights", where=spec, expected=nearest(full, [*tags, f"{name}@{RANDOM}"]))
    known, size = timm.get_pretrained_cfg(full), config.size
    fixed: dict[str, Any] = {"img_size": size} if size and known is not None and known.fixed_input_size else {}
    with hub_access(spec):
        model = timm.create_model(full, pretrained=spec.weights != RANDOM and file is None, num_classes=0, **fixed)
    if file:
        load_state(model, read_state(file), file, HEAD_KEYS)
    recipe = timm.data.resolve_model_data_config(model)
    height, width = (size, size) if size else recipe["input_size"][1:]
    preprocess = ImagePreprocess(
        size=(height, width),
        resize=(height, width) if recipe["crop_mode"] == "squash" or height != width else (height,),
        interpolation=recipe["interpolation"],
        mean=tuple(recipe["mean"]),
        std=tuple(recipe["std"]),
    )
    rebuilt = f"timm:{full}@{RANDOM}"
    module = TimmModule(model, preprocess)
    return image_tower(
        spec,
        module,
        preprocess,
        pretrained=spec.weights != RANDOM,
        facts=(name,),
        save_assets=lambda folder: rebuilt,
    )


def _last_tokens_node(model: nn.Module, size: int) -> str:
    """Returns the last node below the classifier whose output is a map [1, W, h, w] of more than one cell, or tokens
    [1, N, W]."""
    nodes = get_graph_node_names(model, suppress_diff_warning=True)[1]
    body_nodes = [n for n in nodes if n.partition(".")[0] not in HEADS]
    training = model.training
    extractor = create_feature_extractor(model, body_nodes, suppress_diff_warning=True).eval()
    with torch.no_grad():
        outputs = extractor(torch.zeros(1, 3, size, size))
    model.train(training)
    spatial = [
        n
        for n, x in outputs.items()
        if isinstance(x, Tensor) and (x.dim() == 3 or (x.dim() == 4 and x.shape[2] * x.shape[3] > 1))
    ]
    return str(spatial[-1])
