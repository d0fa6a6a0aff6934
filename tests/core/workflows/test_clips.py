"""The six commands on pairs of other modalities: video with sound, and sound with text."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ccaco_cli.core.data import shards
from ccaco_cli.core.data.preparation import prepare
from ccaco_cli.core.data.shards import WriteOptions
from ccaco_cli.core.data.sources.source import SourceOptions
from tests.recordings import sound, tone

FEW = ["--epochs", 1, "--batch-size", 8, "--set", "model.width=16", "--set", "eval.ways=4", "--device", "cpu"]


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clips")
    prepare(
        "bounces", out=root / "data/bounces", options=SourceOptions(limit=12, size=32), write=WriteOptions(workers=0)
    )
    for number in range(36):
        label, hertz = (("low beep", 300), ("high beep", 2_000), ("middle beep", 900))[number % 3]
        file = root / "beeps" / ("train", "train", "val", "test")[number // 3 % 4] / label / f"{number}.wav"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(sound(tone(0.4, 16_000, hertz + number), 16_000))
    return root


def test_video_and_audio(ccaco: Callable[..., Any], place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    done = ccaco(
        "train",
        "--dataset",
        "bounces",
        "--name",
        "b",
        "--format",
        "json",
        "--beta",
        0.5,
        *FEW,
        "--set",
        "loss.cross_start=0",
    )
    assert done.code == 0, done.err
    row = json.loads(done.out)[0]
    for key in (
        "video_to_audio_R@1",
        "audio_to_video_R@1",
        "video_to_audio_mAP",
        "audio_to_video_mAP",
        "twin_accuracy",
    ):
        assert 0 <= row[key] <= 1
    assert {"matching_accuracy", "matching_4_way_accuracy", "matching_binary_accuracy"} <= row.keys()
    result = json.loads((place / "runs/b/results/test.cosine.json").read_text())
    assert (
        set(result["strata"]["combination"]) == {"seen", "unseen"}
        and "twins that differ only in timing" in result["data_protocol"]
    )
    assert [len(result["per_item"][k]) for k in ("matching_4_way", "twin")] == [12, 12]

    assert ccaco("embed", "--run", "runs/b", "--dataset", "bounces", "--index", "b.idx").code == 0
    for modality in ("video", "audio"):
        assert np.load(place / f"embeddings/b-bounces-test/{modality}_emb/{modality}_emb_0.npy").shape == (12, 16)
    part = shards.open(place / "data/bounces").split("test")
    (place / "film.mp4").write_bytes(part.media("video", [3])[0])
    (place / "sound.wav").write_bytes(sound(tone(0.7, 22_050, channels=2), 22_050))
    for query in (["--audio", "sound.wav"], ["--audio", "film.mp4"], ["--video", "film.mp4"]):
        done = ccaco("retrieve", *query, "--index", "b.idx", "-k", 3, "--save", "sheet.png")
        assert done.code == 0, done.err
        hits = rows(done.out)
        assert len(hits) == 3 and {r["id"] for r in hits} <= set(part.ids) and hits[0]["text"]
        assert (place / "sheet.png").stat().st_size > 1_000
    for wrong, message in (
        (["a ball"], "cannot encode text"),
        (["--image", "film.mp4"], "cannot encode image"),
        (["--audio", "no.wav"], "no.wav"),
    ):
        done = ccaco("retrieve", *wrong, "--index", "b.idx")
        assert (done.code, done.out) == (2, "") and message in done.err and done.err.count("\n") == 1
    done = ccaco("retrieve", "--video", "sound.wav", "--index", "b.idx")
    assert done.code == 2 and "no picture track: sound.wav" in done.err

    done = ccaco("report", "runs/b", "--table", "matching", "--format", "csv")
    assert done.code == 0 and {"matching_4_way_accuracy", "twin_accuracy"} <= rows(done.out)[0].keys()
    assert {
        r["combination"] for r in rows(ccaco("report", "runs/b", "--by", "combination", "--format", "csv").out)
    } == {"seen", "unseen"}
    assert ccaco("report", "runs/b", "--fail-if", "matching_4_way_accuracy<1.1").code == 1


def test_locked_towers_read_tokens_of_any_length(
    ccaco: Callable[..., Any], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    towers = [
        "--video-tower",
        "frames:torchvision:squeezenet1_1@none",
        "--set",
        "model.video.size=64",
        "--lock-video",
        "--lock-audio",
    ]
    done = ccaco(
        "train", "--dataset", "bounces", "--name", "locked", "--arm", "clip", *towers, *FEW, "--format", "json"
    )
    assert done.code == 0, done.err
    assert 0 <= json.loads(done.out)[0]["video_to_audio_R@1"] <= 1


def test_sound_and_text(ccaco: Callable[..., Any], place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    assert (
        ccaco("prepare", "audiofolder", "--source", "beeps", "--out", "data/beeps", "--template", "one hears a {}").code
        == 0
    )
    learn = [
        *FEW,
        "--epochs",
        12,
        "--set",
        "eval.ways=3",
        "--arm",
        "clip",
        "--set",
        "loss.temperature=0.2",
        "--lr",
        3e-3,
    ]
    done = ccaco("train", "--dataset", "beeps", "--name", "t", "--format", "json", *learn)
    assert done.code == 0, done.err
    row = json.loads(done.out)[0]
    assert row["matching_3_way_accuracy"] > 0.6 and row["text_to_audio_R@1"] > 0.6, "three pitches are told apart"
    assert ccaco("embed", "--run", "runs/t", "--dataset", "beeps", "--index", "t.idx").code == 0
    hits = rows(ccaco("retrieve", "one hears a high beep", "low beep", "--index", "t.idx", "-k", 3).out)
    assert len(hits) == 6 and all(r["text"] for r in hits)
    done = ccaco("retrieve", "--audio", "beeps/test/low beep/9.wav", "--index", "t.idx", "-k", 1)
    assert done.code == 0 and "beep" in rows(done.out)[0]["text"]
