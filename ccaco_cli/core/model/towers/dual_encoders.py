"""Pretrained dual encoders: which models have a joint space of two modalities, and how one side is taken out."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
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


_shared_loads: ContextVar[dict[Hashable, Any] | None] = ContextVar("shared_loads", default=None)


@contextmanager
def sharing_loads() -> Iterator[None]:
    """Within this block both sides of a model are taken from one load of it."""
    token = _shared_loads.set({})
    try:
        yield
    finally:
        _shared_loads.reset(token)


def load_once(key: Hashable, load: Callable[[], Any], fits: Callable[[Any], bool] | None = None) -> Any:
    """Returns ``load()``; within ``sharing_loads`` the result of an earlier call with this key.

    Args:
        fits: key of an earlier call -> whether its result serves this call, too; None = only that of the same key.
    """
    loads = _shared_loads.get()
    if loads is None:
        return load()
    key = next((known for known in loads if fits is not None and fits(known)), key)
    if key not in loads:
        loads[key] = load()
    return loads[key]


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
    return read_scale(model)


def read_scale(model: Any) -> LogitScale:
    """The logit scale and bias of a dual encoder of transformers."""
    if hasattr(model, "temperature"):  # ALIGN
        return 1 / float(model.temperature.detach()), None
    log_scale = model.logit_scale_a if hasattr(model, "logit_scale_a") else model.logit_scale
    bias = getattr(model, "logit_bias", None)
    return float(log_scale.detach().exp()), None if bias is None else float(bias.detach())


def set_scale(model: Any, scale: LogitScale) -> None:
    """Sets what ``read_scale`` reads; both directions of CLAP get the same scale."""
    logit_scale, bias = scale
    values = {"temperature": 1 / logit_scale, "logit_bias": bias}
    values |= dict.fromkeys(("logit_scale", "logit_scale_a", "logit_scale_t"), math.log(logit_scale))
    for name, value in values.items():
        if value is not None and getattr(model, name, None) is not None:
            getattr(model, name).data.fill_(value)


def one_side(model: Any, modality: str) -> Any:
    """A dual encoder without the encoder and the projection of its other modality; ``model`` itself stays whole."""
    parts = {"image": ("vision_model", "visual_projection")}.get(modality, (BODY[modality], f"{modality}_projection"))
    side = copy.copy(model)
    side._modules = {name: module for name, module in model._modules.items() if name in parts}
    side._parameters = {}  # scale and bias belong to the aligner
    return side
