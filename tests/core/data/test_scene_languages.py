"""Captions of the generated scenes in several languages: agreement, measure words, twins, and English as it was."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest

from ccaco_cli.core.data import scene_records, scene_words_zh, scenes
from ccaco_cli.core.data.scene_languages import LANGUAGES
from ccaco_cli.core.data.scene_words import Wording
from ccaco_cli.core.data.sources.scenes import SOURCE
from ccaco_cli.core.data.sources.source import SourceOptions
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.words import detect_language

COUNTS = {"train": {"colour": 40}, "test": {"colour": 40}}


def sentences(code: str, count: int) -> list[tuple[Any, str]]:
    """(scene, caption) of many scenes and wordings; every third caption has no relation."""
    rng, language, pairs = random.Random(3), LANGUAGES[code], []
    for number in range(count):
        scene = scenes.compose(rng, rng.choice(list(scenes.KINDS)), allow_held_out=True)[-1]
        wording = Wording.draw(rng)
        if number % 3:
            pairs.append((scene, language.full(wording, scene.objects, scene.relation, scene.place)))
        else:
            named = rng.sample(scene.objects, rng.choice((1, 1, 2)))
            pairs.append((scene, language.partial(wording, named, scene.place)))
    return pairs


def records(*languages: str) -> list[Any]:
    return list(scene_records.records("s", COUNTS, seed=0, size=64, limit=None, languages=languages))


@pytest.mark.parametrize("code", ["zh", "es"])
def test_sentences_vary(code: str) -> None:
    assert len({caption for _, caption in sentences(code, 3000)}) > 2000


def test_chinese_nouns_have_their_measure_words() -> None:
    measure = {noun: m for m, nouns in scene_words_zh.NOUNS.values() for noun in (*nouns, scene_words_zh.ORANGE_CAT)}
    measure[scene_words_zh.ORANGE_CAT] = "只"
    pattern = re.compile(f"一(.)[^一]*?({'|'.join(sorted(measure, key=len, reverse=True))})")
    for _, caption in sentences("zh", 2000):
        assert not re.search("[a-zA-Z*{}]", caption), caption
        pairs = pattern.findall(caption.removeprefix("一张有"))
        assert pairs and all(measure[noun] == m for m, noun in pairs), caption
        assert detect_language(caption) == "zh"


def test_spanish_adjectives_agree() -> None:
    for _, caption in sentences("es", 2000):
        assert "*" not in caption
        for phrase in re.findall(r"\b(una?) (\w+)((?: \w+)?)", caption):
            article, noun, colour = phrase
            if noun in ("pelota", "bola", "caja", "casa"):
                assert article == "una" and not colour.endswith("o"), caption
            elif noun in ("gato", "minino", "perro", "can", "pájaro", "pez", "coche", "auto", "sofá", "diván", "árbol"):
                assert article == "un" and not re.fullmatch(r" (roja|amarilla|morada|dorada|anaranjada)", colour), (
                    caption
                )


@pytest.mark.parametrize("code", ["zh", "es"])
def test_twins_differ_in_order_only(code: str) -> None:
    for record in records(code):
        for true, false in record.meta["binding"]:
            assert true != false
            if code == "zh":
                assert sorted(true.replace("的", "")) == sorted(false.replace("的", "")), (true, false)


def test_languages_say_the_same_of_the_same_pictures() -> None:
    mixed, english, chinese = records("en", "zh"), records("en"), records("zh")
    for both, first, second in zip(mixed, english, chinese, strict=True):
        assert both.id == first.id == second.id
        assert tuple(both.captions) == (*first.captions, *second.captions)
        assert both.meta["languages"] == [["en", 5], ["zh", 5]] and second.meta["languages"] == [["zh", 5]]
        assert both.meta["binding"] == first.meta["binding"] + second.meta["binding"]
        assert both.meta["facts"] == first.meta["facts"] == second.meta["facts"]
        assert "questions" not in second.meta and "languages" not in first.meta


def test_an_orange_cat_has_its_name() -> None:
    captions = [caption for record in records("zh") for caption in record.captions]
    assert any(re.search(r"一只\w*橘猫", caption) for caption in captions)
    assert not any("橘猫" in caption for record in records("zh") for pair in record.meta["binding"] for caption in pair)


def test_an_unknown_language_is_refused() -> None:
    with pytest.raises(DataError, match="no captions in 'fr'"):
        SOURCE.read(None, SourceOptions(languages=("en", "fr")))
    several = SOURCE.read(None, SourceOptions(languages=("en", "zh"), limit=1))
    assert several.facts["evaluation"] == "languages" and "in en and zh" in several.protocol
