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


@pytest.fixture
def media(place: Path, images: list[Path]) -> Path:
    """A folder of three images, four arrays, and a file that is neither."""
    folder = place / "media"
    (folder / "deep").mkdir(parents=True)
    for file in images:
        (folder / file.name).write_bytes(file.read_bytes())
    for i in range(4):
        (folder / "deep" / f"{i}.npy").write_bytes(array_bytes(i))
    (folder / "bad.npy").write_bytes(b"no array")
    return folder


def csv_rows(done: Any) -> list[dict[str, str]]:
    assert done.code == 0, done.err
    return list(csv.DictReader(io.StringIO(done.out)))


def test_one_index_holds_two_modalities(joined: Path, media: Path, ccaco: Callable[..., Any], unexported: None) -> None:
    folders = ("--images", "media", "--arrays", "media", "--index", "all.idx", "--device", "cpu")
    done = ccaco("embed", "--run", joined, *folders)
    assert done.code == 0 and "3 image: 3 new" in done.err and "4 array: 4 new" in done.err, done.err
    assert "1 file is no item (bad.npy" in done.err
    model = ccaco_cli.load(joined, "cpu")
    ids = [f"{i}.png" for i in range(3)] + [f"deep/{i}.npy" for i in range(4)]
    pictures = model.encode(images=[media / f"{i}.png" for i in range(3)])
    arrays = model.encode(arrays=[media / "deep" / f"{i}.npy" for i in range(4)])
    z = np.concatenate([pictures, arrays])
    find = ("retrieve", "--index", "all.idx", "--format", "csv")
    for query, vector in (
        (("a red ball",), model.encode(texts=["a red ball"])[0]),
        (("--image", media / "0.png"), pictures[0]),
        (("--array", media / "deep/0.npy"), arrays[0]),
    ):
        done = ccaco(*find, *query)
        hits = csv_rows(done)
        assert "image items are ranked in one list: the cosine alone ranks" in done.err
        assert [hit["id"] for hit in hits] == [ids[i] for i in np.argsort(-(z @ vector), kind="stable")]
        assert all(hit["modality"] == ("image" if hit["id"].endswith("png") else "array") for hit in hits)
    # whole modalities may lie nearer to a query than others: then each is searched by itself
    for modality, count in (("image", 3), ("array", 4)):
        of_one = csv_rows(ccaco(*find, *query, "--target", modality, "--rerank", 0))
        assert [hit["id"] for hit in of_one] == [hit["id"] for hit in hits if hit["modality"] == modality]
        assert len(of_one) == count and "modality" not in of_one[0]
    by_python = model.search("all.idx", texts="a red ball", target="array,image", k=2)[0]
    assert [hit.rank for hit in by_python] == [1, 2] and by_python[0].cosine >= by_python[1].cosine
    hits = csv_rows(ccaco(*find, "a red ball", "--where", "width > 3", "--columns", "width"))
    assert {hit["modality"] for hit in hits} == {"image"}, "a column that arrays lack is NULL for them"
    done = ccaco(*find, "a red ball", "--rerank", 3)
    assert (done.code, done.err.count("\n")) == (2, 1) and "ranked in one list, so they have no match score" in done.err
    assert "next: --target array" in done.err
    done = ccaco(*find, "a red ball", "--explain", "why")
    assert done.code == 2 and "text and image have no match score: these hits are not explained" in done.err
    done = ccaco(*find, "a red ball", "--target", "image,video")
    assert done.code == 2 and "no items of the modality 'video'" in done.err

    (media / "deep/3.npy").unlink()
    (media / "deep/new.npy").write_bytes(array_bytes(9))
    done = ccaco("embed", *folders)
    assert "3 image: nothing has changed" in done.err and "4 array: 1 new, 3 unchanged, 1 removed" in done.err
    done = ccaco("embed", "--index", "all.idx", "--remove", "1.png", "--remove", "deep/0.npy")
    assert done.code == 0 and "2 image: 2 unchanged, 1 removed" in done.err, done.err
    assert {hit["id"] for hit in csv_rows(ccaco(*find, "a ball"))} == {
        "0.png",
        "2.png",
        *(f"deep/{i}.npy" for i in (1, 2, "new")),
    }
    done = ccaco("embed", "--index", "all.idx", "--remove", "nothing.png")
    assert done.code == 2 and "no such item" in done.err
    assert manifest.open(Path("all.idx"), kind="index", verify=manifest.FULL).facts["rows"] == {"image": 2, "array": 3}


def test_a_modality_joins_an_index_later_and_one_that_cannot_leaves_nothing(
    joined: Path, run: Path, media: Path, ccaco: Callable[..., Any], unexported: None
) -> None:
    assert ccaco("embed", "--run", joined, "--arrays", "media", "--index", "a.idx", "--device", "cpu").code == 0
    done = ccaco("embed", "--images", "media", "--index", "a.idx", "--device", "cpu")
    assert done.code == 0 and manifest.open(Path("a.idx"), kind="index").facts["rows"] == {"array": 4, "image": 3}
    for model, folders, words in (
        (run, ("--images", "media", "--arrays", "media"), "this model cannot encode array files"),
        (joined, ("--images", "media", "--arrays", "nowhere"), "no such folder: --arrays"),
        (joined, ("--images", "media", "--sounds", "media"), "no audio files in this folder"),
    ):
        done = ccaco("embed", "--run", model, *folders, "--index", "none.idx")
        assert (done.code, done.err.count("\n")) == (2, 1) and words in done.err
        assert not Path("none.idx").exists()


def test_what_needs_the_pair_of_the_start_is_refused(
    run: Path, joined: Path, pairs: Path, data_root: Path, ccaco: Callable[..., Any], place: Path
) -> None:
    new_pair = ("--model", run, "--dataset", pairs, "--name", "none", "--device", "cpu")
    for arguments, words in (
        (("train", "--arm", "zero-shot", *new_pair), "the model has no array side"),
        (("report", joined, "--wise", "0,0.5"), "the start of this run has no array side"),
        (("report", joined, "--on", data_root / "scenes"), "the model aligns other modalities: array and text"),
    ):
        done = ccaco(*arguments)
        assert done.code == 2 and words in done.err.splitlines()[-1], done.err
    assert not (place / "runs/none").exists() and not (joined / "results/wise").exists()


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
