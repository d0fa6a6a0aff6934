"""The format of open_clip: a folder with ``open_clip_config.json`` and ``open_clip_model.safetensors``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor, nn

from ccaco_cli.core.experiments.pretrained import LoadedModel
from ccaco_cli.core.export.dual_encoder import load_state, not_of_family, scale_of
from ccaco_cli.core.export.export_format import ExportFormat
from ccaco_cli.core.export.same_vectors import LibraryModel
from ccaco_cli.core.manifest import read_json, write_json
from ccaco_cli.core.model.towers.open_clip_models import CONFIG, TEXT_CONFIG
from ccaco_cli.core.model.towers.torchvision_timm import TimmModule
from ccaco_cli.core.model.weights import save_weights

WEIGHTS = "open_clip_model.safetensors"
USAGE = """import open_clip

model, _, preprocess = open_clip.create_model_and_transforms("local-dir:NAME")
tokenizer = open_clip.get_tokenizer("local-dir:NAME")
image_vectors = model.eval().encode_image(preprocess(image).unsqueeze(0), normalize=True)
text_vectors = model.encode_text(tokenizer(["a dog chasing a ball"]), normalize=True)
"""


def why_not(model: LoadedModel) -> str:
    """Why open_clip cannot hold a model; "" = it can."""
    return not_of_family(model, "open_clip")


def write(model: LoadedModel, folder: Path) -> None:
    """Writes architecture, preprocessing, tokenizer (where it is none of open_clip's own) and weights.

    Args:
        folder: exists, and is empty.
    """
    for modality in ("text", "image"):  # the size of the images is in the file of the image tower
        model.towers[modality].save_assets(folder)
    scale, bias = scale_of(model)
    described = read_json(folder / CONFIG)
    described["model_cfg"]["text_cfg"]["context_length"] = model.towers["text"].tokens
    if bias is not None:
        described["model_cfg"]["init_logit_bias"] = bias
    write_json(folder / CONFIG, described)
    published = open_clip.create_model(
        f"local-dir:{folder}", load_weights=False, pretrained_text=False, **_text_config(folder)
    )
    state = _state(model.aligner.encoder("image").tower, model.aligner.encoder("text").tower, published)
    with torch.no_grad():
        published.logit_scale.fill_(math.log(scale))
        if bias is not None:
            published.logit_bias.fill_(bias)
    state |= {name: parameter.detach() for name, parameter in _scale_and_bias(published).items()}
    load_state(published, state, model.manifest.facts["name"])
    save_weights(folder / WEIGHTS, published, everything=True)


def read(folder: Path) -> LibraryModel:
    """Loads an exported model with open_clip's own code."""
    name = f"local-dir:{folder}"
    model, _, preprocess = open_clip.create_model_and_transforms(name, **_text_config(folder))
    tokenizer = open_clip.get_tokenizer(name)
    model.eval()
    bias = getattr(model, "logit_bias", None)
    return LibraryModel(
        {
            "image": lambda samples: model.encode_image(torch.stack([preprocess(image) for image in samples])),
            "text": lambda samples: model.encode_text(tokenizer(list(samples))),
        },
        float(model.logit_scale.detach().exp()),
        None if bias is None else float(bias.detach()),
    )


def _text_config(folder: Path) -> dict[str, Any]:
    """Takes the config of an encoder of transformers from the folder, where open_clip takes it from the hub."""
    text_config = read_json(folder / CONFIG)["model_cfg"]["text_cfg"]
    if "hf_model_name" not in text_config or not (folder / TEXT_CONFIG).is_dir():
        return {}
    return {"text_cfg": {**text_config, "hf_model_name": str(folder / TEXT_CONFIG), "hf_model_pretrained": False}}


def _state(image: nn.Module, text: nn.Module, published: nn.Module) -> dict[str, Tensor]:
    """The weights of both towers under the names of open_clip's ``CLIP`` or ``CustomTextCLIP``."""
    text_prefix = "text." if hasattr(published, "text") else ""
    parts: dict[str, Any] = {text_prefix: text.body}
    if isinstance(image, TimmModule) and image.head is not None:
        parts |= {"visual.trunk.": image.body, "visual.head.": image.head}
    else:
        parts["visual."] = image.body
    state = {prefix + name: tensor for prefix, part in parts.items() for name, tensor in part.state_dict().items()}
    positions = f"{text_prefix}positional_embedding"
    if positions in state:  # a shorter context uses the first ones
        state[positions] = state[positions][: published.get_parameter(positions).shape[0]]
    return state


def _scale_and_bias(published: nn.Module) -> Mapping[str, Tensor]:
    return {name: p for name, p in published.named_parameters(recurse=False) if name.startswith("logit_")}


FORMAT = ExportFormat("open_clip", lambda model: USAGE, "open_clip:FOLDER", why_not, write, read)
