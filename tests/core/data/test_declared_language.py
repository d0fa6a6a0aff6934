"""``prepare --language`` where the source itself knows no languages."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from ccaco_cli.core.data import shards
from ccaco_cli.core.data.preparation import prepare
from ccaco_cli.core.data.shards import PairData, WriteOptions
from ccaco_cli.core.data.sources.source import SourceOptions
from ccaco_cli.core.errors import DataError


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of photos, and a table of their captions."""
    for number, name in enumerate(("猫", "狗")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (32, 32), (90 * number, 50, 80)).save(tmp_path / "photos" / name / "1.png")
    rows = ["filepath,title", "猫/1.png,一只橘猫", "猫/1.png,橘猫在打盹", "狗/1.png,一只狗"]
    (tmp_path / "photos" / "captions.csv").write_text("\n".join(rows), encoding="utf-8")
    return tmp_path / "photos"


def prepared(name: str, path: Path | None, out: Path, *languages: str) -> PairData:
    options = SourceOptions(languages=languages, size=32, limit=2)
    prepare(name, source_path=path, out=out, options=options, write=WriteOptions(workers=0))
    return shards.open(out)


@pytest.mark.parametrize("name", ["table", "imagefolder"])
def test_all_captions_are_in_the_language_that_is_named(name: str, photos: Path, tmp_path: Path) -> None:
    path = photos / "captions.csv" if name == "table" else photos
    split = prepared(name, path, tmp_path / "zh", "zh_cn").split("train")
    for row in range(len(split)):
        captions = int((split.caption_row == row).sum())
        assert split.meta(row)["languages"] == [["zh-CN", captions]]
    plain = prepared(name, path, tmp_path / "plain").split("train")
    assert not any("languages" in plain.meta(row) for row in range(len(plain)))


def test_languages_that_have_no_meaning_are_refused(photos: Path, tmp_path: Path) -> None:
    for languages, message in (
        (("zh", "en"), "the language of each caption is not known here"),
        (("Chinese simplified",), "language is not a code"),
    ):
        with pytest.raises(DataError, match=message):
            prepared("table", photos / "captions.csv", tmp_path / "out", *languages)
        assert not (tmp_path / "out" / "manifest.json").exists()
    with pytest.raises(DataError, match="bounces has no captions"):
        prepared("bounces", None, tmp_path / "clips", "zh")
    assert not (tmp_path / "clips").exists()


def test_a_language_that_is_named_twice_is_one(tmp_path: Path) -> None:
    split = prepared("scenes", None, tmp_path / "scenes", "en", "es", "EN").split("train")
    assert split.meta(0)["languages"] == [["en", 5], ["es", 5]] and split.meta(0)["parallel_captions"] is True
    english = prepared("scenes", None, tmp_path / "en", "en").split("train")
    assert english.meta(0)["languages"] == [["en", 5]] and "parallel_captions" not in english.meta(0)
