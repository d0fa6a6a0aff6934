"""The commands in the fences of README and guides are run, except for those that need files or time that CI lacks."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.test_docs import command_lines

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "examples/guides").glob("*.md"))]
NOT_RUN = {
    r"@(openai|laion2b)|hf:(openai/|FOLDER)|push-to-hub": "needs published weights, or a network",
    r"SOURCE|flickr8k|coco|sugarcrepe|winoground|choices|esc10|hub:|CCACO_REAL_DATA": "needs files to download",
    r"runs/(photos|sounds|pair)|album2?\.idx|photos\.idx|sounds\.idx": "needs a run on downloaded files or towers",
    r"^ccaco prepare scenes$": "draws the complete data set for half a minute; examples/quickstart.sh runs it",
    r"bounces|clips\.idx": "draws and trains on clips for minutes; tests/core/workflows/test_clips.py does the same",
    r"scenes-styles|sketch|emoji": "prepares domains; tests/core/experiments/test_domain_adaptation.py does the same",
    r"^ccaco ablate": "trains several runs; tests/core/workflows/test_ablate.py does the same",
    r"--image-size 256x256": "a large model; tests/core/workflows/test_train.py does the same at small sizes",
    r"--resume": "continues a run of seven epochs; tests/core/workflows/test_train.py does the same",
    r"--watch": "waits for a run that another terminal trains; tests/view/test_watch.py does the same",
    r"milvus:": "needs the extra milvus; tests/core/workflows/test_embed_milvus.py does the same",
    r"shapes|bridge|prepare pairs|modality array": "tests/core/workflows/test_arrays.py does the same on small data",
    r"words|VQA": "trains a decoder; tests/core/workflows/test_captions.py and test_answers.py do the same",
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


@pytest.fixture
def workspace(
    run: Path, index: Path, data_root: Path, fabricate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The working directory that the guides assume: a trained run, its index, two ablations, and a folder of photos."""
    folder = tmp_path / "workspace"
    (folder / "runs").mkdir(parents=True)
    (folder / "data").mkdir()
    (folder / "data/scenes").symlink_to(data_root / "scenes")
    for name in ("first", "quick"):
        shutil.copytree(run, folder / "runs" / name)
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
    shutil.copy(folder / "album" / photos[3], folder / "cat.jpg")
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
    line: str, workspace: Path, ccaco: Callable[..., Any], small: dict[str, Any]
) -> None:
    words = shlex.split(line)[1:]
    if words[0] == "train":
        words = small_budget(words, small)
    if words[0] == "embed" and "--rebuild" not in words:
        shutil.rmtree(workspace / "scenes.idx")  # as before the command is typed for the first time
    done = ccaco(*words, stdin="a red ball\na cat on a sofa\n")
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
