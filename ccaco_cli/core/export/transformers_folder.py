"""The format of transformers: a dual encoder with its tokenizer and its image processor or feature extractor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer

from ccaco_cli.core.experiments.pretrained import LoadedModel
from ccaco_cli.core.export.dual_encoder import load_state, not_of_family, scale_of
from ccaco_cli.core.export.export_format import ExportFormat
from ccaco_cli.core.export.same_vectors import LibraryModel
from ccaco_cli.core.model.towers.dual_encoders import read_scale, set_scale
from ccaco_cli.core.model.towers.hf import PADDED_TEXT

FEATURES = {
    "image": """image_vectors = model.get_image_features(
    **processor(images=image, return_tensors="pt")
).pooler_output
""",
    "audio": """audio_vectors = model.get_audio_features(
    **processor(audio=samples, sampling_rate=RATE, return_tensors="pt")
).pooler_output
""",
}
"""Modality -> code that encodes a sample."""


def usage(model: LoadedModel) -> str:
    """Code that encodes with an exported model; NAME stands for its place."""
    padded, modality = _is_padded(model.aligner.encoder("text").tower.body), model.aligner.modalities[0]  # type: ignore[arg-type]
    padding = '"max_length"' if padded else "True"
    return f"""from transformers import AutoModel, AutoProcessor

model, processor = AutoModel.from_pretrained("NAME"), AutoProcessor.from_pretrained("NAME")
inputs = processor(text=["a dog chasing a ball"], padding={padding}, truncation=True, return_tensors="pt")
text_vectors = model.get_text_features(**inputs).pooler_output      # not normalised
{FEATURES[modality]}"""


def why_not(model: LoadedModel) -> str:
    """Why a dual encoder of transformers cannot hold a model; "" = it can."""
    if reason := not_of_family(model, "hf"):
        return reason
    image = model.towers.get("image")
    if image is not None and getattr(image.module, "options", None):
        return "its images have another size than those that it was published for"
    _, bias = scale_of(model)
    space = model.towers["text"].space
    learned = bias is not None and (space is None or space.logit_bias is None)
    return "it has learned a logit bias, for which its architecture has no parameter" if learned else ""


def model_type(model: LoadedModel) -> str:
    """``model_type`` of the dual encoder of transformers that a model is."""
    return str(model.aligner.encoder("text").tower.body.config.model_type)  # type: ignore[union-attr]


def write(model: LoadedModel, folder: Path) -> None:
    """Writes config, weights and preprocessing.

    Args:
        folder: exists, and is empty.
    """
    for tower in model.towers.values():
        tower.save_assets(folder)
    published: Any = AutoModel.from_config(AutoConfig.from_pretrained(folder))
    with torch.no_grad():
        set_scale(published, scale_of(model))
    state = {name: parameter.detach() for name, parameter in published.named_parameters(recurse=False)}
    for modality in model.towers:
        state |= model.aligner.encoder(modality).tower.body.state_dict()  # type: ignore[union-attr]
    load_state(published, state, model.manifest.facts["name"])
    published.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.model_max_length = model.towers["text"].tokens
    tokenizer.save_pretrained(folder)


def read(folder: Path) -> LibraryModel:
    """Loads an exported model with the code of transformers. Only texts are encoded of a model of sounds."""
    model: Any = AutoModel.from_pretrained(folder)
    model.eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    padded = _is_padded(model)

    def encode_texts(samples: Any) -> Any:
        inputs = tokenizer(
            list(samples), padding="max_length" if padded else True, truncation=True, return_tensors="pt"
        )
        masked = {} if padded else {"attention_mask": inputs["attention_mask"]}
        return model.get_text_features(input_ids=inputs["input_ids"], **masked).pooler_output

    encode: dict[str, Any] = {"text": encode_texts}
    if hasattr(model, "vision_model"):
        processor: Any = AutoImageProcessor.from_pretrained(folder)
        encode["image"] = lambda samples: (
            model.get_image_features(**processor(list(samples), return_tensors="pt")).pooler_output
        )
    return LibraryModel(encode, *read_scale(model))


def _is_padded(model: Any) -> bool:
    """Whether a dual encoder was trained on texts that are padded to the full length, without a mask."""
    return model.text_model.config.model_type in PADDED_TEXT


FORMAT = ExportFormat("transformers", usage, "hf:FOLDER", why_not, write, read)
