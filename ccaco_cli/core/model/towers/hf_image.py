"""Image towers of transformers: any AutoModel with ``last_hidden_state``, from the hub or a folder."""

from __future__ import annotations

import inspect
import math
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor
from transformers.image_processing_backends import TorchvisionBackend

from ccaco_cli.core.config import TowerConfig
from ccaco_cli.core.model.towers.dual_encoders import dual_encoder_scale, one_side
from ccaco_cli.core.model.towers.hf import (
    architecture_json,
    encoder_of,
    load_pretrained,
    save_components,
    set_grad_checkpointing,
)
from ccaco_cli.core.model.towers.image_base import (
    ImageEncoding,
    ImageModule,
    ImagePreprocess,
    feature_map_tokens,
    image_tower,
    pooled_if_token_width,
)
from ccaco_cli.core.model.towers.library_checks import as_pixels, check_pixels
from ccaco_cli.core.model.towers.tower import Tower, TowerSpec
from ccaco_cli.core.model.towers.weights import (
    RANDOM,
)

CLASS_TOKENS = ("cls_token", "class_token", "class_embedding")
"""Names of the parameter that holds the class token."""
CLIP_VISION = tuple(
    f"{name}_vision_model"
    for name in ("clip", "altclip", "chinese_clip", "clipseg", "metaclip_2", "mlcd", "owlvit", "owlv2", "xclip")
)
"""Models that normalise their class token only; the patches get the same norm, so that all tokens lie in one space."""


class HfImageModule(ImageModule):
    """Normalised patch tokens of a transformers vision encoder (special tokens first), or its last feature map.

    Pooled is the class token; where there is none, the output of the model's pooler, or the mean.

    Args:
        model: the transformers model; with ``projected`` a dual encoder without its other side.
        projected: pooled is the embedding [B, E] of a dual encoder.
    """

    def __init__(self, model: Any, preprocess: ImagePreprocess, *, projected: bool = False):
        super().__init__(preprocess)
        self.body, self.projected = model, projected
        model = self.encoder
        self.patch_grid = _patch_grid(model.config, preprocess.size)
        self.has_class_token = any(name.rpartition(".")[2] in CLASS_TOKENS for name, _ in model.named_parameters())
        self.pooled_from = "first" if self.has_class_token and not projected else "model"
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

    @property
    def encoder(self) -> Any:
        """The image encoder."""
        return self.body.vision_model if self.projected else self.body

    def encode(self, pixels: Tensor) -> ImageEncoding:
        options: dict[str, Any] = dict(self.options)
        if self.masks_patches and self.patch_grid:
            order = torch.arange(math.prod(self.patch_grid), device=pixels.device, dtype=torch.float32)
            options["noise"] = order.expand(len(pixels), -1)
        encode = self.body.get_image_features if self.projected else self.body
        output = encode(pixel_values=pixels, **options)
        tokens = output.last_hidden_state
        if tokens.dim() == 4:
            tokens, mean, map_grid = feature_map_tokens(tokens)
            return tokens, output.pooler_output if self.projected else mean, map_grid
        if self.norm_last:
            tokens = self.encoder.post_layernorm(tokens)
        if self.detections:
            tokens = tokens[:, : -self.detections]
        # hierarchical models have fewer tokens than patches, and no grid is declared for them
        grid = self.patch_grid if self.patch_grid and math.prod(self.patch_grid) <= tokens.shape[1] else None
        if self.projected:
            return tokens, output.pooler_output, grid
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
    projected = config.projected
    hf_config, processor, model = load_pretrained(spec, AutoImageProcessor, projected=projected)
    scale = dual_encoder_scale(model, spec, "image") if projected else None
    body = one_side(model, "image") if projected else encoder_of(model, "image")[0]
    preprocess = image_preprocess(processor, config.size, spec, exact=projected)
    module = HfImageModule(body, preprocess, projected=projected)
    if projected and not config.size:  # its processor resizes to its own size only
        check_pixels(spec, module, preprocess, as_pixels(processor))
    return image_tower(
        spec,
        module,
        preprocess,
        pretrained=spec.weights != RANDOM,
        facts=(architecture_json(body.config),),
        save_assets=partial(save_components, [hf_config.save_pretrained, processor.save_pretrained]),
        scale=scale,
    )


def image_preprocess(processor: Any, size: int, spec: TowerSpec, *, exact: bool = False) -> ImagePreprocess:
    """Reads the geometry and the normalisation of a transformers image processor.

    Args:
        size: pixels of the square input; 0 = the processor's own.
        exact: decode and resize as transformers does.
    """
    target, crop = processor.size, getattr(processor, "crop_size", None)
    crops = bool(getattr(processor, "do_center_crop", False) and crop)
    short_side = target.get("shortest_edge")
    crop_share = getattr(processor, "crop_pct", None) or 1.0  # ConvNeXt resizes to a larger image, then crops
    resize: tuple[int, ...] = (
        (target["height"], target["width"]) if short_side is None else (int(short_side / crop_share),)
    )
    if crops and crop:
        final = (crop["height"], crop["width"])
    else:
        final = (target["height"], target["width"]) if short_side is None else (short_side, short_side)
    if size:
        resize = (size, size) if short_side is None else (round(size * resize[0] / min(final)),)
        final = (size, size)
    interpolation = Image.Resampling(processor.resample).name.lower()
    mean, std = _normalisation(processor)
    resize_tensor = exact and isinstance(processor, TorchvisionBackend)
    return ImagePreprocess(final, resize, interpolation, mean, std, exact, resize_tensor, crop_down=exact)


def _normalisation(processor: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and the standard deviation of each channel that a processor applies, for pixels in 0..1.

    It computes (pixel * factor - offset - mean) / std, and EfficientNet's may divide by std again.
    """
    factor = processor.rescale_factor if getattr(processor, "do_rescale", True) else 1.0
    offset = 1.0 if getattr(processor, "rescale_offset", False) else 0.0
    normalises = getattr(processor, "do_normalize", True)
    means, stds = (processor.image_mean, processor.image_std) if normalises else ((0.0,) * 3, (1.0,) * 3)
    again = processor.image_std if getattr(processor, "include_top", False) else (1.0,) * 3
    unit = 255 * factor
    mean = tuple((offset + m) / unit for m in means)
    return mean, tuple(s * a / unit for s, a in zip(stds, again, strict=True))


def _patch_grid(config: Any, size: tuple[int, int]) -> tuple[int, int] | None:
    patch = getattr(config, "patch_size", None)
    if isinstance(patch, int):
        patch = (patch, patch)
    return (size[0] // patch[0], size[1] // patch[1]) if patch else None
