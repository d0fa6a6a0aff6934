"""Loading open_clip's models, which hold an image and a text tower: by name and tag, from a file, or from a folder."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
from open_clip.hf_model import HFTextEncoder
from torch import nn

from ccaco_cli.core.config import TowerConfig
from ccaco_cli.core.errors import TowerError
from ccaco_cli.core.manifest import write_json
from ccaco_cli.core.model.towers.dual_encoders import LogitScale, load_once
from ccaco_cli.core.model.towers.tower import TowerSpec
from ccaco_cli.core.model.towers.weights import (
    RANDOM,
    check_state_keys,
    first_line,
    hub_access,
    nearest,
    weights_file,
)

CONFIG = "open_clip_config.json"  # the name and layout that open_clip itself publishes and reads
TEXT_CONFIG = "text_config"
"""Folder beside ``CONFIG`` with the config of a text tower of transformers, so that it is rebuilt without a network."""
CONTEXT_LENGTH = 77
"""open_clip's context length where a config names none."""


@dataclass(frozen=True)
class OpenClipModel:
    """A model of open_clip.

    Attributes:
        model: with the towers ``visual`` and ``text``.
        config: its resolved ``model_cfg``.
        name: its name for open_clip's own functions.
    """

    model: Any
    config: dict[str, Any]
    name: str

    @property
    def scale(self) -> LogitScale:
        bias = getattr(self.model, "logit_bias", None)
        return float(self.model.logit_scale.detach().exp()), None if bias is None else float(bias.detach())

    @property
    def context_length(self) -> int:
        """Tokens to which open_clip's own tokenizer of this model pads and cuts."""
        return int(self.config["text_cfg"].get("context_length") or CONTEXT_LENGTH)

    def save(self, tokenizer: Any, folder: Path) -> str:
        """``Tower.save_assets``: writes the config, the hub tokenizer, and the config of an encoder of transformers."""
        write_json(folder / CONFIG, {"model_cfg": self.config, "preprocess_cfg": self.model.visual.preprocess_cfg})
        if isinstance(self.model.text, HFTextEncoder):
            self.model.text.config.save_pretrained(folder / TEXT_CONFIG)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        return f"open_clip:{folder}@{RANDOM}"


def load(spec: TowerSpec, config: TowerConfig, *, text_only: bool = False) -> OpenClipModel:
    """Loads ``open_clip:NAME@TAG|FILE|none`` or ``open_clip:FOLDER[@FILE|none]``.

    Within ``sharing_loads`` both sides are taken from one load of the model, which builds both of its towers anyway.

    Args:
        text_only: only the text tower is wanted, whatever the image size of the model.
    """

    def fits(other: tuple[str, bool, int]) -> bool:
        return other[:2] == key[:2]

    key = (str(spec), config.projected, config.size)
    make = partial(_load, spec, config.size, projected=config.projected)
    model: OpenClipModel = load_once(key, make, fits if text_only else None)
    return model


def _load(spec: TowerSpec, size: int, *, projected: bool) -> OpenClipModel:
    name, file = spec.name.replace("/", "-"), weights_file(spec)
    config, tags, name = _model_config(spec, name)
    if projected and "multimodal_cfg" in config:
        raise TowerError(
            "a CoCa model cannot be used with its own projections: its text tower reads a class token behind the text",
            where=spec,
            expected="a CLIP or SigLIP model",
            next="train heads on it: --image-tower SPEC",
        )
    if file is None and spec.weights not in ("", RANDOM, *tags):
        raise TowerError(
            "unknown open_clip weights", where=spec, expected=nearest(spec.weights, [*tags, RANDOM]) + ", or a file"
        )
    tag = spec.weights if spec.weights in tags else None
    if not spec.weights:
        file = _weights_in_folder(spec)
    # OpenAI's weights need QuickGELU even under the plain name; open_clip only warns.
    config["quick_gelu"] = bool(
        config.get("quick_gelu") or (tag and open_clip.get_pretrained_cfg(name, tag).get("quick_gelu"))
    )
    if size:
        config["vision_cfg"]["image_size"] = size
    text_config = {**config["text_cfg"], "hf_model_pretrained": False}
    if (Path(spec.name) / TEXT_CONFIG).is_dir():
        text_config["hf_model_name"] = str(Path(spec.name) / TEXT_CONFIG)
    with hub_access(spec):
        model = open_clip.create_model(
            name,
            tag,
            load_weights=tag is not None,
            force_quick_gelu=config["quick_gelu"],
            force_custom_text=True,
            force_image_size=size or None,
            pretrained_text=False,
            # the config that was saved beside the model names no folder of another machine
            **({"text_cfg": text_config} if "hf_model_name" in text_config else {}),
        )
    if file:
        _load_file(model, file, name)
    return OpenClipModel(model, config, name)


def _model_config(spec: TowerSpec, name: str) -> tuple[dict[str, Any], list[str], str]:
    """Returns (config, published tags of weights, name for open_clip) of a model by folder or by name."""
    folder = Path(spec.name)
    if not spec.name:
        raise TowerError("no model is named", where=spec, expected="open_clip:NAME@TAG or open_clip:FOLDER")
    if (folder / CONFIG).is_file():
        return _folder_config(folder), [], f"local-dir:{folder}"
    if folder.is_dir() or spec.name.startswith((".", "/", "~")):
        raise TowerError(f"no {CONFIG} here", where=folder, expected="a folder with a model in open_clip's own layout")
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


def _folder_config(folder: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG).read_text("utf-8"))["model_cfg"]
        _ = config["text_cfg"], config["vision_cfg"]["image_size"]
    except (ValueError, KeyError, TypeError) as error:
        raise TowerError(
            f"this config cannot be read ({type(error).__name__}: {first_line(error)})",
            where=folder / CONFIG,
            expected="JSON with model_cfg, vision_cfg and text_cfg, as open_clip publishes it",
        ) from error
    return config


def _weights_in_folder(spec: TowerSpec) -> Path:
    """The file of weights that open_clip itself would load from a folder."""
    file = open_clip.factory._find_checkpoint_in_dir(Path(spec.name))
    if file is None:
        raise TowerError(
            "no weights in this folder",
            where=spec.name,
            expected="open_clip_model.safetensors beside its config",
            next=f"{spec}@FILE, or {spec}@{RANDOM} for random weights",
        )
    return Path(file)


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
