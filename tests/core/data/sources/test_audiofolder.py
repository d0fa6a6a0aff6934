from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from ccaco_cli.core.data.preparation import prepare
from ccaco_cli.core.data.shards import WriteOptions
from ccaco_cli.core.data.sources.audiofolder import SOURCE
from ccaco_cli.core.data.sources.source import SourceOptions
from ccaco_cli.core.errors import DataError
from tests.recordings import sound, tone

REAL = Path(os.environ.get("CCACO_REAL_DATA", "/nonexistent")) / "esc10"


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_class_folders_and_split_folders(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "train/sea_waves/1.WAV",
        "valid/sea_waves/2.ogg",
        "test/Dog bark/3.flac",
        "test/Dog bark/notes.txt",
        "loose.mp3",
    )
    rows = {r.id: r for r in SOURCE.read(tmp_path, SourceOptions()).records}
    assert set(rows) == {"train/sea_waves/1.WAV", "valid/sea_waves/2.ogg", "test/Dog bark/3.flac", "loose.mp3"}
    dog = rows["test/Dog bark/3.flac"]
    assert (dog.split, dog.label, dog.group, dog.captions) == (
        "test",
        "dog bark",
        "dog bark",
        ["the sound of dog bark", "dog bark"],
    )
    assert rows["valid/sea_waves/2.ogg"].split == "val" and rows["loose.mp3"].captions == []
    assert next(iter(SOURCE.read(tmp_path, SourceOptions(template="I hear {}")).records)).captions == []
    with pytest.raises(DataError, match=r"has no \{\} for the class name"):
        SOURCE.read(tmp_path, SourceOptions(template="a sound"))
    with pytest.raises(DataError, match=r"no such fold: --fold 2; expected a set in folds"):
        SOURCE.read(tmp_path, SourceOptions(fold=2))


def test_folds_are_splits_and_takes_of_a_recording_stay_together(tmp_path: Path) -> None:
    names = [
        f"001 - Dog bark/{fold}-{100 * fold + n}-{take}.ogg" for fold in (1, 2, 3) for n in range(40) for take in "AB"
    ]
    touch(tmp_path, *names)
    data = SOURCE.read(tmp_path, SourceOptions())
    assert data.facts["test_fold"] == 3 and "test on fold 3, train on folds 1+2" in data.protocol
    rows = list(data.records)
    assert {r.id for r in rows if r.split == "test"} == {n for n in names if "/3-" in n}
    assert {r.label for r in rows} == {"dog bark"}
    splits: dict[str, set[str]] = {}
    for r in rows:
        splits.setdefault(r.id[:-6], set()).add(r.split)
    assert all(len(split_names) == 1 for split_names in splits.values())
    assert 1 <= Counter(r.split for r in rows)["val"] // 2 <= 20
    first = SOURCE.read(tmp_path, SourceOptions(fold=1))
    assert {r.id for r in first.records if r.split == "test"} == {n for n in names if "/1-" in n}
    with pytest.raises(DataError, match="expected one of 1, 2, 3"):
        SOURCE.read(tmp_path, SourceOptions(fold=5))


def test_esc50_takes_its_classes_from_the_table(tmp_path: Path) -> None:
    touch(tmp_path, "audio/1-100032-A-0.wav", "audio/2-100038-A-14.wav", "meta/none.txt")
    (tmp_path / "meta/esc50.csv").write_text(
        "filename,fold,target,category\n1-100032-A-0.wav,1,0,dog\n2-100038-A-14.wav,2,14,chirping_birds\n"
    )
    rows = {r.label: r for r in SOURCE.read(tmp_path, SourceOptions()).records}
    assert set(rows) == {"dog", "chirping birds"} and rows["chirping birds"].split == "test"


def test_nothing_there(tmp_path: Path) -> None:
    for root in (None, tmp_path):
        with pytest.raises(DataError, match=r"no folder here|no sound in this folder"):
            SOURCE.read(root, SourceOptions())


def test_prepared_from_real_files(tmp_path: Path) -> None:
    for number, (kind, samples) in enumerate({"wav": tone(0.3, 8_000), "opus": tone(0.3, 48_000, channels=2)}.items()):
        file = tmp_path / "in" / "train" / "beep" / f"{number}.{kind}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(sound(samples, 8_000 if kind == "wav" else 48_000, kind))
    (tmp_path / "in/train/beep/broken.mp3").write_bytes(b"nothing of the kind")
    (tmp_path / "in/train/beep/empty.wav").touch()
    data = prepare(
        "audiofolder", source_path=tmp_path / "in", out=tmp_path / "out", write=WriteOptions(workers=0, max_rejects=0.5)
    )
    assert data.facts["rejects"] == {"empty file": 1, "not a recording": 1}
    assert data.facts["inspection"]["train"]["audio_seconds"]["max"] == pytest.approx(0.3, abs=0.05)


@pytest.mark.skipif(not REAL.is_dir(), reason="CCACO_REAL_DATA is unset: no ESC-10")
def test_esc10_as_distributed() -> None:
    data = SOURCE.read(REAL, SourceOptions())
    rows = list(data.records)
    counts = Counter(r.split for r in rows)
    assert counts["test"] == 80 and counts["train"] + counts["val"] == 160 and counts["val"] >= 8
    assert len({r.label for r in rows}) == 10 and {"sea waves", "rain", "person sneeze"} <= {r.label for r in rows}
    assert Counter(r.label for r in rows if r.split == "test") == dict.fromkeys({r.label for r in rows}, 8)


def test_classes_of_the_table_that_are_missing_or_repeated(tmp_path: Path) -> None:
    touch(tmp_path, "audio/1-100032-A-0.wav", "audio/2-100038-A-14.w64", "audio/3.mid", "audio/x.txt", "meta/none.txt")
    header, table = "filename,fold,target,category\n", tmp_path / "meta/esc50.csv"
    table.write_text(header + '1-100032-A-0.wav,1,0,"dog\nbark"\n2-100038-A-14.w64,2,14,\n')
    data = SOURCE.read(tmp_path, SourceOptions())
    rows = {r.id: (r.label, list(r.captions), r.problem) for r in data.records}
    assert rows["audio/1-100032-A-0.wav"][0] == "dog\nbark"
    assert rows["audio/2-100038-A-14.w64"] == ("", [], "")
    assert rows["audio/3.mid"][2] == "no decoder for this kind of file"
    assert data.facts["passed_over"] == {"suffixes": {".txt": 2, ".csv": 1}, "hidden": 0}
    for text, words in (
        ("1.wav,1,0,dog\n1.wav,1,0,cat\n", "a file with two rows"),
        ('3.wav,1,0,"dog, wet"\n1.wav,1,0,"dog\n2.wav,1,0,cat\n', r"unreadable table.*esc50.csv:3"),
        ("1.wav,1,0\n", r"unreadable table.*esc50.csv:2"),
    ):
        table.write_text(header + text)
        with pytest.raises(DataError, match=words):
            SOURCE.read(tmp_path, SourceOptions())
    table.write_bytes(header.encode() + b'1-100032-A-0.wav,1,0,19" wheels\n2-100038-A-14.w64,2,14,"caf\xe9\n')
    data = SOURCE.read(tmp_path, SourceOptions())
    assert {r.label for r in data.records if r.label} >= {'19" wheels', '"caf\xe9'}
    assert data.facts["quotes"] == "ordinary characters" and list(data.text_files) == [table]
