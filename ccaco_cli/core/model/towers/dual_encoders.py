"""Pretrained dual encoders: which models have a joint space of two modalities, and how one side is taken out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import AutoConfig

from ccaco_cli.core.errors import TowerError
from ccaco_cli.core.model.towers.tower import TowerSpec
from ccaco_cli.core.model.towers.weights import hub_access, hub_name, hub_revision, weights_file

LogitScale = tuple[float, float | None]
"""(logit scale, logit bias) of a dual encoder."""
BODY = {"image": "vision_model", "text": "text_model", "audio": "audio_model"}
"""Modality -> attribute of a CLIP-like model that holds its encoder."""
DUAL_ENCODERS: Mapping[str, tuple[str, str]] = {
    **dict.fromkeys(
        ("clip", "siglip", "align", "chinese_clip", "altclip", "metaclip_2", "vision-text-dual-encoder"),
        ("image", "text"),
    ),
    "clap": ("audio", "text"),
}
"""``model_type`` of a dual encoder -> the modalities that it aligns."""
NO_DUAL_ENCODERS = {
    "siglip2": "its image sizes vary from image to image (NaFlex); the SigLIP 2 models of fixed size work",
    "xclip": "its text embedding depends on the video that it is compared with",
}
"""``model_type`` of a model with two encoders that is refused -> why."""


def dual_modalities(spec: TowerSpec) -> tuple[str, str]:
    """The modalities that the dual encoder of a SPEC aligns.

    Raises:
        TowerError: a family without dual encoders, or a model that is none.
    """
    if spec.family == "open_clip":
        return "image", "text"
    if spec.family != "hf":
        raise TowerError(
            "this family has no pretrained models of two modalities",
            where=spec,
            expected="open_clip:NAME@TAG, open_clip:FOLDER, hf:NAME or hf:FOLDER",
        )
    name = hub_name(spec)
    with hub_access(spec):
        config = AutoConfig.from_pretrained(name, revision=hub_revision(spec, weights_file(spec)))
    return _dual_modalities(config.model_type, spec)


def _dual_modalities(model_type: str, spec: TowerSpec) -> tuple[str, str]:
    if why := NO_DUAL_ENCODERS.get(model_type):
        raise TowerError(
            f"a {model_type} model cannot be used with its own projections: {why}",
            where=spec,
            expected=" | ".join(DUAL_ENCODERS),
        )
    if model_type not in DUAL_ENCODERS:
        raise TowerError(
            f"a {model_type} model has no joint space of two modalities",
            where=spec,
            expected=" | ".join(DUAL_ENCODERS),
            next="train heads on it: --image-tower SPEC or --text-tower SPEC",
        )
    return DUAL_ENCODERS[model_type]


def dual_encoder_scale(model: Any, spec: TowerSpec, modality: str) -> LogitScale:
    """The logit scale and bias of a dual encoder. Raises TowerError: it is none, or has no such modality."""
    modalities = _dual_modalities(model.config.model_type, spec)
    if modality not in modalities:
        raise TowerError(
            f"this model aligns {modalities[0]} and {modalities[1]}", where=spec, expected=f"a model of {modality}"
        )
    if hasattr(model, "temperature"):  # ALIGN
        return 1 / float(model.temperature.detach()), None
    log_scale = model.logit_scale_a if hasattr(model, "logit_scale_a") else model.logit_scale
    bias = getattr(model, "logit_bias", None)
    return float(log_scale.detach().exp()), None if bias is None else float(bias.detach())


def one_side(model: Any, modality: str) -> Any:
    """A dual encoder without the encoder and the projection of its other modality."""
    own = {"image": ("vision_model", "visual_projection")}.get(modality, (BODY[modality], f"{modality}_projection"))
    for name, _ in list(model.named_children()):
        if name not in own:
            delattr(model, name)
    for name, _ in list(model.named_parameters(recurse=False)):  # scale and bias belong to the aligner
        delattr(model, name)
    return model
