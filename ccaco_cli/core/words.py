"""Words of any script: where they begin and end, which of them name something, and where a line may break.

Chinese, Japanese and Thai are written without blanks. Their words come from a library with a dictionary (the extra
``languages``: jieba, Janome, PyThaiNLP), or from BudouX, whose small model is always there. All other scripts follow
the word boundaries of Unicode (UAX 29).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.util import find_spec

_KANA = "\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f"
_HAN = "\u3005-\u3007\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003fffd"
_HANGUL = "\u1100-\u11ff\u3130-\u318f\uac00-\ud7ff"
_THAI = "\u0e00-\u0e7f"
_SCRIPTS = {
    "ja": _KANA,
    "ko": _HANGUL,
    "zh": _HAN,
    "th": _THAI,
    "ar": "\u0600-\u06ff\u0750-\u077f\ufb50-\ufdff\ufe70-\ufefc",
    "hi": "\u0900-\u097f",
    "he": "\u0590-\u05ff\ufb1d-\ufb4f",
    "el": "\u0370-\u03ff\u1f00-\u1fff",
}
"""Language -> ranges of the script that tells it; the first that occurs decides, so kana before Han."""
WITHOUT_BLANKS = re.compile(f"[{_HAN}{_KANA}{_THAI}]+")
"""A run of characters of a script that is written without blanks."""
_ASCII_WORD = re.compile(r"[A-Za-z0-9]+(?:['-][A-Za-z0-9]+)*")
_SCRIPT_OF = {language: re.compile(f"[{ranges}]") for language, ranges in _SCRIPTS.items()}
_CYRILLIC = re.compile("[\u0400-\u052f]")
_AMOUNT = re.compile(
    "[一二两兩三四五六七八九十几幾数數百千0-9]+[个個只隻条條头頭匹辆輛张張棵栋棟座把本位名群些片朵件杯碗瓶块塊]?"
)
"""A Chinese numeral, with its measure word: 一只, 两个."""
_SURE = 0.7
"""Probability above which a text in Latin letters is not English; none of Flickr8k's 35,000 captions is above it."""
_ENGLISH = """
a an the this that these those some any each every no of in on at by for from to into onto with without and or but nor
so as if than then there here is are was were be been being am do does did has have had it its he him his she her you
they them their we us our your i me my who whom whose which what while where when during about near up down out off
over under above below behind between through across around along against next beside inside underneath
"""
ENGLISH_FUNCTION_WORDS = frozenset(_ENGLISH.split())
"""English words that name nothing that an image could show; lists for text search also hold words such as "left"."""


@dataclass(frozen=True, slots=True)
class Word:
    """A word of a text: ``text[start:end]``, offsets in characters."""

    text: str
    start: int
    end: int


def words(text: str, language: str = "") -> list[Word]:
    """Finds the words of a text, without blanks and punctuation; an emoji is a word.

    Args:
        language: code of ISO 639-1; "" = ``detect_language``. It matters for scripts without blanks only.
    """
    return [
        Word(piece, start, start + len(piece))
        for start, piece in _with_offsets(_pieces(text, language))
        if any(character.isalnum() or unicodedata.category(character) == "So" for character in piece)
    ]


def content_words(text: str, language: str = "") -> list[Word]:
    """The words of a text that name something: no articles, prepositions, pronouns, and no bare amounts in Chinese."""
    language = language or detect_language(text)
    return [word for word in words(text, language) if not is_function_word(word.text, language)]


def is_function_word(word: str, language: str) -> bool:
    """True for a word that names nothing that could be shown; in a language without a list, for none."""
    if language == "zh" and _AMOUNT.fullmatch(word):
        return True
    return unicodedata.normalize("NFC", word).lower() in _function_words(language)


@cache
def _function_words(language: str) -> frozenset[str]:
    if language == "en":
        return ENGLISH_FUNCTION_WORDS
    import stopwordsiso

    return frozenset(stopwordsiso.stopwords(language)) if stopwordsiso.has_lang(language) else frozenset()


@lru_cache(maxsize=4096)
def detect_language(text: str) -> str:
    """Tells the language of a text.

    Returns:
        Code of ISO 639-1: by the script where it decides, else by py3langid (arXiv:1206.5533) if it is sure. A short
        text in Latin letters is English.
    """
    for language, script in _SCRIPT_OF.items():
        if script.search(text):
            return language
    latin = not _CYRILLIC.search(text)
    if latin and len(text.split()) < 3:
        return "en"
    language, probability = _identifier()(text)
    return language if probability > _SURE or not latin else "en"


@cache
def _identifier() -> Callable[[str], tuple[str, float]]:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identify: Callable[[str], tuple[str, float]] = identifier.classify
    return identify


def line_pieces(text: str) -> list[str]:
    """Cuts a text where a line may break (UAX 14); together the pieces are the text.

    Korean breaks at blanks only, and Thai, for which UAX 14 needs a dictionary, between words.
    """
    from uniseg.linebreak import line_break_units

    pieces: list[str] = []
    for unit in line_break_units(text):
        joins = pieces and _SCRIPT_OF["ko"].match(pieces[-1][-1]) and _SCRIPT_OF["ko"].match(unit)
        if joins:
            pieces[-1] += unit
        elif _SCRIPT_OF["th"].search(unit):
            pieces += _pieces(unit, "th")
        else:
            pieces.append(unit)
    return pieces


def _pieces(text: str, language: str) -> list[str]:
    """Words and what lies between them; together the pieces are the text."""
    if text.isascii():
        edges = [edge for match in _ASCII_WORD.finditer(text) for edge in match.span()]
        return [text[start:end] for start, end in zip([0, *edges], [*edges, len(text)], strict=True) if start < end]
    from uniseg.wordbreak import words as unicode_words

    pieces: list[str] = []
    end = 0
    for run in WITHOUT_BLANKS.finditer(text):
        pieces += unicode_words(text[end : run.start()])
        pieces += _segmenter(_language_of_run(run.group(), language or detect_language(text)))(run.group())
        end = run.end()
    return [*pieces, *unicode_words(text[end:])]


def _language_of_run(run: str, language: str) -> str:
    if _SCRIPT_OF["th"].search(run):
        return "th"
    return "ja" if language == "ja" or _SCRIPT_OF["ja"].search(run) else "zh"


def _with_offsets(pieces: list[str]) -> Iterator[tuple[int, str]]:
    start = 0
    for piece in pieces:
        yield start, piece
        start += len(piece)


@cache
def _segmenter(language: str) -> Callable[[str], list[str]]:
    return _SEGMENTERS[language]()


def _chinese() -> Callable[[str], list[str]]:
    if find_spec("jieba"):
        import jieba

        jieba.setLogLevel("ERROR")
        return lambda run: [part for piece in jieba.lcut(run) for part in _without_amount(piece)]
    return _budoux("simplified_chinese")


def _without_amount(piece: str) -> list[str]:
    """Cuts the amount from a name that jieba joins with it: 一个男孩."""
    amount = _AMOUNT.match(piece)
    return [piece[: amount.end()], piece[amount.end() :]] if amount and 1 < amount.end() < len(piece) else [piece]


def _japanese() -> Callable[[str], list[str]]:
    if find_spec("janome"):
        from janome.tokenizer import Tokenizer

        tokenizer = Tokenizer(wakati=True)
        return lambda run: [str(word) for word in tokenizer.tokenize(run)]
    return _budoux("japanese")


def _thai() -> Callable[[str], list[str]]:
    if find_spec("pythainlp"):
        from pythainlp.tokenize import word_tokenize

        return lambda run: word_tokenize(run, engine="newmm")  # type: ignore[no-any-return]
    return _budoux("thai")


def _budoux(language: str) -> Callable[[str], list[str]]:
    import budoux

    parse: Callable[[str], list[str]] = getattr(budoux, f"load_default_{language}_parser")().parse
    return parse


_SEGMENTERS: dict[str, Callable[[], Callable[[str], list[str]]]] = {"zh": _chinese, "ja": _japanese, "th": _thai}
