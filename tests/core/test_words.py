"""Words of many scripts: boundaries, content words, languages, and where lines may break."""

from __future__ import annotations

import unicodedata
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest

from ccaco_cli.core import words as words_module
from ccaco_cli.core.words import content_words, detect_language, line_pieces, missing_dictionary, words

CAPTIONS = {
    "en": ("The dog's ball, a T-shirt", "The dog's ball a T-shirt", "dog's ball T-shirt"),
    "es": ("un perro rojo duerme en el sofá", "un perro rojo duerme en el sofá", "perro rojo duerme sofá"),
    "ko": ("소파에서 자는 주황색 고양이", "소파에서 자는 주황색 고양이", "소파에서 자는 주황색 고양이"),
    "ar": ("قطة برتقالية على الأريكة", "قطة برتقالية على الأريكة", "قطة برتقالية الأريكة"),
    "hi": ("सोफे पर सोती बिल्ली।", "सोफे पर सोती बिल्ली", "सोफे सोती बिल्ली"),
    "he": ("חתול ישן על הספה", "חתול ישן על הספה", "חתול ישן הספה"),
    "ru": ("Собака играет с мячом в парке", "Собака играет с мячом в парке", "Собака играет мячом парке"),
}
"""Language -> caption, its words, and those that name something."""
SAMPLES = [caption for caption, _, _ in CAPTIONS.values()] + [
    "一只橘猫在沙发上打盹",
    "ソファの上で居眠りする猫",
    "แมวสีส้มนอนหลับบนโซฟา",
    "🐱 on 👨‍👩‍👧!",
    "一个男孩穿着 T-shirt 在跑步",
    "a\u200bb \u202eevil \u0378\U000e0fff",
    "",
]


@pytest.mark.parametrize("language", CAPTIONS)
def test_words_between_blanks(language: str) -> None:
    caption, expected, content = CAPTIONS[language]
    assert detect_language(caption) == language
    assert [word.text for word in words(caption)] == expected.split()
    assert [word.text for word in content_words(caption)] == content.split()


@pytest.mark.parametrize(
    ("library", "language", "caption", "content"),
    [
        ("jieba", "zh", "一只橘猫在沙发上打盹", ["橘猫", "沙发", "打盹"]),
        ("jieba", "zh", "一个男孩穿着红色的衣服", ["男孩", "穿着", "红色", "衣服"]),
        ("jieba", "zh", "两个人和一架大飞机", ["人", "大", "飞机"]),
        ("janome", "ja", "ソファの上で居眠りする猫", ["ソファ", "上", "居眠り", "猫"]),
        ("pythainlp", "th", "แมวสีส้มนอนหลับบนโซฟา", ["แมว", "สีส้ม", "นอนหลับ", "บน", "โซฟา"]),
    ],
)
def test_words_without_blanks(library: str, language: str, caption: str, content: list[str]) -> None:
    if not find_spec(library):
        pytest.skip(f"needs {library} (the extra languages)")
    assert detect_language(caption) == language
    assert [word.text for word in content_words(caption)] == content


@pytest.mark.parametrize(
    ("caption", "word"),
    [("一只橘猫在沙发上打盹", "橘猫"), ("ソファの上で居眠りする猫", "ソファの"), ("แมวสีส้มนอนหลับบนโซฟา", "แมว")],
)
def test_words_without_blanks_need_no_dictionary(caption: str, word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words_module, "find_spec", lambda name: None)
    words_module._segmenter.cache_clear()
    cut = [word.text for word in words(caption)]
    words_module._segmenter.cache_clear()
    assert word in cut and len(cut) > 2


@pytest.mark.parametrize("text", SAMPLES)
def test_offsets_and_line_pieces_cover_the_text(text: str) -> None:
    parts = words(text)
    assert [text[word.start : word.end] for word in parts] == [word.text for word in parts]
    assert all(a.end <= b.start for a, b in pairwise(parts))
    assert "".join(line_pieces(text)) == text


def test_an_emoji_is_a_word() -> None:
    assert [word.text for word in words("🐱 on 👨‍👩‍👧!")] == ["🐱", "on", "👨‍👩‍👧"]


def test_normal_forms_have_the_same_words() -> None:
    for caption in ("café crème brûlée", "가나다 라마", "Việt Nam đẹp"):
        composed, decomposed = (words(unicodedata.normalize(form, caption)) for form in ("NFC", "NFD"))
        assert [unicodedata.normalize("NFC", word.text) for word in decomposed] == [word.text for word in composed]


def test_short_latin_texts_are_english() -> None:
    for text in ("cat", "red cat", "two dogs play", "a man in a tuxedo at a café", "12", ""):
        assert detect_language(text) == "en", text


def test_lines_break_where_the_script_allows_it() -> None:
    assert line_pieces("一只橘猫，在沙发上") == ["一", "只", "橘", "猫，", "在", "沙", "发", "上"]
    assert line_pieces("소파에서 자는 고양이") == ["소파에서 ", "자는 ", "고양이"]
    assert line_pieces("an orange cat") == ["an ", "orange ", "cat"]


def test_invisible_characters_do_not_cut_words() -> None:
    for mark in ("\u200b", "\u200d", "\u2060", "\u00ad", "\u202e", "\u2066", "\ufeff"):
        assert [word.form for word in words(f"{mark}橘{mark}猫{mark}")] == [word.text for word in words("橘猫")]
        for language, caption, content in (("en", "a cat on it", ["cat"]), ("ru", "кот и мяч", ["кот", "мяч"])):
            marked = " ".join(f"{mark}{word}{mark}" for word in caption.split())
            assert [word.text for word in content_words(marked, language)] == content


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("a sign that says 出口", "en"),
        ("the letter π on a board", "en"),
        ("穿着Nike T-shirt的男孩", "zh"),
        ("TシャツとJeansの人", "ja"),
        ("گربه نارنجی روی مبل خوابیده است", "fa"),
        ("ایک بلی صوفے پر سو رہی ہے", "ur"),
        ("एक मांजर सोफ्यावर झोपली आहे", "mr"),
    ],
)
def test_the_script_of_most_of_a_text_decides(text: str, language: str) -> None:
    assert detect_language(text) == language


def test_a_code_with_a_region_has_the_words_of_its_language() -> None:
    for code, caption in (("zh-CN", "猫在沙发上"), ("pt-BR", "um gato no sofá"), ("ja-JP", "猫が寝る")):
        assert content_words(caption, code) == content_words(caption, code[:2]) != words(caption)


@pytest.mark.parametrize(
    ("language", "text", "content"),
    [
        ("es", "los dos perros grandes", "dos perros grandes"),
        ("de", "ein kleiner Mensch steht", "kleiner Mensch steht"),
        ("ru", "человек и его большой дом", "человек большой дом"),
    ],
)
def test_words_that_images_show_stay(language: str, text: str, content: str) -> None:
    assert [word.text for word in content_words(text, language)] == content.split()


def test_a_missing_dictionary_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words_module, "find_spec", lambda name: None)
    texts = ("一只橘猫", "居眠りする猫", "แมวสีส้ม", "an orange cat", "소파에서")
    assert [missing_dictionary(text) for text in texts] == ["jieba", "janome", "pythainlp", "", ""]
    assert missing_dictionary("猫", "ja") == "janome"


def test_jieba_reads_no_cache_of_the_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("jieba", reason="needs jieba (the extra languages)")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    words_module._segmenter.cache_clear()
    assert len(words("一只橘猫在沙发上打盹")) > 4
    assert not [*tmp_path.iterdir()]
