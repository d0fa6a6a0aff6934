from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from ccaco_cli.core.data import shards
from ccaco_cli.core.errors import DataError, ManifestError
from ccaco_cli.core.types import PairRecord


@pytest.fixture
def data(tmp_path: Path) -> shards.PairData:
    def record(i: int, split: str, group: str, captions: int, **more: str) -> PairRecord:
        media = {"raw": b"sound %d" % i}
        return PairRecord(f"id{i}", group, split, media, [f"{i}.{c}" for c in range(captions)], meta={"n": i}, **more)

    rows = [
        record(0, "test", "g1", 1, domain="b", label="dog", family="f"),
        record(1, "train", "g0", 2, domain="a", label="cat"),
        record(2, "train", "g1", 3, domain="b"),
        record(3, "train", "g0", 1, domain="a", label="dog"),
        record(4, "test", "g2", 2, domain="a", family="f"),
        record(5, "test", "g3", 1, domain="c", family="h"),
    ]
    shards.write(
        rows,
        tmp_path / "d",
        shards.DatasetInfo(name="toy", modalities=("raw", "text")),
        shards.WriteOptions(workers=0, rows_per_shard=2),
    )
    return shards.open(tmp_path / "d")


def test_codes_are_dense_and_agree_between_splits(data: shards.PairData) -> None:
    train, test = data.split("train"), data.split("test")
    assert (data.name, data.modalities, data.splits) == ("d", ("raw", "text"), ("train", "test")), "by its folder"
    assert (len(train), len(test), train.ids) == (3, 3, ["id1", "id2", "id3"])
    assert train.group.tolist() == [0, 1, 0] and test.group.tolist() == [1, 2, 3] and train.group.dtype == np.int64
    assert train.domains == test.domains == ("a", "b", "c")
    assert train.domain.tolist() == [0, 1, 0] and test.domain.tolist() == [1, 0, 2]
    assert train.labels == ("cat", "dog") and train.label.tolist() == [0, -1, 1] and test.label.tolist() == [1, -1, -1]
    family = np.concatenate([train.family, test.family])
    assert test.family[0] == test.family[1] and len(set(family.tolist())) == 5


def test_captions_media_and_meta(data: shards.PairData) -> None:
    train = data.split("train")
    assert train.captions == ["1.0", "1.1", "2.0", "2.1", "2.2", "3.0"]
    assert train.caption_start.tolist() == [0, 2, 5, 6] and train.caption_row.tolist() == [0, 0, 1, 1, 1, 2]
    assert train.media("raw", [2, 0]) == [b"sound 3", b"sound 1"] and train.media("raw", np.array([1])) == [b"sound 2"]
    assert train.meta(2) == {"n": 3}


def test_select_is_a_view_of_everything(data: shards.PairData) -> None:
    test = data.split("test")
    some = test.select(np.array([2, 0]))
    assert some.ids == ["id5", "id0"] and some.captions == ["5.0", "0.0"] and some.caption_start.tolist() == [0, 1, 2]
    assert some.group.tolist() == [3, 1] and some.media("raw", [0]) == [b"sound 5"] and some.meta(1) == {"n": 0}
    in_a = test.select(test.domain == test.domains.index("a"))
    assert in_a.ids == ["id4"] and in_a.select([0]).captions == ["4.0", "4.1"] and len(in_a) == 1


def test_pickling_carries_no_media_and_no_texts(data: shards.PairData) -> None:
    train = data.split("train")
    assert len(train.captions) == 6
    packed = pickle.dumps(train)
    assert b"sound 1" not in packed and b"2.2" not in packed
    again = pickle.loads(packed)
    assert (
        again.media("raw", [0]) == [b"sound 1"]
        and again.captions == train.captions
        and again.group.tolist() == [0, 1, 0]
    )


def test_what_is_not_there(data: shards.PairData, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no split 'val'.*one of train, test"):
        data.split("val")
    with pytest.raises(DataError, match=r"no media of modality 'image'.*expected raw"):
        data.split("train").media("image", [0])
    with pytest.raises(DataError, match="no media of modality 'text'"):
        data.split("train").media("text", [0])
    with pytest.raises(ManifestError, match="no dataset here"):
        shards.open(tmp_path / "other")
    with (tmp_path / "d" / "train-00000.arrow").open("ab") as f:
        f.write(b"x")
    with pytest.raises(ManifestError, match="altered"):
        shards.open(tmp_path / "d")


def test_all_is_every_split_together(data: shards.PairData) -> None:
    parts, every = [data.split(name) for name in data.splits], data.split("all")
    assert (
        every.ids == [id for part in parts for id in part.ids] and len(every) == 6 and every.name == every.key == "all"
    )
    for codes in ("group", "domain", "label", "family"):
        assert getattr(every, codes).tolist() == [code for part in parts for code in getattr(part, codes)]
    assert every.captions == [text for part in parts for text in part.captions]
    assert every.media("raw", [5]) == parts[1].media("raw", [2]) and every.meta(5) == parts[1].meta(2)
    assert every.metas([5, 0]) == [every.meta(5), every.meta(0)]


@pytest.mark.parametrize("modality", ["image", "audio", "raw"])
def test_a_data_set_of_one_modality(tmp_path: Path, modality: str) -> None:
    records = [PairRecord(f"id{n}", f"id{n}", "test", {modality: b"%d" % n}) for n in range(3)]
    info = shards.DatasetInfo(name="mine", modalities=(modality,))
    if modality in ("image", "audio"):
        with pytest.raises(DataError, match=r"3 of 3 samples rejected \(not a"):
            shards.write(records, tmp_path / "my set", info, shards.WriteOptions(workers=0))
        return
    shards.write(records, tmp_path / "my set", info, shards.WriteOptions(workers=0))
    opened = shards.open_any(tmp_path / "my set")
    assert (opened.modalities, opened.splits) == (("raw",), ("test",)) and not isinstance(opened, shards.PairData)
    split = opened.split("all")
    assert (
        split.media("raw", [2, 0]) == [b"2", b"0"] and split.captions == [] and split.caption_count.tolist() == [0] * 3
    )
    wanted = (
        r"one modality \(raw\), and this needs pairs: .*my set; .*next: ccaco embed --model SPEC --dataset '.*my set'"
    )
    with pytest.raises(DataError, match=wanted):
        shards.open(tmp_path / "my set")
