"""``--explain`` and ``prepare`` know the words of scripts without blanks."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ccaco_cli.core import manifest
from ccaco_cli.core import words as words_module

CAPTION = "一只橘猫在沙发上打盹"
CONTENT = ["橘猫", "沙发", "打盹"]
needs_jieba = pytest.mark.skipif(not find_spec("jieba"), reason="needs jieba (the extra languages)")


def explained(folder: Path) -> list[dict[str, Any]]:
    facts: list[dict[str, Any]] = json.loads((folder / "explain.json").read_text("utf-8"))
    return facts


@needs_jieba
def test_words_of_chinese_captions_are_counted(ccaco: Callable[..., Any], tmp_path: Path) -> None:
    Image.new("RGB", (32, 32), "orange").save(tmp_path / "0.png")
    rows = ["filepath,title,split", f"0.png,{CAPTION},test", "0.png,雨天的街道,test"]
    (tmp_path / "captions.csv").write_text("\n".join(rows), "utf-8")
    done = ccaco("prepare", "table", "--source", tmp_path / "captions.csv", "--out", tmp_path / "zh", "--workers", 0)
    assert done.code == 0
    facts = manifest.open(tmp_path / "zh", kind="dataset").facts
    assert facts["inspection"]["test"]["words"] == {"min": 3, "mean": 4.5, "max": 6}


@needs_jieba
def test_a_chinese_text_has_one_map_for_each_content_word(
    ccaco: Callable[..., Any], index: Path, tmp_path: Path
) -> None:
    done = ccaco("retrieve", CAPTION, "-i", index, "-k", 2, "--explain", tmp_path / "why")
    assert (done.code, done.err) == (0, "")
    for facts in explained(tmp_path / "why"):
        assert [word["word"] for word in facts["words"]] == CONTENT


def test_normal_forms_have_the_same_maps(ccaco: Callable[..., Any], index: Path, tmp_path: Path) -> None:
    texts = ("café crème", "소파 고양이", "Một con mèo đẹp")
    queries = [unicodedata.normalize(form, text) for text in texts for form in ("NFC", "NFD")]
    done = ccaco("retrieve", *queries, "-i", index, "-k", 1, "--explain", tmp_path / "why")
    assert (done.code, done.err) == (0, "")
    words = [facts["words"] for facts in explained(tmp_path / "why")]
    assert words[::2] == words[1::2] and all(words)


@pytest.mark.parametrize("language", ["", "fr", "ja"])
def test_a_stated_language_decides_the_words(
    language: str, ccaco: Callable[..., Any], index: Path, tmp_path: Path
) -> None:
    option = ("--language", language) if language else ()
    done = ccaco("retrieve", "un chat sur la table", "-i", index, "-k", 1, "--explain", tmp_path / "why", *option)
    assert (done.code, done.err) == (0, "")
    expected = {"fr": ["chat", "table"], "ja": ["un", "chat", "sur", "la", "table"]}
    assert [word["word"] for word in explained(tmp_path / "why")[0]["words"]] == expected[language or "fr"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a cat", "--index", "INDEX", "--language", "zh"], "a language is of the words of --explain"),
        (["--pairs", "p.csv", "--explain", "-", "--language", "zh"], "a language is of the words of --explain"),
        (
            ["a cat", "--index", "INDEX", "--explain", "why", "--language", "Chinese"],
            "language is not a code such as en",
        ),
    ],
)
def test_a_language_without_use_or_of_no_code_is_refused(
    arguments: list[str], message: str, ccaco: Callable[..., Any], index: Path, tmp_path: Path
) -> None:
    done = ccaco("retrieve", *(index if a == "INDEX" else tmp_path / a if a == "why" else a for a in arguments))
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1) and message in done.err
    assert not [*tmp_path.iterdir()]


def test_a_missing_dictionary_is_noted_once(
    ccaco: Callable[..., Any], index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(words_module, "find_spec", lambda name: None)
    words_module._segmenter.cache_clear()
    done = ccaco("retrieve", CAPTION, "街道", "-i", index, "-k", 2, "--explain", tmp_path / "why")
    words_module._segmenter.cache_clear()
    assert done.code == 0 and len(explained(tmp_path / "why")) == 4
    assert done.err.count("\n") == 1 and "jieba is not installed; pip install 'ccaco[languages]'" in done.err
