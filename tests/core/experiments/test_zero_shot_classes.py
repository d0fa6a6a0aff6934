"""Zero-shot classification of raw folders of classes through the command line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from ccaco_cli.core.experiments.templates import load_templates
from tests.pretrained_models import open_clip_folder

CLASSES = ("dog", "red_ball", "green_hills")
PER_CLASS = 5


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return open_clip_folder(tmp_path_factory.mktemp("models") / "vit")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Class folders of random images, in the working directory."""
    monkeypatch.chdir(tmp_path)
    _write_classes(tmp_path / "pets")
    return tmp_path / "pets"


def _write_classes(folder: Path, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
        for number in range(PER_CLASS):
            pixels = rng.integers(0, 255, (6, 5, 3), np.uint8)
            Image.fromarray(pixels).resize((40, 48), Image.Resampling.NEAREST).save(folder / name / f"{number}.png")


def _accuracy_by_open_clip(model: Path, folder: Path, templates: list[Callable[[str], str]]) -> float:
    """Accuracy with the classifier that open_clip builds; classes in order of their names."""
    loaded, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{model}")
    names = sorted(name.replace("_", " ") for name in CLASSES)
    classifier = open_clip.build_zero_shot_classifier(
        loaded.eval(), open_clip.get_tokenizer(f"local-dir:{model}"), names, templates
    )
    files = sorted(folder.rglob("*.png"))
    with torch.no_grad():
        pixels = torch.stack([preprocess(Image.open(file)) for file in files])
        chosen = (F.normalize(loaded.encode_image(pixels), dim=-1) @ classifier).argmax(1)
    return float(
        np.mean([names[c] == file.parent.name.replace("_", " ") for c, file in zip(chosen, files, strict=True)])
    )


def test_accuracy_equals_open_clip_for_every_set_of_templates(
    ccaco: Callable[..., Any], model: Path, folder: Path, tmp_path: Path
) -> None:
    command = ("report", "--model", f"open_clip:{model}", "--on", "pets", "--device", "cpu", "--format", "json")
    (tmp_path / "mine.txt").write_text("{} two cats chase {}\nnever {}\n")
    sentences: dict[str, list[Callable[[str], str]]] = {
        "": [lambda name: f"a photo of a {name}"],
        "simple": list(load_templates("simple")),
        str(tmp_path / "mine.txt"): list(load_templates(str(tmp_path / "mine.txt"))),
    }
    accuracies, class_means = [], []
    for templates, functions in sentences.items():
        done = ccaco(*command, *(("--templates", templates) if templates else ()), "--table", "runs")
        assert done.code == 0, done.err
        assert ("pets is prepared as imagefolder in data/pets-" in done.err) == (templates == ""), done.err
        (row,) = json.loads(done.out)
        assert row["class_accuracy"] == pytest.approx(_accuracy_by_open_clip(model, folder, functions))
        accuracies.append(row["class_accuracy"])
        done = ccaco(*command, *(("--templates", templates) if templates else ()), "--table", "classes")
        class_means.append([row["class_accuracy"] for row in json.loads(done.out)])
    assert len({tuple(means) for means in class_means}) > 1, "templates change the results"
    assert len(list(Path("data").iterdir())) == 1, "prepared once"


def test_a_changed_folder_is_prepared_again(ccaco: Callable[..., Any], model: Path, folder: Path) -> None:
    command = ("report", "--model", f"open_clip:{model}", "--on", "pets", "--device", "cpu", "--format", "json")
    first = ccaco(*command)
    assert ccaco(*command).err == "" and len(list(Path("data").iterdir())) == 1
    file = folder / "dog" / "0.png"
    changed = Image.open(file).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    changed.save(file)
    os.utime(file, (1, 1))  # a clock may not tell two files of one size apart
    again = ccaco(*command)
    assert "is prepared as imagefolder" in first.err and "is prepared as imagefolder" in again.err
    assert len(list(Path("data").iterdir())) == 2


def test_runs_and_models_stand_in_one_table(
    ccaco: Callable[..., Any], model: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for split, seed in (("train", 0), ("test", 1)):
        _write_classes(tmp_path / "pets" / split, seed)
    command = ("report", run, "--model", f"open_clip:{model}", "--on", "pets", "--device", "cpu", "--table", "runs")
    done = ccaco(*command, "--format", "json")
    assert done.code == 0, done.err
    rows = {row["run"]: row for row in json.loads(done.out)}
    assert len(rows) == 2 and "first" in rows and all(0 <= row["class_accuracy"] <= 1 for row in rows.values())
    (of_model,) = (row for name, row in rows.items() if name != "first")
    template = [lambda name: f"a photo of a {name}"]
    expected = _accuracy_by_open_clip(model, tmp_path / "pets" / "test", template)
    assert of_model["class_accuracy"] == pytest.approx(expected), "only the images of the split folder test"
