from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ccaco_cli.core.data.sources.coco import SOURCE
from ccaco_cli.core.data.sources.lists import REPEATED
from ccaco_cli.core.data.sources.source import SourceOptions
from ccaco_cli.core.errors import DataError

OPTIONS = SourceOptions()


def captions_json(root: Path, part: str, ids: range, year: str = "2017") -> None:
    (root / "annotations").mkdir(exist_ok=True)
    body = {
        "images": [{"id": i, "file_name": f"{i:012d}.jpg"} for i in ids],
        "annotations": [{"image_id": i, "caption": f"{i} {c}"} for c in range(2) for i in reversed(ids)],
    }
    (root / "annotations" / f"captions_{part}{year}.json").write_text(json.dumps(body))


def test_official_protocol(tmp_path: Path) -> None:
    captions_json(tmp_path, "train", range(100))
    captions_json(tmp_path, "val", range(100, 110))
    data = SOURCE.read(tmp_path, OPTIONS)
    rows = list(data.records)
    assert data.protocol.startswith("coco-official-2017")
    assert (
        data.counts
        == {"train": 90, "val": 10, "test": 10}
        == {s: sum(r.split == s for r in rows) for s in ("train", "val", "test")}
    )
    last = rows[-1]
    assert (last.id, last.split, last.captions) == ("val2017/000000000109.jpg", "test", ["109 0", "109 1"])
    assert last.media["image"] == tmp_path / "val2017" / "000000000109.jpg"
    held_out = {r.id for r in rows if r.split == "val"}
    captions_json(tmp_path, "val", range(200, 201))  # what is in val does not move the held-out tenth
    assert {r.id for r in SOURCE.read(tmp_path, OPTIONS).records if r.split == "val"} == held_out
    captions_json(tmp_path, "train", range(3))
    assert SOURCE.read(tmp_path, OPTIONS).counts["val"] == 1


def test_2014_alone_is_named(tmp_path: Path) -> None:
    captions_json(tmp_path, "val", range(2), "2014")
    data = SOURCE.read(tmp_path, OPTIONS)
    assert data.protocol.startswith("coco-official-2014") and [r.split for r in data.records] == ["test", "test"]


def test_karpathy_protocol(tmp_path: Path) -> None:
    captions_json(tmp_path, "train", range(5))

    def image(n: int, split: str, captions: int) -> dict[str, object]:
        sentences = [{"raw": f"{n}.{c}"} for c in range(captions)]
        return {
            "filepath": "val2014",
            "filename": f"COCO_val2014_{n:012d}.jpg",
            "cocoid": n,
            "split": split,
            "sentences": sentences,
        }

    images = [image(1, "train", 7), image(2, "restval", 5), image(3, "val", 6), image(4, "test", 5)]
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": images}))
    (tmp_path / "val2014").mkdir()
    (tmp_path / "val2014" / "COCO_val2014_000000000001.jpg").touch()
    (tmp_path / "train2017").mkdir()
    (tmp_path / "train2017" / "000000000002.jpg").touch()
    data = SOURCE.read(tmp_path, OPTIONS)
    rows = list(data.records)
    rule = "train+restval -> train; captions: all in train, the first five in val and test"
    assert data.protocol == f"coco-karpathy ({rule}); a part: train 2 of 113,287, val 1 of 5,000, test 1 of 5,000"
    assert data.counts == {"train": 2, "val": 1, "test": 1}
    assert [(r.split, len(r.captions)) for r in rows] == [("train", 7), ("train", 5), ("val", 5), ("test", 5)]
    assert rows[0].media["image"] == tmp_path / "val2014" / "COCO_val2014_000000000001.jpg"
    assert rows[1].media["image"] == tmp_path / "train2017" / "000000000002.jpg"
    assert rows[3].media["image"] == tmp_path / "val2014" / "COCO_val2014_000000000004.jpg"
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": [image(1, "dev", 1)]}))
    with pytest.raises(DataError, match="unknown split 'dev'"):
        SOURCE.read(tmp_path, OPTIONS)


def test_the_whole_karpathy_split_is_named_without_a_part(tmp_path: Path) -> None:
    counts = {"train": 82_783, "restval": 30_504, "val": 5_000, "test": 5_000}
    images = [
        {"filename": f"{split}{n}.jpg", "split": split, "sentences": []}
        for split, count in counts.items()
        for n in range(count)
    ]
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": images}))
    data = SOURCE.read(tmp_path, OPTIONS)
    assert data.counts == {"train": 113_287, "val": 5_000, "test": 5_000} and data.protocol.endswith("in val and test)")


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no COCO captions in this folder.*captions_train2017.json"):
        SOURCE.read(tmp_path, OPTIONS)
    captions_json(tmp_path, "train", range(2))
    file = tmp_path / "annotations" / "captions_train2017.json"
    file.write_text(file.read_text().replace('"image_id": 1', '"image_id": 9'))
    with pytest.raises(DataError, match="not a COCO captions file"):
        SOURCE.read(tmp_path, OPTIONS)


@pytest.mark.skipif("CCACO_REAL_DATA" not in os.environ, reason="CCACO_REAL_DATA is not set: no real photos to read")
def test_real_annotations() -> None:
    rows = list(SOURCE.read(Path(os.environ["CCACO_REAL_DATA"]) / "tiny_coco", OPTIONS).records)
    texts = [text for r in rows for text in r.captions]
    assert (len(rows), len(texts), sum(t != t.strip() for t in texts)) == (100, 500, 52)
    assert {s: sum(r.split == s for r in rows) for s in ("train", "val", "test")} == {"train": 45, "val": 5, "test": 50}


def test_repeated_photos_and_missing_captions(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    file = tmp_path / "annotations" / "captions_val2017.json"
    images = [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}, {"id": 3, "file_name": "a.jpg"}]
    texts: list[object] = ["one", None, float("nan"), {"raw": "two"}]
    annotations = [{"image_id": 2, "caption": text} for text in texts] + [{"image_id": 1, "caption": {"id": 3}}]
    file.write_text(json.dumps({"images": images, "annotations": annotations}))
    rows = list(SOURCE.read(tmp_path, OPTIONS).records)
    assert [(r.id, list(r.captions), r.problem) for r in rows] == [
        ("val2017/a.jpg", [""], REPEATED),
        ("val2017/b.jpg", ["one", "", "", "two"], ""),
        ("val2017/a.jpg", [], REPEATED),
    ]
    file.write_text(json.dumps({"images": [*images, {"id": 1, "file_name": "d.jpg"}], "annotations": []}))
    with pytest.raises(DataError, match="two images with one id"):
        SOURCE.read(tmp_path, OPTIONS)


def test_karpathy_photos_that_are_listed_twice(tmp_path: Path) -> None:
    image = {"filepath": "val2014", "filename": "a.jpg", "split": "test", "sentences": [{"raw": "x"}]}
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": [image, image, image | {"filename": "b.jpg"}]}))
    rows = [(r.id, r.problem) for r in SOURCE.read(tmp_path, OPTIONS).records]
    assert rows == [("val2014/a.jpg", REPEATED), ("val2014/a.jpg", REPEATED), ("val2014/b.jpg", "")]
