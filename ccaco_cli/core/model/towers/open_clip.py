"""Image towers of open_clip: ViT, ModifiedResNet and timm image encoders."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transform import PreprocessCfg, image_transform_v2
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

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
from ccaco_cli.core.model.towers.library_checks import check_image_side
from ccaco_cli.core.model.towers.open_clip_models import load
from ccaco_cli.core.model.towers.torchvision_timm import TimmModule
from ccaco_cli.core.model.towers.tower import Tower, TowerSpec
from ccaco_cli.core.model.towers.weights import RANDOM


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


def build_image(spec: TowerSpec, config: TowerConfig) -> Tower:
    """Builds the image tower of ``open_clip:NAME@TAG|FILE|none`` or ``open_clip:FOLDER[@FILE|none]``.

    FOLDER holds open_clip_config.json. Tokens are patches at the model's own width (ViT: class token first); pooled is
    the model's vector before the projection where it has the tokens' width, else the mean. ``save_assets`` writes
    open_clip_config.json (architecture, size, preprocessing).
    """
    loaded = load(spec, config)
    visual, projected = loaded.model.visual, config.projected
    preprocess = _image_preprocess(visual.preprocess_cfg, spec, exact=projected)
    module = _image_module(visual, preprocess, spec, projected=projected)
    if projected:
        check_image_side(spec, module, preprocess, loaded.model.encode_image, _library_transform(visual))
    return image_tower(
        spec,
        module,
        preprocess,
        pretrained=spec.weights != RANDOM,
        facts=(loaded.config["vision_cfg"], loaded.config.get("quick_gelu", False)),
        save_assets=partial(loaded.save, None),
        scale=loaded.scale if projected else None,
    )


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


def _library_transform(visual: Any) -> Any:
    """open_clip's own evaluation transform of an image tower."""
    return image_transform_v2(PreprocessCfg(**visual.preprocess_cfg), is_train=False)


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
