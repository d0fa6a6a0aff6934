"""kill -9 at every write, rename and named point of each command, then the same command again."""

from __future__ import annotations

import itertools
import json
import shutil
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ccaco_cli.core import manifest, runtime
from ccaco_cli.core.data import shards
from ccaco_cli.core.encoding import token_cache
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.experiments.grid import AblationRequest
from ccaco_cli.core.experiments.request import TrainRequest
from ccaco_cli.core.experiments.run_folder import TrainOptions
from ccaco_cli.core.library import encoder, parts
from ccaco_cli.core.library.request import MediaRequest
from ccaco_cli.core.library.update import embed_folder
from ccaco_cli.core.retrieval import export
from ccaco_cli.core.retrieval.index import Index
from ccaco_cli.core.training import checkpoint
from ccaco_cli.core.training.checkpoint_saver import CheckpointOptions
from ccaco_cli.core.training.loop import TrainingCallbacks, TrainingData, fit
from ccaco_cli.core.types import PairRecord
from ccaco_cli.core.workflows import embed as embedding
from ccaco_cli.core.workflows.ablate import ablate
from ccaco_cli.core.workflows.train import train
from tests.core.data.test_shards import picture
from tests.faults.killing import everywhere, hashes
from tests.processes import launch


def records() -> Iterator[PairRecord]:
    for number in range(9):
        split = ("train", "train", "val")[number % 3]
        yield PairRecord(f"id{number}", f"id{number}", split, {"image": picture(number)}, [f"caption {number}"])


def prepare_nine(folder: Path) -> None:
    try:
        shards.write(
            records(),
            folder / "d",
            shards.DatasetInfo(name="d", modalities=("image", "text")),
            shards.WriteOptions(workers=0, rows_per_shard=2),
        )
    except DataError as error:
        if "there already" not in str(error):  # killed after the last rename: it is done, and says so
            raise


def test_prepare(tmp_path: Path) -> None:
    def outcome(folder: Path) -> Any:
        data = shards.open(folder / "d", "full")
        assert [p.name for p in folder.iterdir() if p.name.endswith((".partial", ".tmp"))] == []
        return (
            data.manifest.sha256,
            data.split("train").ids,
            {k: v for k, v in hashes(folder / "d").items() if k.endswith((".arrow", ".csv"))},
        )

    assert everywhere(prepare_nine, outcome, tmp_path, every=2) > 10


def train_toy(toy: Any, folder: Path) -> None:
    config = toy.config(optim__epochs=2, loss__cross="matching", model__text__input_dropout=0.2)
    runtime.seed(config.seed)
    aligner, (data, plan) = toy.aligner(config), toy.data(config)
    figures = iter((1.0, 2.0))
    if newest := checkpoint.latest(folder / "checkpoints"):
        figures = iter((1.0, 2.0)[int(newest.name[-4:]) :])
    callbacks = TrainingCallbacks(lambda m: {"R-sum": next(figures)})
    options = CheckpointOptions(minutes=1e-9, resume=True)
    fit(aligner, TrainingData(data, plan), config, folder, callbacks, options=options)


def test_training(toy: Any, tmp_path: Path) -> None:
    def outcome(folder: Path) -> Any:
        files = {k: v for k, v in hashes(folder / "checkpoints").items() if k.endswith(checkpoint.WEIGHTS)}
        log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return files, [{k: v for k, v in entry.items() if k != "waiting"} for entry in log]

    assert everywhere(partial(train_toy, toy), outcome, tmp_path, every=6) > 6


def test_a_clock_that_jumps(toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Backwards by years and forwards again: nothing that is written depends on the hour."""

    def outcome(folder: Path) -> Any:
        folder.mkdir()
        train_toy(toy, folder)
        prepare_nine(folder)
        checkpoints = {k: v for k, v in hashes(folder / "checkpoints").items() if k.endswith(checkpoint.WEIGHTS)}
        return checkpoints, shards.open(folder / "d", "full").manifest.sha256

    wanted = outcome(tmp_path / "steady")
    hours = itertools.cycle((4e9, 0.0, 1e9))
    monkeypatch.setattr(time, "time", lambda: next(hours))
    assert outcome(tmp_path / "jumping") == wanted


def cache_tokens(toy: Any, folder: Path) -> None:
    token_cache.PART = 10
    column, tower = toy.columns()[1], toy.aligner(toy.config()).sides["text"].tower
    token_cache.cached(tower, column, folder / "c", grid=None, max_tokens=0, device="cpu")


def test_token_cache(toy: Any, tmp_path: Path) -> None:
    assert everywhere(partial(cache_tokens, toy), partial(hashes, pattern="*.npy"), tmp_path, every=3) > 5


def train_scenes(request: TrainRequest, data_root: Path, folder: Path) -> None:
    if not manifest.exists(folder / "r"):
        train(request, folder / "r", TrainOptions(resume=True), data_root=data_root)


def test_train(small: dict[str, Any], data_root: Path, tmp_path: Path) -> None:
    request = TrainRequest("scenes", explicit=small | {"optim.epochs": 1})

    def outcome(folder: Path) -> Any:
        run = manifest.open(folder / "r", kind="run", verify="full")
        return run.files, run.facts["metrics"], hashes(folder / "r/results")

    assert everywhere(partial(train_scenes, request, data_root), outcome, tmp_path, every=18) >= 2


def build(run: Path, data_root: Path, folder: Path, **more: Any) -> None:
    """``embed --index``, but for the export: it takes longer than all else together, and writes into the folder that
    all else goes to.
    """
    export.export = lambda *arguments, **settings: {"exported": False, "why": "not tried here"}  # type: ignore[assignment]
    files = {"out": folder / "e", "index": folder / "i.idx"}
    request = embedding.EmbedRequest(run, "scenes", **files, device="cpu", precision="fp32", **more)
    embedding.embed(request, data_root=data_root)


def index_scenes(run: Path, data_root: Path, folder: Path) -> None:
    if not manifest.exists(folder / "i.idx"):
        build(run, data_root, folder, shard=60)


def test_embed_and_index(run: Path, data_root: Path, tmp_path: Path) -> None:
    def outcome(folder: Path) -> Any:
        embeddings = manifest.open(folder / "e", kind="embeddings", verify="full")
        opened = Index(folder / "i.idx", "full")
        stray = [p.name for p in folder.rglob("*.tmp")]
        return embeddings.files, opened.manifest.files, sorted(p.name for p in (folder / "i.idx").iterdir()), stray

    assert everywhere(partial(index_scenes, run, data_root), outcome, tmp_path, every=24) >= 3


def index_anew(run: Path, data_root: Path, folder: Path) -> None:
    before = Index(folder / "i.idx", "full")  # whole after every kill
    assert before.sides["text"].vectors.ntotal == 125
    del before
    build(run, data_root, folder, rebuild=True, shard=10)


def test_rebuilding_an_index(run: Path, data_root: Path, embedded: Any, index: Path, tmp_path: Path) -> None:
    """Killed anywhere, the old index or the new one is there, whole; and the same command ends it."""

    def begin(folder: Path) -> None:
        shutil.copytree(index, folder / "i.idx")
        shutil.copytree(embedded.path, folder / "e")

    def outcome(folder: Path) -> Any:
        opened = Index(folder / "i.idx", "full")
        left = [p.name for p in (folder / "i.idx").iterdir() if p.name != manifest.NAME]
        return opened.sides["text"].vectors.rows.tobytes(), len(left)

    assert everywhere(partial(index_anew, run, data_root), outcome, tmp_path, begin=begin, every=10) >= 3


def embed_photos(run: Path, photos: Path, folder: Path) -> None:
    """``embed --images``, but for the export, in parts of four files."""
    export.export = lambda *arguments, **settings: {"exported": False, "why": "not tried here"}  # type: ignore[assignment]
    encoder.BATCH_SIZE, parts.PART_FILES = {"cpu": 4, "cuda": 4}, 4
    request = MediaRequest(folder / "me.idx", photos, model=run, device="cpu", precision="fp32")
    embed_folder(request)


def update_photos(run: Path, photos: Path, folder: Path) -> None:
    """The index of before or of afterwards is there, complete, whenever the update was killed."""
    before = Index(folder / "me.idx", "full")
    assert len(before.sides["image"].items) in (7, 9)
    del before
    embed_photos(run, photos, folder)


def photos_outcome(folder: Path) -> Any:
    side = Index(folder / "me.idx", "full").sides["image"]
    items = side.items.drop_columns(["path", "modified", "year"]).to_pylist()
    vectors, tokens = (np.load(side.folder / f"{name}.npy").tobytes() for name in ("vectors", "tokens"))
    names = [p.name for p in folder.iterdir() if "me.idx" in p.name]
    return items, vectors, tokens, sorted(names), len(list((folder / "me.idx").iterdir()))


def first_photos(folder: Path) -> None:
    for number in range(7):
        path = folder / f"photos/p{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number))


def test_a_folder_of_photos(run: Path, tmp_path: Path) -> None:
    first_photos(tmp_path)
    work = partial(embed_photos, run, tmp_path / "photos")
    assert everywhere(work, photos_outcome, tmp_path, every=4) >= 4


def test_an_update_of_a_folder_of_photos(run: Path, tmp_path: Path) -> None:
    library = tmp_path / "library"
    first_photos(library)
    assert launch(1, embed_photos, run, library / "photos", library) == [0]
    for number in range(7, 10):
        (library / f"photos/p{number}.png").write_bytes(picture(number))
    (library / "photos/p0.png").unlink()

    def begin(folder: Path) -> None:
        shutil.copytree(library / "me.idx", folder / "me.idx")

    work = partial(update_photos, run, library / "photos")
    assert everywhere(work, photos_outcome, tmp_path, begin=begin, every=4) >= 4


def ablate_scenes(request: TrainRequest, data_root: Path, folder: Path) -> None:
    ablate(AblationRequest(request, ["ccaco", "clip"], 1), folder / "a", data_root=data_root)


def test_ablate(small: dict[str, Any], data_root: Path, tmp_path: Path) -> None:
    request = TrainRequest("scenes", explicit=small | {"optim.steps": 1})

    def outcome(folder: Path) -> Any:
        cells = manifest.open(folder / "a", kind="ablation", verify="full").facts["cells"]
        runs = [manifest.open(folder / "a" / cell["name"], kind="run", verify="full") for cell in cells]
        return [(r.files, r.facts["metrics"]) for r in runs]

    assert everywhere(partial(ablate_scenes, request, data_root), outcome, tmp_path, every=35) >= 2
