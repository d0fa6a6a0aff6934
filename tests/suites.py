"""Small copies of published suites, in the layouts in which they are published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ARO_BOXES = [(0, (4, 2, 16, 16)), (1, (0, 0, 30, 30)), (2, (8, 8, 40, 40)), (3, (-2, 0, 20, 20))]
"""(image, box as x, y, width, height); the last begins outside of its image."""


def _images(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in names:
        Image.fromarray(rng.integers(0, 255, (48, 40, 3), np.uint8)).save(folder / name)


def winoground_folder(root: Path, examples: int = 3, folder: str = "data") -> Path:
    """``folder`` holds examples.jsonl and images/ of Winoground."""
    sides = [(example, side) for example in range(examples) for side in range(2)]
    _images(root / folder / "images", [f"ex_{example}_img_{side}.png" for example, side in sides])
    lines = [
        {
            "id": example,
            "caption_0": f"red {example}",
            "image_0": f"ex_{example}_img_0",
            "caption_1": f"blue {example}",
            "image_1": f"ex_{example}_img_1",
            "tag": "Noun",
            "secondary_tag": "",
            "num_main_preds": 1,
            "collapsed_tag": "Object" if example % 2 == 0 else "Relation",
        }
        for example in range(examples)
    ]
    (root / folder / "examples.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n", "utf-8")
    return root


def aro_folder(root: Path) -> Path:
    """Four relations of two kinds, 25 attributions of one pair and 1 of another, on four crops."""
    _images(root / "images", [f"{i}.png" for i in range(4)])

    def item(number: int, **fields: Any) -> dict[str, Any]:
        image, box = ARO_BOXES[number % 4]
        names = ("bbox_x", "bbox_y", "bbox_w", "bbox_h")
        return {"image_id": image, "image_path": f"{image}.png", **dict(zip(names, box, strict=True)), **fields}

    relations = [
        item(i, relation_name=name, true_caption=f"{i} is left", false_caption=f"{i} is right")
        for i, name in enumerate(("to the left of", "on", "on", "on"))
    ]
    attributions = [
        item(i, attributes=["red", "old"], true_caption=f"red {i} old", false_caption=f"old {i} red") for i in range(25)
    ]
    attributions += [item(0, attributes=["big", "wet"], true_caption="big and wet", false_caption="wet and big")]
    (root / "visual_genome_relation.json").write_text(json.dumps(relations), "utf-8")
    (root / "visual_genome_attribution.json").write_text(json.dumps(attributions), "utf-8")
    return root


def crossmodal_folder(root: Path, photos: int = 6) -> Path:
    """Photos with one German and two English captions each."""
    _images(root / "images", [f"{i}.jpg" for i in range(photos)])
    lines = [
        {
            "image/key": f"{i}",
            "image/locale": "de",
            "de": {"caption": [f"hund {i}"], "caption/tokenized": [f"hund {i}"]},
            "en": {"caption": [f"a dog {i}", f"the dog  {i}"], "caption/tokenized": [f"a dog {i}", f"the dog {i}"]},
        }
        for i in range(photos)
    ]
    (root / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n", "utf-8")
    return root
