"""The adapter for mteb without mteb: what its methods return."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

import ccaco_cli
from tests.pretrained_models import open_clip_folder

SCRIPT = Path(__file__).parents[2] / "examples/mteb_encoder.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mteb_encoder", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_embeddings_are_those_of_the_model(script: ModuleType, tmp_path: Path) -> None:
    folder = open_clip_folder(tmp_path / "vit")
    encoder = script.Encoder(f"open_clip:{folder}", device="cpu")
    model = ccaco_cli.load(f"open_clip:{folder}", "cpu", "fp32")
    images = [Image.new("RGB", (40, 32), (60 * number, 90, 120)) for number in range(3)]
    texts = ["a dog", "two cats", "a red ball over the hills"]
    batches = [{"image": images[:2], "text": texts[:2]}, {"image": images[2:], "text": texts[2:]}]
    z_image, z_text = model.encode(images=images), model.encode(texts=texts)
    assert encoder.get_image_embeddings(batches) == pytest.approx(z_image, abs=1e-5)
    assert encoder.get_text_embeddings(batches, batch_size=2) == pytest.approx(z_text, abs=1e-5)
    assert encoder.encode(batches, task_metadata=None, hf_split="test", hf_subset="default") == pytest.approx(
        z_image + z_text, abs=1e-5
    )
    assert encoder.encode([]).shape == (0, model.embedding_size)
    assert encoder.similarity(2 * z_image, z_text) == pytest.approx(z_image @ z_text.T, abs=1e-5)
    assert encoder.similarity_pairwise(z_image, z_text) == pytest.approx(np.diag(z_image @ z_text.T), abs=1e-5)
    with pytest.raises(ValueError, match="a batch of audio, and this model encodes image and text"):
        encoder.encode([{"audio": [1]}])
