from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path

import pytest

from ccaco_cli.core.data import shards
from ccaco_cli.core.data.preparation import prepare
from ccaco_cli.core.data.shards import WriteOptions
from ccaco_cli.core.data.sources.kinetics_sounds import SOURCE
from ccaco_cli.core.data.sources.source import SourceOptions
from ccaco_cli.core.errors import DataError
from tests.recordings import film, tone

REAL = Path(os.environ.get("CCACO_REAL_DATA", "/nonexistent")) / "audio_lists" / "kinetics_sounds"


def put(root: Path, *names: str, data: bytes = b"") -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)


def test_lists_find_clips_in_either_spelling_and_count_the_missing(tmp_path: Path) -> None:
    (tmp_path / "my_train.txt").write_text(
        "--4-0ihtnBU_000058_000068,10,4\n-00nar1nEPc_000033_000043,10,0\nAAAAAAAAAAA_000001_000011,10,1\n"
    )
    (tmp_path / "my_test.txt").write_text("-3Mwkq-7TV4_2,10,2\nBBBBBBBBBBB_12,10,3\nCCCCCCCCCCC_7,10,3\n")
    put(
        tmp_path,
        "clips/--4-0ihtnBU_000058_000068.mp4",
        "clips/-00nar1nEPc_33.mp4",
        "more/-3Mwkq-7TV4_000002_000012.mp4",
    )
    put(tmp_path, "more/BBBBBBBBBBB_000013_000023.mp4")  # another second of that video
    data = SOURCE.read(tmp_path, SourceOptions())
    rows = {r.id: r for r in data.records}
    assert set(rows) == {"--4-0ihtnBU_000058_000068", "-00nar1nEPc_000033_000043", "-3Mwkq-7TV4_2"}
    assert rows["-3Mwkq-7TV4_2"].media == {"video": tmp_path / "more/-3Mwkq-7TV4_000002_000012.mp4"} | {
        "audio": tmp_path / "more/-3Mwkq-7TV4_000002_000012.mp4"
    }
    assert (rows["-3Mwkq-7TV4_2"].split, rows["-3Mwkq-7TV4_2"].label, rows["-3Mwkq-7TV4_2"].group) == (
        "test",
        "2",
        "-3Mwkq-7TV4_2",
    )
    assert (
        sum(data.facts["listed"].values()) == 6
        and sum(data.facts["missing"].values()) == 3
        and data.facts["missing"]["test"] == 2
    )
    assert data.facts["classes"] == 5 and len(data.facts["missing_list"]) == 16
    assert "no published number of classes" in data.protocol and "test 2 of 3 missing" in data.protocol
    assert "my_test.txt sha256:" in data.revision and sum(data.counts.values()) == 3


def test_the_number_of_classes_names_the_protocol_and_the_hash_the_list(tmp_path: Path) -> None:
    hashes = set()
    for count in (31, 32, 33, 34):
        put(tmp_path, *(f"train/class {k}/{k:011}_000001_000011.mp4" for k in range(count)))
        data = SOURCE.read(tmp_path, SourceOptions())
        assert data.protocol.startswith(f"kinetics-sounds-{count} (") and "no published" not in data.protocol
        assert data.facts["class_list"] in data.protocol
        hashes.add(data.facts["class_list"])
    assert len(hashes) == 4
    (tmp_path / "class.txt").write_text("class_1, class 2,\nCLASS 3, juggling fire")
    data = SOURCE.read(tmp_path, SourceOptions())
    assert {r.label for r in data.records} == {"class 1", "class 2", "class 3"}
    assert data.facts["classes"] == 4 and data.facts["classes_without_clips"] == ["juggling fire"]


def test_clips_of_one_video_share_a_split(tmp_path: Path) -> None:
    put(
        tmp_path,
        *(f"train/bowling/{k:011}_{s:06}_{s + 10:06}.mp4" for k in range(60) for s in (1, 40)),
        "test/bowling/zzzzzzzzzzz_1.mp4",
    )
    splits: dict[str, set[str]] = {}
    for r in SOURCE.read(tmp_path, SourceOptions()).records:
        splits.setdefault(r.id[:11], set()).add(r.split)
    assert all(len(names) == 1 for names in splits.values())
    counts = Counter(next(iter(names)) for names in splits.values())
    assert counts["test"] == 1 and 1 <= counts["val"] <= 15 and counts["train"] + counts["val"] == 60
    shutil.move(tmp_path / "train", tmp_path / "val")
    assert {r.split for r in SOURCE.read(tmp_path, SourceOptions()).records} == {"val", "test"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--4-0ihtnBU_000058_000068,10", "not a line"),
        ("short_1,10,3", "not a line"),
        ("-00nar1nEPc_33,10,bowling", "not a line"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "train.txt").write_text(f"-3Mwkq-7TV4_2,10,2\n{line}\n")
    with pytest.raises(DataError, match=f"{message}.*train.txt:2"):
        SOURCE.read(tmp_path, SourceOptions())


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no clips here"):
        SOURCE.read(tmp_path, SourceOptions())
    (tmp_path / "test.txt").write_text("-3Mwkq-7TV4_2,10,2\n")
    with pytest.raises(DataError, match="none of the 1 listed clips"):
        SOURCE.read(tmp_path, SourceOptions())


def test_prepared_from_real_files(tmp_path: Path) -> None:
    good, mute = film(samples=tone(1.0, 44_100, channels=2), rate=44_100), film()
    for k, split in enumerate(("train", "train", "val", "test")):
        put(tmp_path / "ks", f"{split}/bowling/{k:011}_000001_000011.mp4", data=good)
    put(tmp_path / "ks", "test/laughing/mutemutemut_000001_000011.mp4", data=mute)
    put(tmp_path / "ks", "test/laughing/brokenbroke_000001_000011.mp4", data=good[:700])
    data = prepare(
        "kinetics-sounds",
        source_path=tmp_path / "ks",
        out=tmp_path / "out",
        write=WriteOptions(workers=0, max_rejects=0.5),
    )
    assert data.facts["rejects"]["no sound track"] == 1 and sum(data.facts["rejects"].values()) == 2
    assert (
        "silent" not in data.facts["inspection"]["train"]
        and data.facts["inspection"]["train"]["video_seconds"]["mean"] == 1
    )
    assert data.facts["protocol"].startswith("kinetics-sounds-2 (")
    part = shards.open(tmp_path / "out").split("train")
    assert part.media("video", [0]) == [good] and len(part.media("audio", [0])[0]) < len(good)
    assert part.meta(0)["audio"]["rate"] == 44_100 and part.captions == []


@pytest.mark.skipif(not REAL.is_dir(), reason="CCACO_REAL_DATA is unset: no Kinetics-Sounds lists")
def test_the_lists_as_distributed(tmp_path: Path) -> None:
    for name in ("my_train.txt", "my_test.txt"):
        shutil.copy(REAL / name, tmp_path)
    names = [(REAL / name).read_text().splitlines()[5].split(",")[0] for name in ("my_train.txt", "my_test.txt")]
    put(tmp_path, *(f"clips/{name}.mp4" for name in names))
    data = SOURCE.read(tmp_path, SourceOptions())
    listed, missing = data.facts["listed"], data.facts["missing"]
    assert listed["train"] + listed["val"] == 14_799 and listed["test"] == 2_597 and 1_300 < listed["val"] < 1_700
    assert missing["train"] + missing.get("val", 0) == 14_798 and missing["test"] == 2_596
    assert data.protocol.startswith("kinetics-sounds-31 (the lists of OGM-GE")
    assert [r.id for r in data.records] == sorted(names, key=lambda n: n == names[0])


def test_files_of_one_name_stay_apart_or_are_rejected(tmp_path: Path) -> None:
    names = ("AAAAAAAAAAA_1", "BBBBBBBBBBB_2")
    put(tmp_path / "f", f"train/x/{names[0]}.mp4", f"train/x/{names[0]}.mkv", f"train/y/{names[0]}.mp4")
    put(tmp_path / "f", f"train/y/{names[1]}.mp4", "train/y/c.rmvb", "train/y/notes.md")
    data = SOURCE.read(tmp_path / "f", SourceOptions())
    assert {r.id: r.problem for r in data.records} == {
        f"train/x/{names[0]}.mkv": "",
        f"train/x/{names[0]}.mp4": "",
        f"train/y/{names[0]}.mp4": "",
        names[1]: "",
        "c": "no decoder for this kind of file",
    }
    assert data.facts["passed_over"] == {"suffixes": {".md": 1}, "hidden": 0}
    (tmp_path / "l").mkdir()
    (tmp_path / "l" / "train.txt").write_text("".join(f"{name},10,0\n" for name in names))
    put(
        tmp_path / "l", f"a/{names[0]}.mp4", "b/AAAAAAAAAAA_000001_000011.mp4", f"a/{names[1]}.mp4", f"a/{names[1]}.mkv"
    )
    rows = {r.id: (r.problem, r.media["video"]) for r in SOURCE.read(tmp_path / "l", SourceOptions()).records}
    assert rows[names[0]] == ("", tmp_path / "l" / "a" / f"{names[0]}.mp4"), "the file with exactly this name"
    assert rows[names[1]][0] == "several files of one clip"


def test_clips_may_lie_in_another_folder(tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "train.txt").write_text("AAAAAAAAAAA_1,10,0\n")
    put(tmp_path, "clips/x/AAAAAAAAAAA_1.webm")
    (row,) = SOURCE.read(tmp_path / "lists", SourceOptions(media_root=tmp_path / "clips")).records
    assert row.media["video"] == tmp_path / "clips/x/AAAAAAAAAAA_1.webm"
