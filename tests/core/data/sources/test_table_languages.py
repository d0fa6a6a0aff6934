"""Tables with a column of languages: one row is one caption."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from ccaco_cli.core.data import shards
from ccaco_cli.core.data.preparation import prepare
from ccaco_cli.core.data.shards import WriteOptions
from ccaco_cli.core.data.sources.source import SourceData, SourceOptions
from ccaco_cli.core.data.sources.table import SOURCE
from ccaco_cli.core.errors import DataError

ROWS = pd.DataFrame(
    [
        ("a.jpg", "a cat", "en"),
        ("b.jpg", "一只狗", "zh"),
        ("a.jpg", "一只猫", "ZH"),
        ("a.jpg", "", "zh"),
        ("a.jpg", "the cat", "en"),
        ("b.jpg", "un perro", "es"),
        ("c.jpg", "un árbol", "es"),
    ],
    columns=["filepath", "title", "language"],
)


def read(folder: Path, table: pd.DataFrame, kind: str = "csv", **options: Any) -> SourceData:
    path = folder / f"t.{kind}"
    if kind == "csv":
        table.to_csv(path, index=False)
    elif kind == "jsonl":
        table.to_json(path, orient="records", lines=True)
    else:
        table.to_parquet(path)
    return SOURCE.read(path, SourceOptions(**options))


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_each_caption_has_its_language(kind: str, tmp_path: Path) -> None:
    data = read(tmp_path, ROWS, kind)
    a, b, c = data.records
    assert a.captions == ["a cat", "一只猫", "", "the cat"] and not a.problem
    assert a.meta == {"languages": [["en", 1], ["zh", 2], ["en", 1]]}
    assert b.meta["languages"] == [["zh", 1], ["es", 1]]
    assert c.meta == {"languages": [["es", 1]], "language": "es"}
    assert data.facts["evaluation"] == "languages"


def test_a_blank_caption_takes_its_language_along(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        Image.effect_noise((24, 24), 90).save(tmp_path / name)
    read(tmp_path, ROWS.assign(split="test"))
    prepare("table", source_path=tmp_path / "t.csv", out=tmp_path / "out", write=WriteOptions(workers=0))
    split = shards.open(tmp_path / "out").split("test")
    assert split.captions[:3] == ["a cat", "一只猫", "the cat"]
    assert split.meta(0)["languages"] == [["en", 1], ["zh", 1], ["en", 1]]


def test_chosen_languages_are_loaded(tmp_path: Path) -> None:
    data = read(tmp_path, ROWS, languages=("zh",))
    assert {record.id: record.captions for record in data.records} == {"a.jpg": ["一只猫", ""], "b.jpg": ["一只狗"]}
    assert "evaluation" not in data.facts and data.facts["rows"] == 3
    with pytest.raises(DataError, match=r"no captions in fr here.*--language en or es or zh"):
        read(tmp_path, ROWS, languages=("fr",))


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("English", "language is not a code such as en"),
        ("中文", "language is not a code such as en"),
        ("", "a caption without a language"),
        (None, "a caption without a language"),
    ],
)
@pytest.mark.parametrize("options", [{}, {"languages": ("zh",)}])
def test_a_wrong_or_missing_code_is_a_reject(code: str | None, problem: str, options: Any, tmp_path: Path) -> None:
    table = ROWS.copy()
    table.loc[6, "language"] = code
    problems = {record.id: record.problem for record in read(tmp_path, table, **options).records}
    assert problems == {"a.jpg": "", "b.jpg": "", "c.jpg": problem}


def test_columns_that_are_no_languages_of_captions(tmp_path: Path) -> None:
    (first, *_) = read(tmp_path, ROWS[["filepath", "language"]].iloc[5:]).records  # no captions: a further column
    assert first.meta == {"language": "es"}
    (first, *_) = read(tmp_path, ROWS.assign(language="")).records
    assert "languages" not in first.meta
    with pytest.raises(DataError, match="languages without captions"):
        read(tmp_path, ROWS[["filepath", "language"]], columns={"language": "language"})
    questions = ROWS.assign(question="what is this?", answers="cat|dog")
    (first, *_) = read(tmp_path, questions).records
    assert "languages" not in first.meta
    with pytest.raises(DataError, match="languages of questions"):
        read(tmp_path, questions, columns={"language": "language"})
    with pytest.raises(DataError, match=r"holds list<.*>, not codes"):
        read(tmp_path, ROWS.assign(language=[["en"]] * len(ROWS)), "parquet")
    (first, *_) = read(tmp_path, ROWS[["filepath", "title"]].assign(languages="x", choices="y")).records
    assert first.meta == {"languages_": "x", "choices_": "y"}  # names that sources use for their captions
