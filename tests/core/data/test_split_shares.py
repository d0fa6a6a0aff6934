from __future__ import annotations

import csv
import io
import shlex
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ccaco_cli.core.data import shards
from ccaco_cli.core.data.split_shares import SplitShares, evaluation_split, published_splits
from ccaco_cli.core.errors import ConfigError, DataError
from ccaco_cli.core.types import PairRecord

SMALL = ("--set", "model.width=16", "--set", "model.image.size=32", "--set", "optim.steps=1", "--device", "cpu")


def records(*groups: str, split: str = "train") -> list[PairRecord]:
    return [PairRecord(f"{group}-{i}", group, split, {}, ("a",)) for group in groups for i in range(3)]


def table(folder: Path, counts: dict[str, int]) -> Path:
    """A table with a split column; each group has two pictures."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    with (folder / "photos.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("filepath", "title", "split", "group"))
        for split, count in counts.items():
            for i in range(count):
                Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / f"{split}{i}.png")
                writer.writerow((f"{split}{i}.png", f"picture {split} {i}", split, f"{split}-{i // 2}"))
    return folder / "photos.csv"


def test_groups_stay_together_and_added_groups_move_no_others() -> None:
    shares = SplitShares(0.2, 0.3)
    names = [f"g{i}" for i in range(500)]
    splits = {record.id: record.split for record in shares.divide(records(*names))}
    assert all(len({splits[f"{name}-{i}"] for i in range(3)}) == 1 for name in names)
    counts = Counter(splits.values())
    assert counts["val"] / 1500 == pytest.approx(0.2, abs=0.05)
    assert counts["test"] / 1500 == pytest.approx(0.3, abs=0.05)
    more = {record.id: record.split for record in shares.divide(records("new", *reversed(names), "other"))}
    assert {id: more[id] for id in splits} == splits


@pytest.mark.parametrize("split", ["val", "test", "extra"])
def test_published_splits_keep_their_records(split: str) -> None:
    assert {r.split for r in SplitShares(0.5, 0.4).divide(records(*map(str, range(50)), split=split))} == {split}


@pytest.mark.parametrize(
    ("published", "left"),
    [
        ((), {"val": 0.1, "test": 0.2}),
        (("val",), {"test": 0.2}),
        (("train", "test"), {"val": 0.1}),
        (("val", "test"), {}),
    ],
)
def test_only_missing_splits_are_filled(published: tuple[str, ...], left: dict[str, float]) -> None:
    assert SplitShares(0.1, 0.2).missing(published).requested() == left


@pytest.mark.parametrize(("val", "test"), [(0.5, 0.5), (1.0, 0.0), (0.2, 0.9)])
def test_shares_that_leave_nothing_to_train_on_are_refused(val: float, test: float) -> None:
    with pytest.raises(ConfigError, match="nothing to train on"):
        SplitShares(val, test)


def test_without_train_nothing_can_be_taken() -> None:
    with pytest.raises(DataError, match="no split 'train' to take val from"):
        published_splits(records("a", split="test"), ["val"])


@pytest.mark.parametrize(
    ("splits", "chosen"),
    [(("train", "val", "test"), "test"), (("train", "val"), "val"), (("train",), "train"), (("extra",), "extra")],
)
def test_the_split_that_is_embedded_where_none_is_named(splits: tuple[str, ...], chosen: str) -> None:
    assert evaluation_split(splits) == chosen


@pytest.mark.parametrize(
    ("counts", "protocol"),
    [
        ({"train": 60}, "val 25 % and test 25 % of train by hash of the group"),
        ({"train": 60, "test": 6}, "val 25 % of train by hash of the group"),
        ({"train": 60, "val": 6}, "test 25 % of train by hash of the group"),
    ],
)
def test_prepare_fills_missing_splits_and_says_so(
    ccaco: Callable[..., Any], tmp_path: Path, counts: dict[str, int], protocol: str
) -> None:
    source, out = table(tmp_path / "album", counts), tmp_path / "out"
    prepare = ("prepare", "table", "--source", source, "--workers", 0, "--val", "25%", "--test", "25%", "--out", out)
    done = ccaco(*prepare)
    assert done.code == 0, done.err
    data = shards.open(out)
    assert data.manifest.facts["protocol"].endswith(f"; {protocol}")
    assert set(data.splits) == {"train", "val", "test"}
    for split in {"val", "test"} & counts.keys():
        assert len(data.split(split)) == counts[split]
        assert f"--{split} was not used: the source has a split '{split}' of its own" in done.err
    group_of = {name: set(data.split(name).group.tolist()) for name in data.splits}
    assert not group_of["train"] & group_of["val"]
    assert not group_of["train"] & group_of["test"]
    assert not group_of["val"] & group_of["test"]
    assert done.err.splitlines()[-1] == f"next: ccaco train --dataset {out}"


@pytest.mark.parametrize("command", ["train", "ablate", "estimate"])
@pytest.mark.parametrize("counts", [{"train": 60}, {"train": 60, "test": 6}])
def test_training_without_val_is_refused_with_a_command_that_works(
    ccaco: Callable[..., Any], tmp_path: Path, command: str, counts: dict[str, int]
) -> None:
    source, out = table(tmp_path / "album", counts), tmp_path / "out"
    prepared = ccaco("prepare", "table", "--source", source, "--workers", 0, "--out", out)
    assert prepared.code == 0, prepared.err
    next_step = f"next: {prepared.err.splitlines()[-1].removeprefix('next: ')}\n"
    name = ("train", "--estimate") if command == "estimate" else (command,)
    done = ccaco(*name, "--dataset", out, *SMALL, "--name", "x", "--logs", tmp_path)
    assert (done.code, done.err.count("\n")) == (2, 1), done.err
    assert done.err.startswith(f"ccaco: no split 'val' in this data set: {out}")
    assert done.err.endswith(next_step), "prepare and train name the same next step"
    assert not (tmp_path / "x").exists()
    words = shlex.split(done.err.rpartition("next: ")[2])
    assert ccaco(*words[1:]).code == 0
    folder = Path(words[words.index("--out") + 1])
    assert {"train", "val"} <= set(shards.open(folder).splits)


def test_a_share_that_leaves_a_split_empty_is_followed_by_a_larger_one(
    ccaco: Callable[..., Any], tmp_path: Path
) -> None:
    done = ccaco(
        "prepare", "table", "--source", table(tmp_path / "a", {"train": 24}), "--workers", 0, "--out", tmp_path / "out"
    )
    for _ in range(3):
        words = shlex.split(done.err.rpartition("next: ")[2])
        if words[1] == "train":
            break
        assert "there are no samples of val, which training needs" in done.err
        done = ccaco(*words[1:])
        assert done.code == 0, done.err
    assert words[1] == "train", done.err


def test_training_without_test_reports_val_and_says_so_and_embed_falls_back(
    ccaco: Callable[..., Any], tmp_path: Path, data_root: Path, run: Path
) -> None:
    source, out = table(tmp_path / "album", {"train": 24, "val": 8}), tmp_path / "out"
    prepared = ccaco("prepare", "table", "--source", source, "--workers", 0, "--out", out)
    assert "there are no samples of test: results will be those on val" in prepared.err
    done = ccaco("train", "--dataset", out, *SMALL, "--batch-size", 8, "--name", "x", "--logs", tmp_path)
    assert done.code == 0, done.err
    assert "the data set has no test samples: these results are on val" in done.err
    embedded = ccaco("embed", "--run", tmp_path / "x", "--dataset", out, "--device", "cpu", "--out", tmp_path / "e")
    assert embedded.code == 0, embedded.err
    assert "has no split 'test': the split 'val' is embedded" in embedded.err
    typed = ccaco("embed", "--run", tmp_path / "x", "--dataset", out, "--split", "test", "--out", tmp_path / "f")
    assert (typed.code, typed.err.count("\n")) == (2, 1)
    assert "no split 'test'" in typed.err
    alone = ccaco("report", tmp_path / "x")
    assert alone.code == 0, alone.err
    beside = ccaco("report", tmp_path / "x", run)
    assert beside.code == 0, beside.err
    assert "x has no results on test, only on val: its cells are blank" in beside.err
    rows = {row["run"]: row for row in csv.DictReader(io.StringIO(beside.out))}
    assert rows["x"]["text_to_image_R@1"] == ""
    assert rows["first"]["text_to_image_R@1"] != ""
    for name in ("retrieval", "ablation", "matching"):
        assert ccaco("report", tmp_path / "x", run, "--table", name).code == 0, name
    page = ccaco("report", tmp_path / "x", run, "--html", tmp_path / "page.html")
    assert page.code == 0, page.err
