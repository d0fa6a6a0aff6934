"""Runs that continue with a new pair that shares a side: three modalities meet in one space."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ccaco_cli
from ccaco_cli.core import manifest
from ccaco_cli.core.data import shards
from ccaco_cli.core.errors import CcacoError
from ccaco_cli.core.experiments.pretrained import pretrained_settings
from ccaco_cli.core.experiments.request import TrainRequest
from ccaco_cli.core.types import PairRecord
from ccaco_cli.core.workflows.train import train, train_notes

SETTINGS = {"optim.batch_size": 8, "optim.epochs": 1, "device": "cpu", "eval.shortlist": 4, "eval.shortlist_back": 4}


def array_bytes(seed: int) -> bytes:
    out = io.BytesIO()
    np.save(out, np.random.default_rng(seed).standard_normal(6).astype(np.float32))
    return out.getvalue()


@pytest.fixture(scope="module")
def pairs(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Arrays with captions of ``scenes``; no array has an image."""
    split = shards.open(data_root / "scenes", "quick").split("train")
    records = [
        PairRecord(f"a{i}", f"a{i}", ("train", "train", "val", "test")[i % 4], {"array": array_bytes(i)}, [caption])
        for i, caption in enumerate(split.captions[:32])
    ]
    folder = tmp_path_factory.mktemp("pairs") / "arrays"
    shards.write(
        records,
        folder,
        shards.DatasetInfo("arrays", ("array", "text"), facts={"protocol": "arrays"}),
        shards.WriteOptions(workers=0),
    )
    return folder


def continued(start: Path, pairs: Path, folder: Path, **changes: Any) -> manifest.Manifest:
    explicit = SETTINGS | {"model.spec": str(start)} | {key.replace("__", "."): v for key, v in changes.items()}
    return train(TrainRequest(str(pairs), explicit=explicit), folder)


@pytest.fixture(scope="module")
def joined(run: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of ``scenes``, continued on arrays with its text side locked."""
    folder = tmp_path_factory.mktemp("runs") / "joined"
    continued(run, pairs, folder, model__text__lock=True)
    return folder


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def unexported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Queries by the model itself: exporting its text side takes ten seconds."""
    monkeypatch.setattr("ccaco_cli.core.retrieval.export.export", lambda *_, **__: {"exported": False})


@pytest.fixture(scope="module")
def images(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    media = shards.open(data_root / "scenes", "quick").split("test").media("image", range(3))
    files = [folder / f"{i}.png" for i in range(3)]
    for file, data in zip(files, media, strict=True):
        file.write_bytes(data)
    return files


def test_the_sides_of_the_start_keep_their_vectors(run: Path, joined: Path, images: list[Path]) -> None:
    before, after = ccaco_cli.load(run, "cpu"), ccaco_cli.load(joined, "cpu")
    assert after.modalities == ("array", "text") and set(after.towers) == {"array", "text", "image"}
    captions = ["a red ball on a sofa", "two cats"]
    assert np.array_equal(before.encode(images=images), after.encode(images=images))
    texts = before.encode(texts=captions) * after.encode(texts=captions)
    assert (texts.sum(1) > 0.9999).all(), "the tokens of a locked tower are rounded to float16"
    described = manifest.open(joined, kind="run")
    assert described.config["model"]["further_sides"] == "image" and "moved" not in described.facts
    assert set(described.facts["towers"]) == {"array", "text", "image"}


def test_images_find_arrays_that_they_were_never_paired_with(
    joined: Path, images: list[Path], ccaco: Callable[..., Any], place: Path, unexported: None
) -> None:
    folder = place / "clouds"
    folder.mkdir()
    for i in range(5):
        (folder / f"{i}.npy").write_bytes(array_bytes(i))
    done = ccaco("embed", "--run", joined, "--arrays", folder, "--index", "a.idx", "--device", "cpu")
    assert done.code == 0, done.err
    find = ("retrieve", "--image", images[0], "--index", "a.idx", "--format", "csv", "--columns", "path")
    done = ccaco(*find, "-k", 5)
    assert done.code == 0 and "image and array are no pair of this run" in done.err, done.err
    hits = list(csv.DictReader(io.StringIO(done.out)))
    model = ccaco_cli.load(joined, "cpu")
    arrays = [np.load(io.BytesIO(array_bytes(i))) for i in range(5)]
    cosines = (model.encode(images=images[:1]) @ model.encode(arrays=arrays).T)[0]
    assert [Path(hit["path"]).name for hit in hits] == [f"{i}.npy" for i in np.argsort(-cosines)]
    answers = model.search("a.idx", images=images[:1], k=5)[0]
    assert [hit.item["path"] for hit in answers] == [hit["path"] for hit in hits]
    done = ccaco(*find, "--rerank", 4)
    assert done.code == 2 and "they have no match score" in done.err and "array and text" in done.err
    done = ccaco(*find, "--explain", "why")
    assert done.code == 2 and "image and array have no match score" in done.err
    done = ccaco("retrieve", "a red ball", "--index", "a.idx", "--rerank", 4, "--format", "csv")
    assert done.code == 0 and "no pair" not in done.err, done.err

    (place / "photos").mkdir()
    for file in images:
        (place / "photos" / file.name).write_bytes(file.read_bytes())
    done = ccaco("embed", "--run", joined, "--images", "photos", "--index", "i.idx", "--device", "cpu")
    assert done.code == 0, done.err
    for query in (("--array", folder / "0.npy"), ("a red ball",), ("--similar", images[0])):
        done = ccaco("retrieve", *query, "--index", "i.idx", "--format", "paths")
        assert done.code == 0 and len(done.out.splitlines()) == 3, done.err


def test_the_data_set_of_the_start_can_still_be_searched(
    joined: Path, data_root: Path, ccaco: Callable[..., Any], place: Path, unexported: None
) -> None:
    where = ("--dataset", "scenes", "--data", data_root, "--index", "s.idx", "--device", "cpu")
    done = ccaco("embed", "--run", joined, *where)
    assert done.code == 0, done.err
    (place / "q.npy").write_bytes(array_bytes(0))
    for query, target in (
        ("a red ball", "image"),
        ("a red ball", ""),
        ("--array=q.npy", "image"),
        ("--array=q.npy", "text"),
    ):
        done = ccaco("retrieve", query, "--index", "s.idx", "-k", 2, "--target", target, "--format", "csv")
        assert done.code == 0 and len(done.out.splitlines()) == 3, done.err


def test_a_shared_side_that_learns_is_named_with_how_far_it_moved(run: Path, pairs: Path, tmp_path: Path) -> None:
    described = continued(run, pairs, tmp_path / "moved", optim__lr=1e-2)
    cosine = described.facts["moved"]["text"]
    assert -1 <= cosine < 0.9999
    (note,) = (note for note in train_notes(described) if "has learned" in note)
    assert f"{cosine:.3f}" in note and "--lock-text" in note and "image" in note
    before, after = ccaco_cli.load(run, "cpu"), ccaco_cli.load(tmp_path / "moved", "cpu")
    texts = list(shards.open(pairs, "quick").split("val").captions)
    assert float((before.encode(texts=texts) * after.encode(texts=texts)).sum(1).mean()) == pytest.approx(
        cosine, abs=5e-3
    )


def test_a_third_pair_continues_a_continued_run(
    joined: Path, data_root: Path, images: list[Path], tmp_path: Path
) -> None:
    explicit = SETTINGS | {"model.spec": str(joined), "model.text.lock": True}
    described = train(TrainRequest("scenes", explicit=explicit), tmp_path / "third", data_root=data_root)
    assert described.config["model"]["further_sides"] == "array"
    before, after = ccaco_cli.load(joined, "cpu"), ccaco_cli.load(tmp_path / "third", "cpu")
    arrays = [np.load(io.BytesIO(array_bytes(i))) for i in range(3)]
    assert np.array_equal(before.encode(arrays=arrays), after.encode(arrays=arrays))
    assert not np.allclose(before.encode(images=images), after.encode(images=images), atol=1e-4), "it learns again"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.text.spec": "hf:other"}, "two models are named for one tower"),
        ({"model.image.spec": "hf:other"}, "two models are named for one tower"),
        ({"model.width": 8}, "the settings change the architecture of this run"),
        ({"model.text.context_length": 70}, "the settings change the architecture of this run"),
        ({"model.further_sides": ""}, "the further sides of a model are those of the run"),
        ({"model.further_sides": "image audio"}, "the further sides of a model are those of the run"),
    ],
)
def test_settings_that_do_not_fit_the_shared_space_are_refused(
    changes: dict[str, Any], message: str, run: Path, pairs: Path, tmp_path: Path
) -> None:
    with pytest.raises(CcacoError, match=message):
        train(TrainRequest(str(pairs), explicit=SETTINGS | {"model.spec": str(run)} | changes), tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_a_run_without_a_shared_side_is_refused(run: Path, joined: Path, data_root: Path, tmp_path: Path) -> None:
    for start in (run, joined):
        with pytest.raises(CcacoError, match="this model aligns") as refused:
            pretrained_settings(str(start), ("video", "audio"))
        assert "a model of video or audio" in str(refused.value)
    with pytest.raises(CcacoError, match="the further sides"):
        train(TrainRequest("scenes", explicit={"model.further_sides": "audio"}), tmp_path / "none", data_root=data_root)
