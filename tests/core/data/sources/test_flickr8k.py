from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ccaco_cli.core.data.sources.flickr8k import (
    FLICKR30K_ROLES_SOURCE,
    FLICKR30K_SOURCE,
    ROLES_SOURCE,
    SOURCE,
)
from ccaco_cli.core.data.sources.lists import REPEATED
from ccaco_cli.core.data.sources.source import Source, SourceOptions
from ccaco_cli.core.errors import DataError

OPTIONS = SourceOptions()


def lay_out(root: Path) -> None:
    (root / "Flickr8k_text").mkdir(parents=True)
    (root / "Flicker8k_Dataset").mkdir()
    token = "b.jpg#1\tB one .\r\nb.jpg#0\tB zero\r\na.jpg#0\t caf\xe9 \r\nd.jpg.1#0\tnowhere\r\n"
    (root / "Flickr8k_text" / "Flickr8k.token.txt").write_bytes(token.encode("cp1252"))
    for part, name in (("train", "b.jpg"), ("dev", "a.jpg"), ("test", "c.jpg")):
        (root / "Flickr8k_text" / f"Flickr_8k.{part}Images.txt").write_text(f"{name}\n\n")


def test_token_layout(tmp_path: Path) -> None:
    lay_out(tmp_path)
    data = SOURCE.read(tmp_path, OPTIONS)
    rows = list(data.records)
    photos = tmp_path / "Flicker8k_Dataset"
    assert [(r.id, r.group, r.split, list(r.captions), r.media["image"]) for r in rows] == [
        ("a.jpg", "a.jpg", "val", [" caf\xe9 "], photos / "a.jpg"),
        ("b.jpg", "b.jpg", "train", ["B zero", "B one ."], photos / "b.jpg"),
        ("c.jpg", "c.jpg", "test", [], photos / "c.jpg"),
    ]
    assert data.facts == {"unlisted": 1} and data.counts == {"train": 1, "val": 1, "test": 1}
    assert data.protocol.endswith("; a part: train 1 of 6,000, val 1 of 1,000, test 1 of 1,000")


def test_karpathy_layout_comes_first_in_a_folder_and_each_file_can_be_named(tmp_path: Path) -> None:
    lay_out(tmp_path)
    image = {"filename": "b.jpg", "split": "test", "sentences": [{"raw": "from json"}]}
    (tmp_path / "dataset_flickr8k.json").write_text(json.dumps({"images": [image]}))
    for path in (tmp_path, tmp_path / "dataset_flickr8k.json"):
        (row,) = SOURCE.read(path, OPTIONS).records
        assert (row.split, row.captions) == ("test", ["from json"])
    tokens = tmp_path / "Flickr8k_text" / "Flickr8k.token.txt"
    assert [r.id for r in SOURCE.read(tokens, OPTIONS).records] == ["a.jpg", "b.jpg", "c.jpg"]
    (tmp_path / "Flickr8k_text" / "Flickr_8k.trainImages.txt").unlink()
    with pytest.raises(DataError, match="no list of the train photos"):
        SOURCE.read(tokens, OPTIONS)


def test_flickr30k_lists_name_photos_without_suffix(tmp_path: Path) -> None:
    (tmp_path / "results_20130124.token").write_text("1.jpg#0\tone\n2.jpg#0\ttwo\n3.jpg#0\tthree\n")
    for number, part in enumerate(("train", "val", "test"), 1):
        (tmp_path / f"{part}.txt").write_text(f"{number}\n")
    rows = list(FLICKR30K_SOURCE.read(tmp_path, OPTIONS).records)
    assert [(r.id, r.split, list(r.captions)) for r in rows] == [
        ("1.jpg", "train", ["one"]),
        ("2.jpg", "val", ["two"]),
        ("3.jpg", "test", ["three"]),
    ]


def test_a_token_file_of_another_name(tmp_path: Path) -> None:
    (tmp_path / "captions.token").write_text("1.jpg#0\tone\n")
    (tmp_path / "Flickr8k.lemma.token.txt").write_text("1.jpg#0\tlemma\n")
    for part in ("train", "val", "test"):
        (tmp_path / f"{part}.txt").write_text("1\n" if part == "train" else "")
    assert [r.captions for r in FLICKR30K_SOURCE.read(tmp_path, OPTIONS).records] == [["one"]]


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"no flickr8k list in this folder.*Flickr8k.token.txt.*next: ccaco prepare --list"
    ):
        SOURCE.read(tmp_path, OPTIONS)
    (tmp_path / "Flickr8k.token.txt").write_text("a.jpg\tno number\n")
    with pytest.raises(DataError, match=r"a line in another format.*:1"):
        SOURCE.read(tmp_path, OPTIONS)
    (tmp_path / "dataset_flickr8k.json").write_text("[1")
    with pytest.raises(DataError, match="not a JSON file"):
        SOURCE.read(tmp_path, OPTIONS)
    (tmp_path / "dataset_flickr8k.json").write_text('{"images": [{"filename": "a"}]}')
    with pytest.raises(DataError, match="not a Karpathy split file"):
        SOURCE.read(tmp_path, OPTIONS)


@pytest.mark.skipif("CCACO_REAL_DATA" not in os.environ, reason="CCACO_REAL_DATA is not set: no real photos to read")
def test_real_lists_are_the_same_in_both_layouts() -> None:
    root = Path(os.environ["CCACO_REAL_DATA"]) / "flickr8k"
    karpathy = list(SOURCE.read(root / "dataset_flickr8k.json", OPTIONS).records)
    tokens = list(SOURCE.read(root / "Flickr8k.token.txt", OPTIONS).records)
    assert karpathy == tokens
    assert len(tokens) == 7000 and sum(len(r.captions) for r in tokens) == 35_000
    assert {s: sum(r.split == s for r in tokens) for s in ("train", "val", "test")} == {
        "train": 6000,
        "val": 500,
        "test": 500,
    }


def test_a_photo_that_is_listed_twice_is_rejected_both_times(tmp_path: Path) -> None:
    images = [
        {"filename": "a.jpg", "split": "train", "sentences": [{"raw": "one"}]},
        {"filename": "b.jpg", "split": "train", "sentences": [{"raw": None}, {"raw": "two"}, "three"]},
        {"filename": "a.jpg", "split": "test", "sentences": [{"raw": "other"}]},
        {"filename": "c.jpg", "split": "val", "sentences": [{"id": 1}]},
    ]
    (tmp_path / "dataset_flickr8k.json").write_text(json.dumps({"images": images}))
    rows = list(SOURCE.read(tmp_path, OPTIONS).records)
    assert [(r.id, r.split, list(r.captions), r.problem) for r in rows] == [
        ("a.jpg", "train", ["one"], REPEATED),
        ("a.jpg", "test", ["other"], REPEATED),
        ("b.jpg", "train", ["", "two", "three"], ""),
        ("c.jpg", "val", [], "caption is an object without a known key"),
    ]
    (tmp_path / "dataset_flickr8k.json").write_text('{"images": [{"filename": "a", "filename": "b"}]}')
    with pytest.raises(DataError, match="repeated key 'filename'"):
        SOURCE.read(tmp_path, OPTIONS)


def test_a_photo_in_two_split_lists_is_rejected(tmp_path: Path) -> None:
    lay_out(tmp_path)
    (tmp_path / "Flickr8k_text" / "Flickr_8k.testImages.txt").write_text("c.jpg\na.jpg\na.jpg\n")
    rows = [(r.id, r.split, r.problem) for r in SOURCE.read(tmp_path, OPTIONS).records]
    assert rows == [
        ("a.jpg", "val", REPEATED),
        ("a.jpg", "test", REPEATED),
        ("b.jpg", "train", ""),
        ("c.jpg", "test", ""),
    ]


def write_karpathy(root: Path, name: str, captions: dict[str, list[str]]) -> Path:
    """``captions``: split/photo -> its captions."""
    images = [
        {"filename": key.split("/")[1], "split": key.split("/")[0], "sentences": [{"raw": text} for text in texts]}
        for key, texts in captions.items()
    ]
    (root / f"dataset_{name}.json").write_text(json.dumps({"images": images}))
    return root


ROLES = {
    "train/1.jpg": ["a man pushes a boy", "a man pushes a cart"],
    "val/2.jpg": ["A man pushes a boy .", "a man and a boy"],
    "val/3.jpg": ["a man and a boy"],
    "test/4.jpg": ["a boy chases a dog", "a dog is chased by a boy", "a dog sleeps"],
}


@pytest.mark.parametrize(("source", "name"), [(ROLES_SOURCE, "flickr8k"), (FLICKR30K_ROLES_SOURCE, "flickr30k")])
def test_choices_of_exchanged_roles(source: Source, name: str, tmp_path: Path) -> None:
    data = source.read(write_karpathy(tmp_path, name, ROLES), OPTIONS)
    rows = {record.id: record for record in data.records}
    assert {record.split for record in rows.values()} == {"test"} and data.counts == {"test": 2}
    assert rows.keys() == {"2.jpg", "4.jpg"}, "no photo that is trained on, and none without a choice"
    assert list(rows["2.jpg"].captions) == ROLES["val/2.jpg"]
    ((kind, true, false, advantage),) = rows["2.jpg"].meta["choices"]
    assert (kind, true, false) == ("roles_alike", "A man pushes a boy .", "A boy pushes a man .") and advantage > 0
    assert [choice[:3] for choice in rows["4.jpg"].meta["choices"]] == [
        ["roles_unlike", "a boy chases a dog", "a dog chases a boy"],
        ["roles_unlike", "a dog is chased by a boy", "a boy is chased by a dog"],
    ]
    assert data.facts == {"items": {"roles_alike": 1, "roles_unlike": 2}, "evaluation": "choices"}
    assert data.protocol.startswith(f"{name}-roles: 3 choices between a caption of val or test")


def test_captions_without_roles_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no caption of val or test has two agents"):
        ROLES_SOURCE.read(write_karpathy(tmp_path, "flickr8k", {"train/1.jpg": ["a man pushes a boy"]}), OPTIONS)


@pytest.mark.skipif("CCACO_REAL_DATA" not in os.environ, reason="CCACO_REAL_DATA does not name the real data")
def test_exchanged_roles_of_the_real_captions() -> None:
    data = ROLES_SOURCE.read(Path(os.environ["CCACO_REAL_DATA"]) / "flickr8k", OPTIONS)
    records = list(data.records)
    choices = [choice for record in records for choice in record.meta["choices"]]
    assert len(choices) == sum(data.facts["items"].values()) > 70 and len(records) > 45
    assert all(Path(str(record.media["image"])).is_file() for record in records)
    likelier = sum(choice[3] > 0 for choice in choices) / len(choices)
    assert 0.4 < likelier < 0.9, "words alone say something, but not all"
