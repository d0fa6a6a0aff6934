"""COCO-CN, Flickr8k-CN, Flickr30k-CN and Chinese-CLIP: their published layouts, in small copies."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ccaco_cli.core.data import shards
from ccaco_cli.core.data.caption_languages import language_code, language_runs
from ccaco_cli.core.data.preparation import prepare
from ccaco_cli.core.data.shards import WriteOptions
from ccaco_cli.core.data.sources import SOURCES
from ccaco_cli.core.data.sources.flickr30k_cn import joined_words
from ccaco_cli.core.data.sources.source import SourceOptions
from ccaco_cli.core.errors import DataError

OPTIONS = SourceOptions()
LENIENT = WriteOptions(workers=0, max_rejects=0.9)
COCO_PHOTOS = [f"COCO_{part}2014_{number:012d}" for number, part in enumerate(("train", "train", "val", "val"), 1)]


def _picture(number: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 255, (24, 24, 3), np.uint8)).save(out, "JPEG")
    return out.getvalue()


def _photos(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True)
    for number, name in enumerate(names):
        (folder / name).write_bytes(_picture(number))


def coco_cn(root: Path) -> Path:
    """Four photos of COCO 2014; the last line is damaged, and belongs to no photo."""
    release = root / "coco-cn-version1805v1.1"
    release.mkdir(parents=True)
    for split, names in (("train", COCO_PHOTOS[:2]), ("val", COCO_PHOTOS[2:3]), ("test", COCO_PHOTOS[3:])):
        (release / f"coco-cn_{split}.txt").write_text("".join(f"{name}\n" for name in names))
    lines = [f"{name}#0\t一只猫坐在沙发上 {name[-1]}" for name in COCO_PHOTOS]
    lines += [f"{COCO_PHOTOS[0]}#1 两只猫", "只有文字"]
    (release / "imageid.human-written-caption.txt").write_text("\n".join(lines) + "\n", "utf-8")
    (release / "imageid.manually-translated-caption.txt").write_text(f"{COCO_PHOTOS[3]}#0\t译文\n", "utf-8")
    for part, names in (("train2014", COCO_PHOTOS[:2]), ("val2014", COCO_PHOTOS[2:])):
        _photos(root / part, [f"{name}.jpg" for name in names])
    return root


def flickr8k_cn(root: Path) -> Path:
    """Three photos with two Chinese and one English caption each; a damaged line of the second."""
    (root / "data").mkdir(parents=True)
    names = ["1_a.jpg", "2_b.jpg", "3_c.jpg"]
    for split, name in zip(("train", "val", "test"), names, strict=True):
        (root / "data" / f"flickr8k{split}.txt").write_text(f"{name[:-4]}\n")
    chinese = [f"{name}#zhc#{n} 第{n}句" for n in (1, 0) for name in names] + ["2_b.jpg#zhc#x 坏"]
    (root / "data" / "flickr8kzhc.caption.txt").write_text("\n".join(chinese), "utf-8")
    (root / "data" / "flickr8kenc.caption.txt").write_text("".join(f"{n}#enc#0 a dog , {n[0]}\n" for n in names))
    _photos(root / "Flicker8k_Dataset", names)
    return root


def flickr30k_cn(root: Path) -> Path:
    """The release: segmented captions, with parts of speech in the test split; one line is damaged."""
    for number, name in enumerate(("flickr30kzhbbosontrain", "flickr30kzhbbosonval", "flickr30kzhmbosontest"), 1):
        kind, mark = name[len("flickr30k") :][:3], ":n" if name.endswith("test") else ""
        (root / name / "ImageSets").mkdir(parents=True)
        (root / name / "TextData").mkdir()
        (root / name / "ImageSets" / f"{name}.txt").write_text(f"{number}\n")
        line = f"{number}#{kind}#0 穿{mark} Nike 鞋{mark} 的 男人{mark}\n"
        (root / name / "TextData" / f"seg.{name}.caption.txt").write_text(line, "utf-8")
    with (root / "flickr30kzhbbosontrain/TextData/seg.flickr30kzhbbosontrain.caption.txt").open("a") as lines:
        lines.write("#\n")
    _photos(root / "flickr30k-images", ["1.jpg", "2.jpg", "3.jpg"])
    return root


def flickr30k_cn_files(root: Path) -> Path:
    """One file a split."""
    for number, (folder, name) in enumerate((("train", "flickr30k_cna_train"), ("test", "flickr30k_cn_test")), 1):
        (root / folder).mkdir(parents=True)
        line = f"{number}#zhm#0\t一个 男人。\n{number}#zhm#1\t\n"
        (root / folder / f"{name}.txt").write_text(line, "utf-8")
    _photos(root / "flickr30k-images", ["1.jpg", "2.jpg"])
    return root


def chinese_clip(root: Path) -> Path:
    """Three stored images, of which two share a text; a damaged line, and a text without images."""
    root.mkdir()
    texts = [
        {"text_id": 1, "text": "高级感托特包", "image_ids": [11, 12]},
        {"text_id": 2, "text": "红色的包", "image_ids": [12]},
        {"text_id": 3, "text": "蓝色的鞋", "image_ids": [13]},
        {"text_id": 4, "text": "隐藏", "image_ids": []},
    ]
    lines = [*(json.dumps(text, ensure_ascii=False) for text in texts), '{"text_id": 5, "text": "坏']
    (root / "train_texts.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    stored = [f"{id}\t{base64.b64encode(_picture(id)).decode()}" for id in (13, 11, 12)]
    (root / "train_imgs.tsv").write_text("\n".join(stored) + "\n")
    (root / "valid_texts.jsonl").write_text('{"text_id": 9, "text": "绿", "image_ids": [14]}\n', "utf-8")
    (root / "valid_imgs.tsv").write_text("14\tno base64!\n")
    return root


@pytest.mark.parametrize(
    ("name", "layout", "sizes", "rejects"),
    [
        ("coco-cn", coco_cn, {"train": 2, "val": 1, "test": 1}, {"a line in another format": 1}),
        ("flickr8k-cn", flickr8k_cn, {"train": 1, "test": 1}, {"a line in another format": 1}),
        ("flickr30k-cn", flickr30k_cn, {"train": 1, "val": 1, "test": 1}, {"a line in another format": 1}),
        ("flickr30k-cn", flickr30k_cn_files, {}, {"a line in another format": 2}),
        ("flickr30k-cn", chinese_clip, {"train": 3}, {"a line in another format": 1, "unreadable file": 1}),
        ("chinese-clip", chinese_clip, {"train": 3}, {"a line in another format": 1, "unreadable file": 1}),
    ],
)
def test_a_published_layout_is_read_and_what_is_damaged_is_counted(
    name: str, layout: Callable[[Path], Path], sizes: dict[str, int], rejects: dict[str, int], tmp_path: Path
) -> None:
    root = layout(tmp_path / "root")
    records = list(SOURCES[name].read(root, OPTIONS).records)
    assert len(records) == sum(sizes.values()) + sum(rejects.values())
    if not sizes:
        return
    prepare(name, source_path=root, out=tmp_path / "out", write=LENIENT)
    data = shards.open(tmp_path / "out")
    assert {split: len(data.split(split)) for split in data.splits} == sizes
    assert data.manifest.facts["rejects"] == rejects
    known = name != "chinese-clip"
    split = data.split("train")
    assert [("languages" in split.meta(row)) for row in range(len(split))] == [known] * len(split)


def test_captions_keep_the_order_of_their_numbers_and_their_language(tmp_path: Path) -> None:
    root = flickr8k_cn(tmp_path / "f")
    data = SOURCES["flickr8k-cn"].read(root, OPTIONS)
    train, damaged, test = list(data.records)
    assert (train.id, train.captions) == ("1_a.jpg", ["第0句", "第1句", "a dog , 1"])
    assert train.meta["languages"] == [["zh", 2], ["en", 1]] and damaged.problem and test.split == "test"
    assert data.facts == {"unlisted": 0, "evaluation": "languages"} and "zh and en; a part" in data.protocol
    for code, captions in (("en", ["a dog , 1"]), ("zh", ["第0句", "第1句"])):
        chosen = SOURCES["flickr8k-cn"].read(root, SourceOptions(languages=(code,)))
        first = next(iter(chosen.records))
        assert (first.captions, first.meta["languages"]) == (captions, [[code, len(captions)]])
        assert "evaluation" not in chosen.facts


def test_english_captions_of_coco_are_joined(tmp_path: Path) -> None:
    root = coco_cn(tmp_path / "c")
    both = SourceOptions(languages=("en", "zh"))
    with pytest.raises(DataError, match=r"no English captions here.*captions_train2014\.json"):
        SOURCES["coco-cn"].read(root, both)
    (root / "annotations").mkdir()
    for part, names in (("train", COCO_PHOTOS[:2]), ("val", COCO_PHOTOS[2:])):
        images = [{"id": id, "file_name": f"{name}.jpg"} for id, name in enumerate([*names, "unlisted_1"])]
        captions = [{"image_id": image["id"], "caption": "a cat"} for image in images]
        body = json.dumps({"images": images, "annotations": captions})
        (root / "annotations" / f"captions_{part}2014.json").write_text(body)
    first = next(record for record in SOURCES["coco-cn"].read(root, both).records if not record.problem)
    assert first.captions == ["一只猫坐在沙发上 1", "两只猫", "a cat"]
    assert first.meta["languages"] == [["zh", 2], ["en", 1]]
    assert first.media["image"] == root / "train2014" / f"{COCO_PHOTOS[0]}.jpg"
    media_root = SourceOptions(media_root=root / "val2014")
    assert str(next(iter(SOURCES["coco-cn"].read(root, media_root).records)).media["image"]).startswith(str(root))


def test_images_that_share_a_text_are_one_group(tmp_path: Path) -> None:
    data = SOURCES["chinese-clip"].read(chinese_clip(tmp_path / "c"), OPTIONS)
    records = {record.id: record for record in data.records}
    assert records["11"].group == records["12"].group != records["13"].group
    assert records["12"].captions == ["高级感托特包", "红色的包"] and data.facts == {"texts_without_image": 1}
    stored: Any = records["13"].media["image"]
    assert stored() == _picture(13)


@pytest.mark.parametrize(
    ("words", "caption"),
    [
        ("穿:v 黑:a 衣服:n 的:ude1 男人:n", "穿黑衣服的男人"),
        ("穿 Nike Air 鞋 的 人", "穿Nike Air鞋的人"),
        ("10:30 的 钟", "10:30的钟"),
    ],
)
def test_words_of_a_segmented_caption_are_joined(words: str, caption: str) -> None:
    assert joined_words(words) == caption


@pytest.mark.parametrize("name", ["coco-cn", "flickr8k-cn", "flickr30k-cn", "chinese-clip"])
def test_an_empty_folder_and_a_language_that_is_not_there_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path in (None, tmp_path / "gone", tmp_path / "empty"):
        with pytest.raises(DataError, match=r"here.*next: ccaco prepare"):
            SOURCES[name].read(path, OPTIONS)
    layouts = {"coco-cn": coco_cn, "flickr8k-cn": flickr8k_cn, "flickr30k-cn": flickr30k_cn}
    if name in layouts:
        with pytest.raises(DataError, match=r"no captions in fr here.*--language zh"):
            SOURCES[name].read(layouts[name](tmp_path / "root"), SourceOptions(languages=("fr",)))


def test_codes_of_languages() -> None:
    codes = {"EN": "en", "zh_hans_cn": "zh-Hans-CN", "pt-br": "pt-BR", " fil ": "fil", "es-419": "es-419"}
    assert {text: language_code(text) for text in codes} == codes
    for text in ("English", "中文", "", "e", "en--us", "en us"):
        with pytest.raises(DataError, match="language is not a code"):
            language_code(text)
    assert language_runs(["en", "zh", "zh", "en"]) == [["en", 1], ["zh", 2], ["en", 1]]
