"""What an exported decoder does without torch: pixels of images, and words of token ids."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tokenizers
from PIL import Image

from ccaco_cli.core.config import TowerConfig
from ccaco_cli.core.model import towers
from ccaco_cli.core.model.towers.image_base import ImagePreprocess
from ccaco_cli.core.retrieval.exported_describer import Pixels

SIZES = ((40, 30), (64, 97), (300, 200), (32, 32), (33, 500), (500, 33), (31, 45))


@pytest.mark.parametrize(
    "settings",
    [
        {"size": (32, 32), "resize": (32,), "interpolation": "bicubic"},
        {"size": (31, 28), "resize": (36,), "interpolation": "bilinear"},
        {"size": (31, 28), "resize": (36,), "interpolation": "lanczos", "crop_down": True},
        {"size": (24, 48), "resize": (24, 48), "interpolation": "bicubic", "exact": True},
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pixels_equal_those_of_the_tower(settings: dict[str, Any], mode: str) -> None:
    generator = np.random.default_rng(0)
    for width, height in SIZES:
        image = Image.fromarray(generator.integers(0, 256, (height, width, 3), np.uint8)).convert(mode)
        wanted = ImagePreprocess(mean=(0.5,) * 3, std=(0.5,) * 3, **settings)(image)
        assert np.array_equal(Pixels(**settings)(image), wanted.numpy()), (width, height)


def test_the_portable_tokenizer_decodes_as_its_own() -> None:
    tokenizer = towers.build(TowerConfig(), "text").tokenizer
    assert tokenizer is not None
    description, _ = tokenizer.portable() or ("", {})
    portable = tokenizers.Tokenizer.from_str(description)
    for text in ("a dog, and a cat.", "caf\u00e9 \u5b57\u7b26 \U0001f600 10,000.50", "it's"):
        ids = tokenizer([text])["ids"][0].tolist()[1:-1]
        assert " ".join(portable.decode(ids).split()).replace(" ", "") == tokenizer.decode(ids).replace(" ", "")
