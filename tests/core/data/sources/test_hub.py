from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from ccaco_cli.core.data import shards
from ccaco_cli.core.data.preparation import out_name, prepare
from ccaco_cli.core.data.shards import WriteOptions
from ccaco_cli.core.data.sources.hub import SOURCE
from ccaco_cli.core.data.sources.source import SourceOptions
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.types import PairRecord


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def picture(number: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (9, 7), (number, 0, 5)).save(out, "PNG")
    return out.getvalue()


def parquet(folder: Path, splits: dict[str, int], **more: Any) -> Path:
    """A folder as the hub has it: ``data/SPLIT-00000-of-00001.parquet`` with a column of pictures."""
    (folder / "data").mkdir(parents=True)
    for number, (split, rows) in enumerate(splits.items()):
        columns: dict[str, Any] = {"photo": [{"bytes": picture(50 * number + i), "path": None} for i in range(rows)]}
        columns |= {name: [make(i) for i in range(rows)] for name, make in more.items()}
        table = datasets.Dataset.from_dict(columns).cast_column("photo", datasets.Image())
        table.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


def read(path: Path, **options: Any) -> list[PairRecord]:
    return list(SOURCE.read(path, SourceOptions(**options)).records)


def test_further_columns_of_plain_values_travel(tmp_path: Path) -> None:
    folder = parquet(
        tmp_path / "set",
        {"test": 2},
        text=lambda i: "x",
        stars=lambda i: i,
        score=lambda i: i / 2,
        ok=lambda i: bool(i),
        who=lambda i: ["ann", None][i],
        boxes=lambda i: [[i, i]],
    )
    assert [dict(record.meta) for record in read(folder, columns={"image": "photo"})] == [
        {"stars": 0, "score_": 0.0, "ok": False, "who": "ann"},
        {"stars": 1, "score_": 0.5, "ok": True},
    ]


def test_a_local_folder_in_the_hubs_format(tmp_path: Path) -> None:
    folder = parquet(
        tmp_path / "set", {"train": 3, "validation": 2}, text=lambda i: [f" one {i}", "two"], rest=lambda i: i
    )
    data = SOURCE.read(folder, SourceOptions())
    rows = list(data.records)
    assert [(r.id, r.group, r.split) for r in rows] == [
        *((f"train/{i}", f"train/{i}", "train") for i in range(3)),
        *((f"validation/{i}", f"validation/{i}", "val") for i in range(2)),
    ]
    assert rows[1].captions == [" one 1", "two"] and rows[3].media["image"] == picture(50)
    assert data.protocol == "hub set; splits as published" and data.facts == {
        "columns": {"image": "photo", "caption": "text"}
    }
    prepared = prepare(f"hub:{folder}", out=tmp_path / "d", write=WriteOptions(workers=0))
    assert (
        prepared.facts["name"] == "set"
        and prepared.config["name"] == str(folder)
        and prepared.facts["captions"]["cleaned"] == 5
    )
    assert shards.open(tmp_path / "d").split("train").media("image", [2]) == [picture(2)]


def test_columns_by_flags_and_an_error_that_lists_them(tmp_path: Path) -> None:
    folder = parquet(tmp_path / "set", {"train": 20}, de=str, en=lambda i: f"e{i}", style=lambda i: "ab"[i % 2])
    with pytest.raises(
        DataError, match=r"no column that looks like the caption.*one of photo, de, en, style.*--column caption="
    ):
        read(folder)
    with pytest.raises(DataError, match=r"no column 'english' for caption.*one of photo, de, en, style"):
        read(folder, columns={"caption": "english"})
    with pytest.raises(DataError, match="unknown column name: words"):
        read(folder, columns={"words": "en"})
    rows = read(folder, columns={"caption": "en", "domain": "style"})
    assert [(list(r.captions), r.domain) for r in rows[:2]] == [(["e0"], "a"), (["e1"], "b")]
    assert len({r.split for r in rows}) > 1  # one split, so it is divided


def test_class_labels_become_captions(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    for split in ("train", "test"):
        for name in ("polar_bear", "cat"):
            (folder / split / name).mkdir(parents=True)
            (folder / split / name / "1.png").write_bytes(picture(len(name)))
    rows = read(folder, template="a drawing of a {}")
    assert sorted((r.split, r.label, r.group, *r.captions) for r in rows) == [
        ("test", "cat", "cat", "a drawing of a cat"),
        ("test", "polar bear", "polar bear", "a drawing of a polar bear"),
        ("train", "cat", "cat", "a drawing of a cat"),
        ("train", "polar bear", "polar bear", "a drawing of a polar bear"),
    ]
    data = prepare("hub", source_path=folder, out=tmp_path / "d", write=WriteOptions(workers=0))
    assert data.facts["splits"]["train"]["samples"] == 2 and data.facts["source"]["columns"]["label"] == "label"


def test_pictures_inside_an_archive(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    with zipfile.ZipFile(tmp_path / "set" / "train.zip", "w") as archive:
        for name in ("cat", "dog"):
            archive.writestr(f"{name}.png", picture(len(name) + ord(name[0])))
        archive.writestr("metadata.csv", "file_name,text\ncat.png,a cat\ndog.png,a dog\n")
    prepared = prepare(f"hub:{tmp_path / 'set'}", out=tmp_path / "d", write=WriteOptions(workers=2))
    data = shards.open(tmp_path / "d")
    parts = [data.split(name) for name in data.splits]
    labels = {
        text: media
        for part in parts
        for text, media in zip(part.captions, part.media("image", range(len(part))), strict=True)
    }
    assert (
        labels == {f"a {name}": picture(len(name) + ord(name[0])) for name in ("cat", "dog")}
        and not prepared.facts["rejects"]
    )


def test_what_stops_in_the_middle_is_one_error(tmp_path: Path) -> None:
    folder = parquet(tmp_path / "set", {"train": 3}, text=str)
    file = next((folder / "data").iterdir())
    data = bytearray(file.read_bytes())
    data[4:200] = bytes(196)  # the pages, not the footer that says what is in them
    file.write_bytes(data)
    with pytest.raises(DataError, match="the library datasets failed to read split train"):
        prepare(f"hub:{folder}", out=tmp_path / "d", write=WriteOptions(workers=0))


def test_metadata_of_an_imagefolder_cannot_leave_it(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(picture(1))
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "set" / "b.png").write_bytes(picture(2))
    (tmp_path / "set" / "metadata.csv").write_text("file_name,text\na.png,one\nb.png,two\n")
    data = prepare(f"hub:{tmp_path / 'set'}", out=tmp_path / "d", write=WriteOptions(workers=0, max_rejects=0.5))
    assert (
        data.facts["rejects"] == {"outside the source folder": 1}
        and sum(s["samples"] for s in data.facts["splits"].values()) == 1
    )


def test_what_cannot_be_read_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"datasets cannot read this \(.*empty"):
        read(tmp_path / "empty")
    with pytest.raises(DataError, match=r"datasets cannot read this .*nobody/nothing"):
        prepare("hub:nobody/nothing", out=tmp_path / "d")
    with pytest.raises(DataError, match=r"no name of a data set.*hub:NAME"):
        prepare("hub", out=tmp_path / "d")
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("name", "folder"), [("coco", "coco"), ("hub:people/photos:en", "photos"), ("hub:./x/", "x"), ("hub:", "hub")]
)
def test_the_folder_of_a_name(name: str, folder: str) -> None:
    assert out_name(name) == folder


@pytest.mark.parametrize(
    ("values", "captions", "problem"),
    [
        ([{"raw": "a dog", "tokens": ["a", "dog"]}], ["a dog"], ""),
        ([[{"raw": "a dog", "id": 1}, {"raw": "two", "id": 2}]], ["a dog", "two"], ""),
        ([["a dog", "two"]], ["a dog", "two"], ""),
        (['["a dog", "two"]'], ["a dog", "two"], ""),
        ([float("nan")], [], ""),
        ([[["a", "dog"]]], [], "caption is a list in a list"),
        ([{"id": 1, "tokens": ["a"]}], [], "caption is an object without a known key"),
    ],
)
def test_captions_are_taken_apart_or_refused(
    tmp_path: Path, values: list[Any], captions: list[str], problem: str
) -> None:
    folder = parquet(tmp_path / "set", {"train": 1}, sentences=lambda i: values[i])
    (row,) = read(folder)
    assert (list(row.captions), row.problem) == (captions, problem)


def test_a_split_column_holds_one_split_a_row(tmp_path: Path) -> None:
    folder = parquet(tmp_path / "set", {"train": 2}, text=str, split=lambda i: ["val", "test"][: i + 1])
    assert [(r.split, r.problem) for r in read(folder)][0] == ("val", "")
    assert [r.problem for r in read(folder)][1] == "several values of split in one row"


def test_a_line_is_a_caption_in_retrieval_sets_of_clip_benchmark(tmp_path: Path) -> None:
    folder = parquet(tmp_path / "set", {"test": 1}, txt=lambda i: "a dog\ntwo dogs")
    assert [list(r.captions) for r in read(folder)] == [["a dog\ntwo dogs"]]
    (folder / "dataset_type.txt").write_text("retrieval\n")
    assert [list(r.captions) for r in read(folder)] == [["a dog", "two dogs"]]


def test_a_named_column_of_languages(tmp_path: Path) -> None:
    codes, texts = ["en", "zh_CN", "English"], ["a cat", "一只猫", "a dog"]
    folder = parquet(tmp_path / "set", {"test": 3}, text=lambda i: texts[i], lang=lambda i: codes[i])
    columns = {"image": "photo", "language": "lang"}
    english, chinese, wrong = read(folder, columns=columns)
    assert english.meta == {"languages": [["en", 1]], "language": "en"} and not english.problem
    assert chinese.meta["languages"] == [["zh-CN", 1]] and wrong.problem == "language is not a code such as en"
    chosen = read(folder, columns=columns, languages=("zh-CN",))
    assert [record.captions for record in chosen] == [["一只猫"], ["a dog"]]
    assert [record.meta for record in read(folder, columns={"image": "photo"})][0] == {"lang": "en"}
