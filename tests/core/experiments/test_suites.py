"""``report --suite``: a pretrained model and a run on small copies of the published layouts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from ccaco_cli.core.errors import ConfigError
from ccaco_cli.core.experiments.suites import parse_suites
from tests.pretrained_models import open_clip_folder
from tests.suites import aro_folder, crossmodal_folder, winoground_folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return open_clip_folder(tmp_path_factory.mktemp("models") / "vit")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("published")
    return {
        "winoground": winoground_folder(root / "winoground"),
        "aro": aro_folder(root / "aro"),
        "crossmodal-3600": crossmodal_folder(root / "xm3600"),
    }


def _cosines(folder: Path, images: list[Image.Image], texts: list[str]) -> np.ndarray:
    """[images, texts] as open_clip computes them."""
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    with torch.no_grad():
        z = F.normalize(model.eval().encode_image(torch.stack([preprocess(image) for image in images])), dim=-1)
        return (z @ F.normalize(model.encode_text(tokenizer(texts)), dim=-1).T).numpy()


def test_one_table_for_each_suite(
    ccaco: Callable[..., Any], model: Path, published: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    suites = ",".join(f"{name}={folder}" for name, folder in published.items())
    command = ("report", "--model", f"open_clip:{model}", "--suite", suites, "--device", "cpu")
    done = ccaco(*command, "--format", "json")
    assert done.code == 0, done.err
    assert done.err.count("is prepared as") == 3
    rows = json.loads(done.out)
    tables = {name: [row for row in rows if row["dataset"].startswith(f"{name}-")] for name in published}

    # Winoground by hand
    folder = published["winoground"] / "data"
    images = [Image.open(folder / "images" / f"ex_{e}_img_{side}.png") for e in range(3) for side in range(2)]
    cosine = _cosines(model, images, [f"{word} {e}" for e in range(3) for word in ("red", "blue")])
    squares = [cosine[2 * e : 2 * e + 2, 2 * e : 2 * e + 2] for e in range(3)]
    text = [s[0, 0] > s[0, 1] and s[1, 1] > s[1, 0] for s in squares]
    image = [s[0, 0] > s[1, 0] and s[1, 1] > s[0, 1] for s in squares]
    expected = {"text": text, "image": image, "group": np.logical_and(text, image)}
    assert [row["kind"] for row in tables["winoground"]] == [f"winoground_{kind}" for kind in expected]
    for row, outcomes in zip(tables["winoground"], expected.values(), strict=True):
        assert row["choice_accuracy"] == pytest.approx(np.mean(outcomes)) and row["items"] == 3
        assert 0 <= row["text_only_accuracy"] <= 1 and 0 <= row["shuffled_accuracy"] <= 1

    kinds = {row["kind"]: row for row in tables["aro"]}
    assert list(kinds) == [
        "attribution/red_old",
        "relation/on",
        "relation/to_the_left_of",
        "attribution",
        "relation",
        "mean",
    ]
    assert kinds["relation"]["items"] == 4 and kinds["attribution"]["items"] == 25
    of_relations = [kinds[f"relation/{name}"]["choice_accuracy"] for name in ("on", "to_the_left_of")]
    assert kinds["relation"]["choice_accuracy"] == pytest.approx(np.mean(of_relations))

    # Crossmodal-3600 by hand
    images = [Image.open(published["crossmodal-3600"] / "images" / f"{i}.jpg") for i in range(6)]
    cosine = _cosines(model, images, [f"hund {i}" for i in range(6)])
    languages = {row["language"]: row for row in tables["crossmodal-3600"]}
    assert list(languages) == ["de", "en", "mean"] and languages["en"]["captions"] == 12
    assert languages["de"]["image_to_text_R@1"] == pytest.approx((cosine.argmax(1) == np.arange(6)).mean())
    assert languages["de"]["text_to_image_R@1"] == pytest.approx((cosine.argmax(0) == np.arange(6)).mean())
    for name in ("R-sum", "text_to_image_R@5"):
        assert languages["mean"][name] == pytest.approx((languages["de"][name] + languages["en"][name]) / 2)

    again = ccaco(*command, "--format", "table")
    assert again.code == 0 and again.err == "", "prepared and scored once"
    assert [again.out.count(f"Results on {name}, test") for name in published] == [1, 1, 1]


def test_runs_strata_and_gates(
    ccaco: Callable[..., Any], run: Path, published: dict[str, Path], tmp_path: Path
) -> None:
    suite = f"winoground={published['winoground']}"
    command = ("report", run, "--suite", suite, "--data", tmp_path, "--device", "cpu", "--format", "json")
    done = ccaco(*command, "--fail-if", "choice_winoground_group_accuracy<=1")
    assert done.code == 1 and "choice_winoground_group_accuracy = " in done.err
    assert [row["kind"] for row in json.loads(done.out)] == [f"winoground_{k}" for k in ("text", "image", "group")]
    done = ccaco(*command, "--table", "runs", "--by", "tag")
    assert done.code == 0, done.err
    assert [row["tag"] for row in json.loads(done.out)] == ["Object", "Relation"]


def test_what_cannot_be_done_is_refused(
    ccaco: Callable[..., Any], run: Path, published: dict[str, Path], tmp_path: Path
) -> None:
    for suite, message in (
        ("winogruond", "winoground"),
        ("", "no such suite"),
        ("aro,aro", "a suite twice"),
        ("aro=", "no folder"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse_suites(suite)
    for arguments, message in (
        (("--suite", "aro"), "ccaco prepare aro --source PATH"),
        (("--suite", f"aro={tmp_path / 'none'}"), "no such folder"),
        (("--suite", f"aro={published['winoground']}"), "no ARO files here"),
        (("--suite", "aro", "--on", "scenes"), "two kinds of data sets"),
        (("--suite", "aro,winoground", "--html", tmp_path / "x.html"), "show one data set"),
    ):
        done = ccaco("report", run, *arguments, "--data", tmp_path, "--device", "cpu")
        assert done.code == 2 and message in done.err and len(done.err.splitlines()) == 1, done.err
    assert not list(tmp_path.iterdir())
    done = ccaco("report", run, "--table", "languages")
    assert done.code == 2 and "these results have no languages" in done.err
