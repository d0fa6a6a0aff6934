"""Two ONNX graphs, and in ``preprocessing.json`` and ``tokenizer.json`` all that comes before them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor, nn
from torchvision.transforms import functional as transforms

from ccaco_cli.core.errors import DataError
from ccaco_cli.core.experiments.pretrained import LoadedModel
from ccaco_cli.core.export.dual_encoder import global_half_missing, scale_of
from ccaco_cli.core.export.export_format import ExportFormat
from ccaco_cli.core.export.same_vectors import LibraryModel, images
from ccaco_cli.core.manifest import read_json, write_bytes, write_json
from ccaco_cli.core.model.aligner import Aligner
from ccaco_cli.core.model.towers.image_base import ImagePreprocess
from ccaco_cli.core.retrieval.export import quiet_exporter, root_cause, write_graph
from ccaco_cli.core.retrieval.query import CLEAN, TOKENIZER, session, token_ids

SETTINGS, IMAGE, TEXT = "preprocessing.json", "image.onnx", "text.onnx"
IMAGE_INPUTS, TEXT_INPUTS = ("pixel_values",), ("input_ids", "attention_mask")
IMAGE_OUTPUT, TEXT_OUTPUT = "image_embeds", "text_embeds"
EXAMPLES = ("one caption of a few words", "two", "a third that is a little longer than the others are")
"""Texts with which the graph is traced."""
CLEANING = {
    "clip": "ftfy.fix_text, html.unescape twice, runs of white space to one space, strip, lower case",
    "whitespace": "ftfy.fix_text, html.unescape twice, runs of white space to one space, strip",
    "canonicalize": "ftfy.fix_text, html.unescape twice, _ to space, remove string.punctuation, lower case, "
    "runs of white space to one space, strip",
    "none": "Unicode normal form C (NFC)",
}
"""Name of an entry of ``query.CLEAN`` -> what it does, in words."""
USAGE = """import onnxruntime

folder = "NAME"      # this folder, or what huggingface_hub.snapshot_download returns
image_encoder = onnxruntime.InferenceSession(f"{folder}/image.onnx")
text_encoder = onnxruntime.InferenceSession(f"{folder}/text.onnx")
# preprocessing.json says how pixel_values, input_ids and attention_mask are made of images and texts
image_vectors = image_encoder.run(["image_embeds"], {"pixel_values": pixel_values})[0]      # unit vectors
text_vectors = text_encoder.run(["text_embeds"], {"input_ids": ids, "attention_mask": mask})[0]
"""


class _ImageGraph(nn.Module):
    """pixel_values [B, 3, H, W] float32, normalised -> [B, E] unit vectors."""

    mean: Tensor
    std: Tensor

    def __init__(self, aligner: Aligner, preprocess: ImagePreprocess):
        super().__init__()
        self.aligner = aligner
        self.register_buffer("mean", torch.tensor(preprocess.mean).view(1, 3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(preprocess.std).view(1, 3, 1, 1) * 255)

    def forward(self, pixel_values: Tensor) -> Tensor:
        # the tower takes pixels of 0..255, and normalises them itself
        return self.aligner.encode("image", {"pixels": pixel_values * self.std + self.mean})[0].z


class _TextGraph(nn.Module):
    """input_ids and attention_mask [B, L] int64 -> [B, E] unit vectors."""

    def __init__(self, aligner: Aligner):
        super().__init__()
        self.aligner = aligner

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.aligner.encode("text", {"ids": input_ids, "mask": attention_mask.bool()})[0].z


def why_not(model: LoadedModel) -> str:
    """Why the graphs and their preprocessing cannot hold a model; "" = they can."""
    if reason := global_half_missing(model):
        return reason
    if set(model.towers) != {"image", "text"}:
        return f"it encodes {' and '.join(model.towers)}, and only images and texts have their preprocessing here"
    tokenizer = model.towers["text"].tokenizer
    if tokenizer is None or tokenizer.portable() is None:
        return f"its tokenizer cannot be written as {TOKENIZER}"
    return ""


def write(model: LoadedModel, folder: Path) -> None:
    """Writes both graphs, the tokenizer and the preprocessing.

    Args:
        folder: exists, and is empty.
    Raises:
        DataError: torch cannot export this model.
    """
    image, text = model.towers["image"], model.towers["text"]
    assert isinstance(image.preprocess, ImagePreprocess) and text.tokenizer is not None
    tokenizer, settings = text.tokenizer.portable() or ("", {})
    write_bytes(folder / TOKENIZER, tokenizer.encode())
    write_json(folder / SETTINGS, _preprocessing(model, image.preprocess, settings))
    texts = text.preprocess(list(EXAMPLES))
    pixels = _pixel_values(image.preprocess, images())
    try:
        with torch.inference_mode(False), torch.no_grad(), quiet_exporter():
            image_graph = _ImageGraph(model.aligner, image.preprocess)
            write_graph(folder / IMAGE, image_graph, (pixels,), IMAGE_INPUTS, (IMAGE_OUTPUT,))
            arguments = (texts["ids"], texts["mask"].long())
            write_graph(folder / TEXT, _TextGraph(model.aligner), arguments, TEXT_INPUTS, (TEXT_OUTPUT,))
    except Exception as error:  # the exporter raises many kinds of errors
        raise DataError(
            f"torch cannot export this model as ONNX graphs ({root_cause(error)})",
            where=model.manifest.facts["name"],
            expected="a model whose operations ONNX has",
        ) from error


def read(folder: Path) -> LibraryModel:
    """Loads an exported model with ONNX Runtime, and preprocesses as ``preprocessing.json`` says."""
    settings = read_json(folder / SETTINGS)
    image_graph, text_graph = session(folder / IMAGE), session(folder / TEXT)
    tokenizer, text = Tokenizer.from_file(str(folder / TOKENIZER)), settings["text"]
    preprocess = _image_preprocess(settings["image"])

    def encode_images(samples: Sequence[Image.Image]) -> Tensor:
        pixels = _pixel_values(preprocess, samples).numpy()
        return torch.from_numpy(image_graph.run([IMAGE_OUTPUT], {IMAGE_INPUTS[0]: pixels})[0])

    def encode_texts(samples: Sequence[str]) -> Tensor:
        clean = CLEAN[text["clean"]]
        ids, mask = token_ids(tokenizer, [clean(sample) for sample in samples], text["pad_id"], text["pad_to"])
        inputs = dict(zip(TEXT_INPUTS, (ids, mask.astype(np.int64)), strict=True))
        return torch.from_numpy(text_graph.run([TEXT_OUTPUT], inputs)[0])

    return LibraryModel({"image": encode_images, "text": encode_texts}, settings["logit_scale"], settings["logit_bias"])


def _preprocessing(model: LoadedModel, preprocess: ImagePreprocess, text: dict[str, Any]) -> dict[str, Any]:
    scale, bias = scale_of(model)
    image = {
        "graph": IMAGE,
        "input": f"{IMAGE_INPUTS[0]} [batch, 3, height, width] float32",
        "output": f"{IMAGE_OUTPUT} [batch, {model.aligner.embedding_size}] float32, unit norm",
        "steps": _image_steps(preprocess),
        **{name: value for name, value in asdict(preprocess).items() if name != "exact"},
    }
    return {
        "image": image,
        "text": {
            "graph": TEXT,
            "inputs": f"{' and '.join(TEXT_INPUTS)} [batch, length] int64",
            "output": f"{TEXT_OUTPUT} [batch, {model.aligner.embedding_size}] float32, unit norm",
            "steps": [
                f"clean: {CLEANING[text['clean']]}",
                f"{TOKENIZER}, which adds the special tokens and cuts to the context length; a character of which only "
                "some tokens are left is removed from the text, which is tokenized again",
                f"pad with pad_id to the longest text of the batch{', at least pad_to tokens' * bool(text['pad_to'])}",
                f"{TEXT_INPUTS[1]}: 1 = token, 0 = padding",
            ],
            "tokenizer": TOKENIZER,
            "context_length": model.towers["text"].tokens,
            **text,
        },
        "embedding_size": model.aligner.embedding_size,
        "logit_scale": scale,
        "logit_bias": bias,
        "score": "logit_scale * cosine" + (" + logit_bias" if bias is not None else ""),
    }


def _image_steps(preprocess: ImagePreprocess) -> list[str]:
    (height, width), resize = preprocess.size, preprocess.resize
    target = f"the short side to {resize[0]}" if len(resize) == 1 else f"to {resize[0]} x {resize[1]} (height x width)"
    of = "the uint8 tensor, with antialiasing (torchvision)" if preprocess.resize_tensor else "the image (Pillow)"
    return [
        "convert to RGB",
        f"resize {target} pixels, {preprocess.interpolation}, of {of}; the long side is rounded down",
        f"crop {height} x {width} pixels (height x width) from the centre; its offset is half of the excess, "
        + ("rounded down" if preprocess.crop_down else "and half a pixel is rounded to an even number"),
        "divide by 255, subtract mean, divide by std (of each channel)",
        "channels first",
    ]


def _image_preprocess(settings: dict[str, Any]) -> ImagePreprocess:
    values = {field.name: settings[field.name] for field in fields(ImagePreprocess) if field.name in settings}
    tuples = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    return ImagePreprocess(**{**values, **tuples, "exact": True})


def _pixel_values(preprocess: ImagePreprocess, samples: Sequence[Image.Image]) -> Tensor:
    """Images as normalised pixels [n, 3, H, W]."""
    pixels = torch.stack([preprocess(image) for image in samples]).float() / 255
    normalised: Tensor = transforms.normalize(pixels, list(preprocess.mean), list(preprocess.std))
    return normalised


FORMAT = ExportFormat("onnx", lambda model: USAGE, "", why_not, write, read)
