"""``--model SPEC``: stored and exported vectors are the library's, and a bad SPEC is one line that leaves nothing."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import transformers
from PIL import Image

import ccaco_cli
from ccaco_cli.core import manifest
from ccaco_cli.core.data import shards
from ccaco_cli.core.model.towers import weights
from ccaco_cli.core.retrieval.query import Exported
from tests.core.model.towers.test_pretrained_equality import Library, hf_library, open_clip_library
from tests.pretrained_models import OPEN_CLIP_WEIGHTS, TEXTS, hf_folder, open_clip_folder

CAPTIONS = [text for text in TEXTS if text]


def pretrained(root: Path, kind: str) -> tuple[str, Library]:
    """SPEC and library of a small model: ``hf:clip``, ``open_clip:vit`` ..."""
    family, _, name = kind.partition(":")
    if family == "hf":
        folder = hf_folder(root / "model", name)
        return f"hf:{folder}", hf_library(folder, name)
    folder = open_clip_folder(root / "model", name)
    return f"open_clip:{folder}", open_clip_library(folder)


@pytest.mark.parametrize("kind", ["open_clip:vit", "open_clip:siglip", "open_clip:hf-bert", "hf:clip", "hf:siglip"])
def test_stored_and_exported_vectors_are_the_library_s(
    kind: str, ccaco: Callable[..., Any], data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, library = pretrained(tmp_path, kind)
    monkeypatch.chdir(tmp_path)
    done = ccaco(
        "embed", "--model", spec, "--split", "val", "--data", data_root, "--device", "cpu", "--index", "v.idx",
        "--precision", "fp32",
    )  # fmt: skip
    assert done.code == 0, done.err
    split = shards.open(data_root / "scenes").split("val")
    captions = list(split.captions)
    decoded = [Image.open(io.BytesIO(data)) for data in split.media("image", np.arange(len(split)))]
    with torch.no_grad():
        expected = {"image": library.images(decoded), "text": library.texts(captions)}
        expected_captions = library.texts(CAPTIONS)
    folder = next((tmp_path / "embeddings").iterdir())
    for short, modality in (("img", "image"), ("text", "text")):
        stored = np.concatenate([np.load(file) for file in sorted((folder / f"{short}_emb").glob("*.npy"))])
        assert np.abs(stored.astype(np.float32) - expected[modality].numpy()).max() < 1e-3
    assert manifest.open(tmp_path / "v.idx", kind="index").facts["query"]["exported"]
    exported = Exported(tmp_path / "v.idx" / "generation-1" / "query")
    assert np.abs(exported.encode(CAPTIONS).z - expected_captions.numpy()).max() < 1e-5
    # the index holds all that its queries need
    shutil.rmtree(tmp_path / "model")
    model = ccaco_cli.load(tmp_path / "v.idx")
    assert np.abs(model.encode(texts=CAPTIONS) - expected_captions.numpy()).max() < 1e-5
    assert np.abs(model.encode(images=decoded) - expected["image"].numpy()).max() < 1e-5


@pytest.mark.parametrize("kind", ["open_clip:vit", "open_clip:resnet", "hf:clip"])
def test_large_jpeg_files_are_not_scaled_while_they_are_decoded(kind: str, tmp_path: Path) -> None:
    spec, library = pretrained(tmp_path, kind)
    coarse = np.random.default_rng(1).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((1501, 1100), Image.Resampling.BICUBIC).save(tmp_path / "large.jpg", quality=90)
    vectors = ccaco_cli.load(spec, device="cpu", precision="fp32").encode(images=[tmp_path / "large.jpg"])
    with torch.no_grad():
        expected = library.images([Image.open(tmp_path / "large.jpg")])
    assert np.abs(vectors - expected.numpy()).max() < 1e-5


def left_in(folder: Path) -> list[Path]:
    """What a command wrote, but for the folder of all runs, which stays empty."""
    return [path for path in folder.rglob("*") if path != folder / "runs"]


def _wrong_weights(root: Path) -> str:
    folder = open_clip_folder(root / "model")
    shutil.copy(open_clip_folder(root / "other", "vit-attention") / OPEN_CLIP_WEIGHTS, folder)
    return f"open_clip:{folder}"


def _without(root: Path, family: str, pattern: str) -> str:
    folder = hf_folder(root / "model") if family == "hf" else open_clip_folder(root / "model")
    for file in folder.glob(pattern):
        file.unlink()
    return f"{family}:{folder}"


def _text_encoder(root: Path) -> str:
    folder = hf_folder(root / "model")
    transformers.BertConfig(hidden_size=24, num_hidden_layers=1, num_attention_heads=2).save_pretrained(folder)
    return f"hf:{folder}"


def _config_only(root: Path, config: Any) -> str:
    config.save_pretrained(root / "model")
    return f"hf:{root / 'model'}"


BAD: dict[str, tuple[Callable[[Path], str], str]] = {
    "a tag that does not exist": (lambda root: "open_clip:ViT-B-32@openia", "expected one of openai"),
    "a name that does not exist": (lambda root: "open_clip:ViT-B-23@openai", "ViT-B-32"),
    "no weights named": (lambda root: "open_clip:ViT-B-32", "@none, @FILE or @TAG"),
    "no network": (lambda root: "open_clip:ViT-B-32@openai", "next: open_clip:ViT-B-32@none for random weights"),
    "no network for a config": (lambda root: "open_clip:nllb-clip-base@none", "next: open_clip:FOLDER with a saved"),
    "no network for transformers": (lambda root: "hf:openai/clip-vit-base-patch32", "next: hf:FOLDER with a saved"),
    "weights of another architecture": (_wrong_weights, "weights do not fit this tower"),
    "an open_clip folder without config": (lambda root: _without(root, "open_clip", "*.json"), "no open_clip_config"),
    "an open_clip folder without weights": (lambda root: _without(root, "open_clip", "*.safetensors"), "no weights in"),
    "a transformers folder without config": (lambda root: _without(root, "hf", "config.json"), "no config.json here"),
    "no tokenizer": (lambda root: _without(root, "hf", "tokenizer*"), "no tokenizer here"),
    "no folder": (lambda root: f"hf:{root}/nowhere", "no model folder here"),
    "other modalities": (lambda root: f"hf:{hf_folder(root / 'model', 'clap')}", "audio and text"),
    "no dual encoder": (_text_encoder, "a bert model has no joint space of two modalities"),
    "SigLIP 2 NaFlex": (
        lambda root: _config_only(root, transformers.Siglip2Config()),
        "a siglip2 model cannot be used",
    ),
    "X-CLIP": (lambda root: _config_only(root, transformers.XCLIPConfig()), "a xclip model cannot be used"),
    "CoCa": (lambda root: "open_clip:coca_ViT-B-32@none", "a CoCa model cannot be used"),
    "a family without dual encoders": (lambda root: "timm:resnet18", "no pretrained models of two modalities"),
    "frames": (lambda root: "frames:tiny", "no pretrained models of two modalities"),
    "no family": (lambda root: "ViT-B-32", "no run here: ViT-B-32; expected a folder with manifest.json, or a SPEC"),
    "nothing": (lambda root: "", "no run here"),
    "no name": (lambda root: "open_clip:", "no model is named"),
}


@pytest.mark.parametrize("command", ["embed", "train"])
@pytest.mark.parametrize("fault", BAD)
def test_a_bad_spec_is_one_line_and_leaves_nothing(
    command: str,
    fault: str,
    ccaco: Callable[..., Any],
    data_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if command == "train" and fault == "nothing":
        return  # the empty text is the setting's default: no model
    monkeypatch.setattr(weights, "is_reachable", lambda endpoint: False)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    make_spec, words = BAD[fault]
    spec = make_spec(tmp_path)
    options = ["--index", "x.idx"] if command == "embed" else ["--epochs", 1, "--name", "x"]
    done = ccaco(command, "--model", spec, "--data", data_root, "--device", "cpu", *options)
    lines = done.err.splitlines()
    assert (done.code, done.out) == (2, "")
    assert words in lines[-1], done.err
    # ``train`` notes the recipe that it chose
    assert [line for line in lines[:-1] if not line.startswith("recipe ")] == []
    assert left_in(work) == []


def test_an_unfinished_run_is_refused(
    run: Path, ccaco: Callable[..., Any], data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unfinished = tmp_path / "runs" / "unfinished"
    shutil.copytree(run, unfinished)
    (unfinished / manifest.NAME).unlink()
    monkeypatch.chdir(tmp_path)
    for options in (["embed"], ["train", "--epochs", 1, "--name", "x"]):
        done = ccaco(*options, "--model", unfinished, "--data", data_root)
        assert (done.code, done.out) == (2, "")
        assert "not a run" in done.err.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--image-tower", "tiny"], "two models are named for one tower"),
        (["--set", "model.vectors=4"], "expected model.vectors = 1"),
        (["--context-length", 40], "leave out --context-length"),
        (["--tile", 32, "--image-size", 64], "leave out --tile"),
    ],
)
def test_settings_that_do_not_fit_a_pretrained_model_are_refused(
    options: list[Any],
    words: str,
    ccaco: Callable[..., Any],
    data_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = f"open_clip:{open_clip_folder(tmp_path / 'model')}"
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    done = ccaco("train", "--model", spec, "--data", data_root, "--epochs", 1, "--name", "x", *options)
    assert (done.code, done.out) == (2, "")
    assert words in done.err.splitlines()[-1]
    assert left_in(work) == []


def test_open_clip_lists_the_models_that_the_messages_name() -> None:
    assert {"ViT-B-32", "nllb-clip-base", "coca_ViT-B-32"} <= set(open_clip.list_models())
