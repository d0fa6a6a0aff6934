from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ccaco_cli.core import config_io, manifest


@pytest.fixture
def flags(data_root: Path, tmp_path: Path) -> list[object]:
    small = ["--set", "model.width=16", "--set", "model.image.size=32", "--set", "optim.steps=1", "--device", "cpu"]
    return [*small, "--data", data_root, "--logs", tmp_path]


def test_flags_reach_the_run_and_its_rows_stdout(
    ccaco: Callable[..., Any], flags: list[object], data_root: Path, tmp_path: Path
) -> None:
    (tmp_path / "c.toml").write_text("[optim]\nlr = 0.5\nwd = 0.25\n")
    arguments = [
        "--config",
        tmp_path / "c.toml",
        "--lr",
        "0.001",
        "--alpha",
        2,
        "--beta",
        0.25,
        "--batch-size",
        8,
        "--seed",
        7,
        "--warmup",
        0,
    ]
    done = ccaco("train", *flags, *arguments)
    assert done.code == 0, done.err
    folder = tmp_path / "scenes-ccaco-s7"
    config = config_io.from_dict(manifest.open(folder, kind="run").config)
    assert (config.optim.lr, config.optim.wd, config.loss.alpha, config.loss.beta) == (0.001, 0.25, 2.0, 0.25)
    assert (config.optim.batch_size, config.seed, config.optim.warmup, config.model.width) == (8, 7, 0.0, 16)
    rows = list(csv.DictReader(io.StringIO(done.out)))
    assert [row["stage"] for row in rows] == ["cosine", "two-stage"]
    step = f"ccaco embed --run {folder} --dataset scenes --data {data_root} --index scenes.idx"
    assert done.err == f"next: {step}\n", "it also works where the data sets lie elsewhere"
    again = ccaco("train", *flags, *arguments)
    assert (again.code, again.out) == (2, "")
    assert "this run is finished" in again.err
    assert again.err.count("\n") == 1


def test_captions_that_lose_their_end_are_reported_and_flags_of_long_inputs_arrive(
    ccaco: Callable[..., Any], flags: list[object], tmp_path: Path
) -> None:
    arguments = [
        "--context-length",
        6,
        "--attention",
        "window",
        "--balance",
        "gradnorm",
        "--image-size",
        "32x64",
        "--tile",
        16,
    ]
    done = ccaco(
        "train", *flags[:2], *flags[4:], *arguments, "--batch-size", 8, "--name", "x", "--set", "loss.cross_start=0"
    )
    assert done.code == 0, done.err
    assert (
        " captions of train and " in done.err
        and "are longer than 6 tokens, and were cut; --context-length takes more" in done.err
    )
    config = config_io.from_dict(manifest.open(tmp_path / "x", kind="run").config)
    assert (config.model.image.size, config.model.image.tiles, config.model.text.context_length) == (16, "2x4", 6)
    assert (config.model.fusion.attention, config.loss.balance) == ("window", "gradnorm")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--dataset", "sceens"], ["no such data set: sceens", "ccaco prepare scenes"]),
        (["--dataset", "flickr8k"], ["not prepared", "ccaco prepare flickr8k --source PATH"]),
        (["--set", "loss.bta=1"], ["loss.bta", "did you mean loss.beta?"]),
        (["--set", "loss.beta"], ["KEY=VALUE"]),
        (["--set", "loss.beta=much"], ["loss.beta", "a number"]),
        (["--config", "gone.toml"], ["no such config file", "gone.toml"]),
        (["--resume", "epoch3"], ["--resume epoch3", "--resume latest"]),
        (["--arm", "clipp"], ["clipp", "did you mean clip?"]),
        (["--image-tower", "tiny:huge"], ["tiny:huge"]),
        (["--precision", "half"], ["amp_bf16"]),
        (["--device", "cuda:77"], ["cuda:77"]),
        (["--accum-freq", "0"], ["accum_freq"]),
        (["--set", "loss.cross=x"], ["infonce"]),
        (["--attention", "sparse"], ["sparse", "dense | window | linear"]),
        (["--balance", "equal"], ["equal", "gradnorm"]),
        (["--image-size", "64x32"], ["--tile"]),
        (["--batch-size", "1"], ["optim.batch_size = 1", "2 or more"]),
        (["--set", "loss.cross_batch=1"], ["loss.cross_batch = 1", "2 or more"]),
        (["--accum-freq", "100"], ["optim.accum_freq = 100", "at most"]),
        *(([flag, number], [flag[2:]]) for flag in ("--lr", "--alpha") for number in ("nan", "inf", "-1")),
        (["--seed", "-1"], ["seed"]),
    ],
)
def test_errors_are_one_line_and_leave_nothing(
    ccaco: Callable[..., Any], flags: list[object], tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    done = ccaco("train", *flags, "--name", "x", *arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.count("\n") == 1, done.err
    assert done.err.startswith("ccaco: ")
    assert all(word in done.err for word in words), done.err
    assert not (tmp_path / "x").exists()


def test_a_finished_run_is_trained_further_by_resume_and_more_steps(
    ccaco: Callable[..., Any], flags: list[object], tmp_path: Path
) -> None:
    command = ("train", *flags, "--batch-size", 8, "--name", "x")
    assert ccaco(*command).code == 0
    again = ccaco(*command, "--resume", "latest")
    assert (again.code, again.err.count("\n")) == (2, 1)
    assert "add --resume latest --set optim.steps=2" in again.err
    done = ccaco(*command, "--resume", "latest", "--set", "optim.steps=2")
    assert done.code == 0, done.err
    assert "x is unchanged; x-stage2 adds 1 steps in 1 epochs: a new warm-up and cosine over the added" in done.err
    assert f"ccaco embed --run {tmp_path / 'x-stage2'} " in done.err
    assert {row["run"] for row in csv.DictReader(io.StringIO(done.out))} == {"x-stage2"}


def test_a_run_with_damaged_embeddings_is_not_offered_for_search(
    ccaco: Callable[..., Any], flags: list[object], data_root: Path, tmp_path: Path
) -> None:
    done = ccaco("train", *flags, "--name", "hot", "--lr", "1e30", "--warmup", 0)
    assert done.code == 0
    last = done.err.splitlines()[-1]
    assert "not finite: this run cannot be searched; next: the same command with a lower learning rate" in last
    assert "ccaco embed" not in done.err
    paths = ["--data", data_root, "--out", tmp_path / "out", "--index", tmp_path / "hot.idx"]
    done = ccaco("embed", "--run", tmp_path / "hot", *paths)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "not finite" in done.err and "--lr 1e+29" in done.err
    assert not (tmp_path / "hot.idx").exists() and not (tmp_path / "out").exists()
    done = ccaco("report", tmp_path / "hot")
    assert done.code == 0 and "ccaco embed" not in done.out + done.err


def test_usage_errors_end_with_2(ccaco: Callable[..., Any]) -> None:
    for arguments in (
        *(["train", "--no-such-flag"], ["train", "--epochs", "many"], ["retrieve", "x"], ["dance"]),
        *(["train", "--save-every-minutes", number] for number in ("nan", "inf", "-1")),
    ):
        done = ccaco(*arguments)
        assert (done.code, done.out) == (2, "")
        assert "Traceback" not in done.err


def test_a_run_is_also_sent_to_tensorboard(ccaco: Callable[..., Any], flags: list[object], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the optional extra tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert ccaco("train", "--name", "seen", "--report-to", "tensorboard", *flags).code == 0
    events = EventAccumulator(str(tmp_path / "seen/tensorboard"))
    events.Reload()
    entries = [json.loads(line) for line in (tmp_path / "seen/metrics.jsonl").read_text().splitlines()]
    assert events.Scalars("contrastive")[0].value == pytest.approx(entries[0]["contrastive"])
    assert events.Scalars("validation/R-sum")[0].value == pytest.approx(entries[-1]["validation"]["R-sum"])


def test_flags_of_adaptation_reach_the_run_and_its_tables(ccaco: Callable[..., Any], tmp_path: Path) -> None:
    data = tmp_path / "data"
    assert (
        ccaco(
            "prepare",
            "scenes-styles",
            "--limit",
            45,
            "--image-size",
            32,
            "--out",
            data / "scenes-styles",
            "--workers",
            0,
        ).code
        == 0
    )
    small = [
        "--set",
        "model.width=16",
        "--set",
        "model.image.size=32",
        "--set",
        "optim.steps=1",
        "--device",
        "cpu",
        "--batch-size",
        8,
    ]
    arguments = [
        "--source-domains",
        "colour",
        "--target-domain",
        "sketch",
        "--domain-loss",
        "both",
        "--domain-weight",
        0.3,
        "--domain-sides",
        "image",
    ]
    done = ccaco(
        "train", "--dataset", "scenes-styles", *small, *arguments, "--data", data, "--logs", tmp_path, "--name", "r"
    )
    assert done.code == 0, done.err
    config = config_io.from_dict(manifest.open(tmp_path / "r", kind="run").config).domain
    assert (config.sources, config.target, config.loss, config.weight, config.sides) == (
        "colour",
        "sketch",
        "both",
        0.3,
        "image",
    )
    table = ccaco("report", tmp_path / "r", "--table", "domains", "--figure", "domains", tmp_path / "map.png")
    assert table.code == 0, table.err
    (row,) = csv.DictReader(io.StringIO(table.out))
    assert (row["sources"], row["target_domain"], row["retention"]) == ("colour", "sketch", "1.0")
    assert (tmp_path / "map.png").is_file() and table.err == f"written: {tmp_path / 'map.png'}\n"
    wrong = ccaco(
        "train",
        "--dataset",
        "scenes-styles",
        "--target-domain",
        "sketches",
        "--data",
        data,
        "--logs",
        tmp_path,
        "--name",
        "s",
    )
    assert (wrong.code, wrong.out, wrong.err.count("\n")) == (2, "", 1)
    assert "did you mean sketch?" in wrong.err
