"""The commands in the fences of README and guides are run, except for those that need files or time that CI lacks."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from ccaco_cli.core.data.preparation import prepare
from ccaco_cli.core.data.shards import WriteOptions
from ccaco_cli.core.data.sources.source import SourceOptions
from ccaco_cli.core.experiments.embed_request import EmbedRequest
from ccaco_cli.core.experiments.request import TrainRequest
from ccaco_cli.core.workflows.embed import embed
from ccaco_cli.core.workflows.train import train
from tests.core.data.sources.test_vqa import write as write_vqa
from tests.test_docs import command_lines

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "examples/guides").glob("*.md"))]
NOT_RUN = {
    r"@(openai|laion2b)|hf:(openai/|OFA-Sys/|FOLDER)|push-to-hub": "needs published weights, or a network",
    r"SOURCE|flickr|coco|MUGE|sugarcrepe|winoground|choices|esc10|hub:|CCACO_REAL_DATA": "needs files to download",
    r"runs/(photos|sounds|pair)|album2?\.idx|photos\.idx|sounds\.idx": "needs a run on downloaded files or towers",
    r"(all|scans)\.idx": "tests/core/workflows/test_further_sides.py and tests/view/test_serve_arrays.py do the same",
    r"^ccaco prepare scenes$": "draws the complete data set for half a minute; examples/quickstart.sh runs it",
    r"bounces|clips\.idx": "draws and trains on clips for minutes; tests/core/workflows/test_clips.py does the same",
    r"scenes-styles|sketch|emoji": "prepares domains; tests/core/experiments/test_domain_adaptation.py does the same",
    r"^ccaco ablate": "trains several runs; tests/core/workflows/test_ablate.py does the same",
    r"--image-size 256x256": "a large model; tests/core/workflows/test_train.py does the same at small sizes",
    r"--resume": "continues a run of seven epochs; tests/core/workflows/test_train.py does the same",
    r"--watch": "waits for a run that another terminal trains; tests/view/test_watch.py does the same",
    r"milvus:": "needs the extra milvus; tests/core/workflows/test_embed_milvus.py does the same",
    r"scenes-(en-)?zh|runs/((en-)?zh|both)": "trains on scenes; tests/core/data/test_scene_languages.py draws them",
    r"webdataset": "tests/core/data/sources/test_webdataset.py prepares shards that it writes",
}
"""Pattern of commands -> why they are not run here."""
FABRICATED = ("mine", "scenes-claim")
"""Ablations without models, of which reports are made."""


def fenced_commands() -> Iterator[str]:
    for path in DOCUMENTS:
        for fence in re.findall(r"^```sh\n(.*?)^```", path.read_text("utf-8"), re.M | re.S):
            yield from command_lines(fence)


COMMANDS = list(dict.fromkeys(fenced_commands()))
RUN = [line for line in COMMANDS if not any(re.search(pattern, line) for pattern in NOT_RUN)]


ARRAYS = re.compile("shapes|bridge|prepare pairs|modality array")
"""The commands that need ``array_files``."""


@pytest.fixture(scope="session")
def array_files(small: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the guide on arrays assumes: two embedding sets, clouds, and the data, run and index of both."""
    folder = tmp_path_factory.mktemp("arrays")
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(300, 6))
    for name, width in (("images", 12), ("texts", 9)):
        np.save(folder / f"{name}.npy", (hidden @ rng.normal(size=(6, width))).astype(np.float32))
    (folder / "captions.txt").write_text("".join(f"caption {number}\n" for number in range(len(hidden))))
    np.save(folder / "query.npy", np.load(folder / "images.npy")[7])
    clouds = rng.normal(size=(12, 20, 6)).astype(np.float32)
    np.save(folder / "cloud.npy", clouds[0])
    (folder / "scans").mkdir()
    for number, cloud in enumerate(clouds):
        np.save(folder / f"scans/{number}.npy", cloud)
    lines = [f"scans/{number}.npy,cloud {number}\n" for number in range(len(clouds))]
    (folder / "clouds.csv").write_text("file,title\n" + "".join(lines))
    rows = [{"points": cloud.tolist(), "title": f"cloud {number}"} for number, cloud in enumerate(clouds)]
    parquet.write_table(pa.Table.from_pylist(rows), folder / "clouds.parquet")

    sides = {"a": folder / "images.npy", "b": folder / "texts.npy", "captions": folder / "captions.txt"}
    data = folder / "data"
    prepare("shapes", out=data / "shapes", options=SourceOptions(limit=64), write=WriteOptions(workers=0))
    prepare("pairs", out=data / "pairs", options=SourceOptions(inputs=sides), write=WriteOptions(workers=0))
    for name, source in (("shapes", "shapes"), ("bridge", "pairs")):
        train(TrainRequest(source, explicit=small), folder / "runs" / name, data_root=data)
        out, index = folder / "embeddings" / name, folder / f"{name}.idx"
        embed(EmbedRequest(folder / "runs" / name, source, out=out, index=index, device="cpu"), data_root=data)
    return folder


@pytest.fixture(scope="module")
def words_run(data_root: Path, small: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a decoder, which writes captions and answers."""
    folder = tmp_path_factory.mktemp("decoders") / "words"
    settings = small | {"loss.gamma": 1.0, "model.decoder.layers": 1, "model.decoder.max_words": 20}
    train(TrainRequest("scenes", explicit=settings), folder, data_root=data_root)
    return folder


@pytest.fixture
def workspace(
    run: Path,
    words_run: Path,
    index: Path,
    data_root: Path,
    fabricate: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """The working directory that the guides assume: trained runs, an index, two ablations, photos and questions."""
    folder = tmp_path / "workspace"
    (folder / "runs").mkdir(parents=True)
    (folder / "data").mkdir()
    (folder / "data/scenes").symlink_to(data_root / "scenes")
    for name in ("first", "quick"):
        shutil.copytree(run, folder / "runs" / name)
    shutil.copytree(words_run, folder / "runs/words")
    shutil.copytree(index, folder / "scenes.idx")
    for name in FABRICATED:
        for arm, skill in (("ccaco", 3.0), ("clip", 2.0)):
            for seed in range(3):
                strata = {"things": [1, 2] * 30}
                fabricate(f"{arm}-{seed}", skill, arm=arm, seed=seed, strata=strata, root=folder / "runs" / name)
    (folder / "album").mkdir()
    (folder / "photos").symlink_to(folder / "album")
    (folder / "lists").mkdir()
    photos = [f"class-{number % 3}/{number}.jpg" for number in range(12)]  # files for a table, and folders of classes
    for number, photo in enumerate(photos):
        (folder / "album" / photo).parent.mkdir(exist_ok=True)
        Image.new("RGB", (48, 40), (20 * number, 90, 160)).save(folder / "album" / photo)
    rows = [f"{photo},photo number {number}" for number, photo in enumerate(photos)]
    for table in ("album/photos.csv", "lists/captions.csv"):
        (folder / table).write_text("filepath,title\n" + "\n".join(rows) + "\n")
    for name in ("cat.jpg", "dog.jpg"):
        shutil.copy(folder / "album" / photos[3], folder / name)
    (folder / "VQA").mkdir()
    write_vqa(folder / "VQA", "val", range(24))
    monkeypatch.chdir(folder)
    return folder


def small_budget(words: list[str], small: dict[str, Any]) -> list[str]:
    """A ``train`` command with the settings of the smallest run behind its own, under a name that is free."""
    options = [word for key, value in small.items() for word in ("--set", f"{key}={str(value).lower()}")]
    if "--name" in words:
        place = words.index("--name") + 1
        words = [*words[:place], f"{words[place]}-small", *words[place + 1 :]]
    return [*words, *options]


@pytest.mark.parametrize("line", RUN)
def test_a_documented_command_runs(
    line: str, workspace: Path, ccaco: Callable[..., Any], small: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    words = shlex.split(line)[1:]
    if ARRAYS.search(line):
        shutil.copytree(request.getfixturevalue("array_files"), workspace, dirs_exist_ok=True)
    if ">" in words:
        words = words[: words.index(">")]  # a shell removes the redirection
    if words[0] == "train":
        words = small_budget(words, small)
    if words[0] == "embed" and "--rebuild" not in words:
        for index in workspace.glob("*.idx"):  # as before the command is typed for the first time
            shutil.rmtree(index)
    if words[:2] == ["prepare", "pairs"]:
        shutil.rmtree(workspace / "data/pairs")
    if words[0] == "report" and "captions" in words and not importlib.util.find_spec("pycocoevalcap"):
        pytest.skip("the metrics of captions need pycocoevalcap (the extra captions)")
    stdin = "a red ball\na cat on a sofa\n"
    if {"--caption", "--ask"} & set(words):
        stdin = "".join(f"{photo}\n" for photo in sorted(Path("photos").glob("*/*.jpg")))  # as `find photos` lists
    done = ccaco(*words, stdin=stdin)
    is_gate = "--fail-if" in words
    assert done.code in ((0, 1) if is_gate else (0,)), done.err
    if is_gate:
        assert done.code == 0 or done.err.startswith("gate: "), done.err


def test_every_reason_not_to_run_a_command_is_needed() -> None:
    for pattern in NOT_RUN:
        others = [other for other in NOT_RUN if other != pattern]
        assert any(
            re.search(pattern, line) and not any(re.search(other, line) for other in others) for line in COMMANDS
        ), pattern
    assert len(RUN) >= 30
