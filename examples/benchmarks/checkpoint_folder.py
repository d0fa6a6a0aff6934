"""A dual encoder with random weights in open_clip's own layout, as a published checkpoint lies on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file


def write_checkpoint(folder: Path, size: int, vision: Mapping[str, Any], text: Mapping[str, Any]) -> Path:
    """Writes a model into a new folder, and returns the folder.

    Args:
        size: E, numbers of one embedding.
        vision, text: settings of both towers, as in ``model_cfg``.
    """
    folder.mkdir()
    config = {
        "model_cfg": {"embed_dim": size, "vision_cfg": vision, "text_cfg": text},
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bicubic", "resize_mode": "shortest"},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / "open_clip_model.safetensors")
    return folder
