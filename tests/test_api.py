"""``ccaco_cli.load``: every method gives what the command gives."""

from __future__ import annotations

import csv
import io
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import ccaco_cli
from ccaco_cli.api import Model
from ccaco_cli.core.data import shards
from ccaco_cli.core.data.clips import Clip
from ccaco_cli.core.encoding.conversion import FrameSequence, as_samples
from ccaco_cli.core.errors import CcacoError, ConfigError, DataError, ManifestError, TowerError
from ccaco_cli.core.manifest import Manifest
from ccaco_cli.core.retrieval.index import Index
from ccaco_cli.core.retrieval.search import SearchOptions, ask
from tests.manifests import edited
from tests.recordings import film, sound, tone

TEXTS = ["a red cat", "two dogs under a tree", "an orange cat napping on the sofa"]


@pytest.fixture(scope="module")
def model(run: Path) -> Model:
    return ccaco_cli.load(run, device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def weighted(index: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same index, as if the weight of the match logit had been chosen as 2."""
    copy = tmp_path_factory.mktemp("w") / "w.idx"
    shutil.copytree(index, copy)
    with edited(copy) as body:
        body["facts"] |= {"weight": 2.0, "headline": "two-stage"}
    return copy


@pytest.fixture(scope="module")
def media(data_root: Path) -> list[bytes]:
    split = shards.open(data_root / "scenes").split("test")
    return list(split.media("image", range(len(split))))


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = ("torch", "numpy", "pandas", "datasets", "transformers", "ccaco_cli.api")
    code = f"import sys, ccaco_cli; ccaco_cli.load; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_types_are_shipped() -> None:
    assert Path(ccaco_cli.__file__).with_name("py.typed").is_file()


def test_encode_gives_what_embed_stores(model: Model, embedded: Manifest, data_root: Path, media: list[bytes]) -> None:
    stored = {
        name: np.concatenate(
            [
                np.load(embedded.path / f"{name}_emb/{name}_emb_{n}.npy")
                for n in range(len(list((embedded.path / f"{name}_emb").iterdir())))
            ]
        )
        for name in ("img", "text")
    }
    images = model.encode(images=media)
    assert images.dtype == np.float32 and images.shape == (25, model.embedding_size)
    assert np.allclose(np.linalg.norm(images, axis=1), 1, atol=1e-6)
    assert np.allclose(images, stored["img"], atol=1e-3)
    captions = shards.open(data_root / "scenes").split("test").captions
    assert np.allclose(model.encode(texts=captions, batch_size=7), stored["text"], atol=1e-3)


def test_every_form_of_an_image_gives_the_same_embedding(model: Model, media: list[bytes], tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(media[0])
    image = opened(media[0])
    forms: list[Any] = [media[0], tmp_path / "a.png", str(tmp_path / "a.png"), image, np.asarray(image.convert("RGB"))]
    batched = model.encode(images=forms)
    assert np.allclose(batched, batched[:1], atol=1e-6)
    for form in forms:  # one sample without a list
        assert np.allclose(model.encode(images=form), batched[:1], atol=1e-6)
    assert np.allclose(model.encode(images=np.stack([np.asarray(image)[..., :3]] * 2)), batched[:2], atol=1e-6)
    assert np.allclose(model.encode(texts=TEXTS[0]), model.encode(texts=TEXTS)[:1], atol=1e-6)
    assert model.encode(texts=[]).shape == (0, model.embedding_size)


def test_progress_goes_to_stderr(model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    model.encode(texts=TEXTS, batch_size=2, show_progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith("encode text: 3 of 3\n")
    model.encode(texts=TEXTS)
    assert capsys.readouterr() == ("", "")


def test_similarity_is_the_cosine_that_retrieve_prints(
    index: Path, media: list[bytes], ccaco: Callable[..., Any]
) -> None:
    model = ccaco_cli.load(index)
    cosines = model.similarity(model.encode(texts=TEXTS), model.encode(images=media))
    assert cosines.shape == (3, 25) and cosines.dtype == np.float32
    done = ccaco("retrieve", *TEXTS, "--index", index, "-k", 25, "--rerank", 0, "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(done.out)))
    ids = [Index(index).sides["image"].item(row)["id"] for row in range(25)]
    assert len(rows) == 75
    for row in rows:
        cosine = cosines[TEXTS.index(row["query"]), ids.index(row["id"])]
        assert float(row["score"]) == pytest.approx(cosine, abs=2e-3)


@pytest.mark.parametrize("query", ["text", "image"])
def test_scores_and_match_logits_are_those_of_retrieve(
    weighted: Path, media: list[bytes], data_root: Path, query: str
) -> None:
    model = ccaco_cli.load(weighted)
    assert (model.scorer.kind, model.scorer.weight) == ("two-stage", 2.0)
    captions = list(shards.open(data_root / "scenes").split("test").captions)
    images, texts = (media, TEXTS) if query == "text" else (media[:2], captions)
    scores = model.score(images, texts)
    assert scores.shape == (len(images), len(texts)) and scores.dtype == np.float32
    expected_hits = ask(
        Index(weighted), query, TEXTS if query == "text" else [opened(m) for m in images], SearchOptions(5, rerank=8)
    )
    for number, hits in enumerate(expected_hits):
        for hit in hits:
            pair = (hit.row, number) if query == "text" else (number, hit.row)
            assert hit.score == pytest.approx(scores[pair], abs=0.02)
            logit = model.match([images[pair[0]]], [texts[pair[1]]])
            assert logit.shape == (1,) and hit.match == pytest.approx(float(logit[0]), abs=0.01)
    pairs = model.match(images[:2], texts[:2])
    cosines = model.similarity(model.encode(images=images[:2]), model.encode(texts=texts[:2])).diagonal()
    assert np.allclose(model.scorer.scale * cosines + 2.0 * pairs, scores[[0, 1], [0, 1]], atol=1e-3)


def test_without_weight_the_score_is_the_cosine(model: Model, media: list[bytes]) -> None:
    plain = Model(model.aligner, model.towers, model.config, weight=0.0)
    cosines = plain.similarity(plain.encode(images=media[:3]), plain.encode(texts=TEXTS))
    assert np.allclose(plain.score(media[:3], TEXTS), cosines, atol=1e-6)
    assert "cosine" in repr(plain) and "two-stage" not in repr(plain)


def test_search_is_what_retrieve_prints(
    run: Path, index: Path, media: list[bytes], ccaco: Callable[..., Any], tmp_path: Path
) -> None:
    hits = ccaco_cli.load(index).search(texts=TEXTS, k=4)
    done = ccaco("retrieve", *TEXTS, "--index", index, "-k", 4, "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(done.out)))
    assert [(row["id"], float(row["score"])) for row in rows] == [
        (hit.item["id"], pytest.approx(hit.score, abs=1e-3)) for query in hits for hit in query
    ]
    (tmp_path / "a.png").write_bytes(media[3])
    model = ccaco_cli.load(run, device="cpu")
    by_image = model.search(index, images=tmp_path / "a.png", k=3, rerank=0)
    done = ccaco("retrieve", "--image", tmp_path / "a.png", "--index", index, "-k", 3, "--rerank", 0, "--format", "csv")
    assert [hit.item["id"] for hit in by_image[0]] == [row["id"] for row in csv.DictReader(io.StringIO(done.out))]
    assert model.search(Index(index), texts=[], k=3) == []


def test_search_takes_the_options_of_retrieve(
    run: Path, index: Path, media: list[bytes], ccaco: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(media[3])
    model = ccaco_cli.load(run, device="cpu")
    where = "place = 'street' or things > 1"
    options = ("--index", index, "-k", 4, "--target", "image", "--where", where, "--dedup", 0.9, "--columns", "place")
    mix = ("--plus", "a red ball", "--plus", "a cat", "--minus", "a box")
    for query, argument in (
        ({"texts": "a dog"}, ("a dog",)),
        ({"images": tmp_path / "a.png"}, ("--image", tmp_path / "a.png")),
    ):
        (hits,) = model.search(
            index, **query, k=4, target="image", where=where, dedup=0.9, plus=["a red ball", "a cat"], minus="a box"
        )
        done = ccaco("retrieve", *argument, *options, *mix)
        rows = list(csv.DictReader(io.StringIO(done.out)))
        assert [(r["id"], r["place"], int(r["duplicates"])) for r in rows] == [
            (hit.item["id"], hit.item["place"], hit.duplicates) for hit in hits
        ]
        assert hits and all(hit.item["place"] == "street" or hit.item["things"] > 1 for hit in hits)
    with pytest.raises(DataError, match="no items of the modality 'audio'"):
        model.search(index, texts=TEXTS, target="audio")


def test_recordings_are_taken_as_files_bytes_and_arrays(tmp_path: Path) -> None:
    wave = tone(0.5, 16_000)
    from_file = Clip(sound(wave, 16_000, "flac")).samples(8_000)
    for form in ((wave[0], 16_000), (np.repeat(wave, 2, 0), 16_000)):
        (sample,) = as_samples("audio", form)
        samples = Clip(sample).samples(8_000)
        assert len(samples) == len(from_file) and np.allclose(samples, from_file, atol=2e-3)
    movie = film(1.0, fps=8)
    frames = np.stack([np.asarray(frame) for frame in Clip(movie).frames(8.0)])
    (sequence,) = as_samples("video", (frames, 8.0))
    assert isinstance(sequence, FrameSequence)
    for rate in (2.0, 4.0, 16.0):
        wanted = [np.asarray(frame) for frame in Clip(movie).frames(rate)]
        assert np.array_equal(np.stack([np.asarray(frame) for frame in sequence.frames(rate, 30.0)]), np.stack(wanted))
    with pytest.raises(DataError, match="no sound track"):
        sequence.samples(8_000, 1.0)
    (tmp_path / "a.wav").write_bytes(b"")
    assert as_samples("audio", [str(tmp_path / "a.wav"), b"x"]) == [tmp_path / "a.wav", b"x"]


WRONG: dict[str, tuple[Callable[[Model, Path], Any], type[CcacoError], str]] = {
    "nothing": (lambda m, _: m.encode(), ConfigError, "one of images=, texts=, audio=, video="),
    "two modalities": (lambda m, _: m.encode(images=[], texts=[]), ConfigError, "images, texts"),
    "another modality": (lambda m, _: m.encode(audio=["a.wav"]), ConfigError, "not trained on audio"),
    "a missing file": (lambda m, _: m.encode(images=["none.jpg"]), DataError, r"cannot read this file .*none\.jpg"),
    "no image": (lambda m, _: m.encode(images=[b"words"]), DataError, "not a picture"),
    "floats": (lambda m, _: m.encode(images=np.zeros((4, 4, 3))), DataError, "this is no image.*float64"),
    "numbers as texts": (lambda m, _: m.encode(texts=[3]), DataError, "this is no text: int"),
    "a negative batch": (lambda m, _: m.encode(texts=TEXTS, batch_size=-1), ConfigError, "batch_size = -1"),
    "another width": (
        lambda m, _: m.similarity(np.zeros((2, 3)), np.zeros((2, 3))),
        ConfigError,
        "no embeddings of this model",
    ),
    "unequal lists": (lambda m, _: m.match([b""], TEXTS), ConfigError, "1 and 3 samples"),
    "no index": (lambda m, _: m.search(texts=TEXTS), ConfigError, "no index of its own"),
    "a run as index": (lambda m, run: m.search(run, texts=TEXTS), ManifestError, "this is a run"),
    "an empty query": (lambda m, index: m.search(index, texts=["a cat", " "]), DataError, "query 2 is empty"),
    "half a character": (lambda m, index: m.search(index, texts=["caf\udce9"]), DataError, "query 1, line 1, byte 4"),
    "no answers": (lambda m, index: m.search(index, texts=TEXTS, k=0), ConfigError, "k = 0"),
    "no cosine": (lambda m, index: m.search(index, texts=TEXTS, dedup=3), ConfigError, "dedup = 3"),
    "an empty text": (lambda m, index: m.search(index, texts=TEXTS, plus=["a", ""]), DataError, "plus 2 is empty"),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_inputs_are_one_clear_error(model: Model, run: Path, name: str) -> None:
    call, kind, message = WRONG[name]
    with pytest.raises(kind, match=message):
        call(model, run)


def test_an_index_of_another_model_is_refused(model: Model, index: Path) -> None:
    other = Model(model.aligner, model.towers, model.config, run="0" * 64)
    with pytest.raises(ConfigError, match="items of another model"):
        other.search(index, texts=TEXTS)


def test_a_model_without_a_cross_branch_has_no_match(model: Model, media: list[bytes]) -> None:
    from dataclasses import replace

    config = replace(model.config, loss=replace(model.config.loss, beta=0.0))
    with pytest.raises(ConfigError, match="no cross branch"):
        Model(model.aligner, model.towers, config).match(media[:1], TEXTS[:1])


def test_what_is_neither_run_nor_index_is_refused(data_root: Path, tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none", data_root / "scenes"):
        with pytest.raises(ConfigError, match=r"no model can be loaded from this.*finished run or of an index"):
            ccaco_cli.load(path)
    for spec, problem in (
        ("open_clip:ViT-B-33@none", "unknown open_clip model"),
        ("timm:resnet18@none", "no pretrained"),
    ):
        with pytest.raises(TowerError, match=problem):
            ccaco_cli.load(spec)


def test_the_example_runs(run: Path, index: Path) -> None:
    script = Path(__file__).parents[1] / "examples/python_api.py"
    done = subprocess.run([sys.executable, script, run, index], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "an orange cat napping" in done.stdout and done.stderr == ""
