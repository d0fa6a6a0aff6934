"""Words of any script: where they begin and end, which of them name something, and where a line may break.

Chinese, Japanese and Thai are written without blanks. Their words come from a library with a dictionary (the extra
``languages``: jieba, Janome, PyThaiNLP), or from BudouX, whose small model is always there. All other scripts follow
the word boundaries of Unicode (UAX 29).
"""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.util import find_spec
from itertools import pairwise

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
_SHARED = {"ar": ("fa", "ur", "ps", "ug"), "hi": ("mr", "ne"), "he": ("yi",)}
"""Language of a script -> further languages that are written in it."""
_LETTERS_OF_A_WORD = {"zh": 3, "ja": 3, "ko": 2}
"""Language -> Latin letters that say about as much as one character."""
_INVISIBLE_CHARACTERS = "".join(
    map(chr, (0xAD, 0x61C, *range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x206A), 0xFEFF))
)
"""Soft hyphens, characters of no width and marks of direction."""
_INVISIBLE = re.compile(f"[{_INVISIBLE_CHARACTERS}]")
_BARE = f"[{_HAN}{_KANA}{_THAI}]+"
WITHOUT_BLANKS = re.compile(f"{_BARE}(?:[{_INVISIBLE_CHARACTERS}]+{_BARE})*")
"""A run of characters of a script that is written without blanks."""
_ASCII_WORD = re.compile(r"[A-Za-z0-9]+(?:['-][A-Za-z0-9]+)*")
_SCRIPT_OF = {language: re.compile(f"[{ranges}]") for language, ranges in _SCRIPTS.items()}
_CYRILLIC = re.compile("[\u0400-\u052f]")
_LATIN = re.compile("[A-Za-z\u00c0-\u024f\u0400-\u052f\u1e00-\u1eff]")
_AMOUNT = re.compile(
    "[一二两兩三四五六七八九十几幾数數百千0-9]+"
    "[个個只隻条條头頭匹辆輛张張棵栋棟座把本位名群些片朵件杯碗瓶块塊架艘双雙对對排幅间間盘盤盏盞台颗顆顶頂支根堆串扇束队隊]?"
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
_SHOWN = """
zh: 人 人们 大 小 打 看 拿
es: dos tres cuatro cinco seis siete ocho gran grandes largo
de: mann mensch menschen zwei drei vier fünf sechs groß große großen großer großes gross grosse grossen grosser grosses
de: kleine kleinen kleiner kleines hoch lang lange offen steht geht gehen uhr rechts rund
fr: deux trois quatre cinq six gens personne personnes droite haut debout ouvert ouverte mince
it: due tre quattro cinque sei gente persone grande grandi piccolo piccola casa sinistra destra alto
pt: dois duas três quatro cinco seis pessoas grupo grande grandes noite direita comprido
ru: два две три четыре пять человек люди народ женщина ребенок мать отец лицо глаз голова рука нога плечо дом дверь окно
ru: комната стол улица дорога город вода земля машина книга белый большой маленький старый сидеть стоять лежать идти
ko: 아이 둘 셋 넷 다섯 타다
ar: ثلاثة اربعة عشرة عين
hi: घर दो
"""
"""Language: words that lists for text search leave out, but that name what an image shows."""


@dataclass(frozen=True, slots=True)
class Word:
    """A word of a text: ``text[start:end]``, offsets in characters."""

    text: str
    start: int
    end: int

    @property
    def form(self) -> str:
        """The text by which words are compared: lower case, normal form C, no invisible characters."""
        return word_form(self.text)


def word_form(word: str) -> str:
    """As ``Word.form``."""
    return word.lower() if word.isascii() else unicodedata.normalize("NFC", _INVISIBLE.sub("", word)).lower()


def words(text: str, language: str = "") -> list[Word]:
    """Finds the words of a text, without blanks and punctuation; an emoji is a word.

    Args:
        language: code of BCP 47; "" = ``detect_language``. It matters for scripts without blanks only.
    """
    return [
        Word(piece, start, start + len(piece))
        for start, piece in map(_trimmed, _with_offsets(_pieces(text, language)))
        if any(character.isalnum() or unicodedata.category(character) == "So" for character in piece)
    ]


def content_words(text: str, language: str = "") -> list[Word]:
    """The words of a text that name something: no articles, prepositions, pronouns, and no bare amounts in Chinese."""
    language = _primary(language) or detect_language(text)
    return [word for word in words(text, language) if not is_function_word(word.form, language)]


def is_function_word(form: str, language: str) -> bool:
    """True for a word that names nothing that could be shown; in a language without a list, for none."""
    return bool(language == "zh" and _AMOUNT.fullmatch(form)) or form in _function_words(language)


@cache
def _function_words(language: str) -> frozenset[str]:
    if language == "en":
        return ENGLISH_FUNCTION_WORDS
    import stopwordsiso

    if not stopwordsiso.has_lang(language):
        return frozenset()
    shown = {word for line in _SHOWN.splitlines() if line.startswith(f"{language}:") for word in line.split()}
    return frozenset(stopwordsiso.stopwords(language)) - shown


def _primary(language: str) -> str:
    """The language of a code with a region or a script: zh of zh-Hans-CN."""
    return language.partition("-")[0].lower()


@lru_cache(maxsize=4096)
def detect_language(text: str) -> str:
    """Tells the language of a text.

    Returns:
        Code of ISO 639-1. A script that belongs to one language decides if most of the text is written in it;
        otherwise py3langid (arXiv:1206.5533) decides if it is sure. A short text in Latin letters is English.
    """
    letters = 0 if text.isascii() else sum(map(str.isalpha, text)) - len(_LATIN.findall(text))
    for language, script in _SCRIPT_OF.items() if letters else ():
        if script.search(text) and letters * _LETTERS_OF_A_WORD.get(language, 1) >= len(_LATIN.findall(text)):
            return _one_of(text, language, _SHARED.get(language, ()))
    latin = not _CYRILLIC.search(text)
    if latin and len(text.split()) < 3:
        return "en"
    language, probability = _identifier()(text)
    return language if probability > _SURE or not latin else "en"


def _one_of(text: str, language: str, others: tuple[str, ...]) -> str:
    """The language of a text, among those of one script: another than the first if py3langid is sure."""
    identified, probability = _identifier()(text) if others else (language, 1.0)
    return identified if identified in others and probability > _SURE else language


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
        pieces += _run_pieces(run.group(), _primary(language) or detect_language(text))
        end = run.end()
    return [*pieces, *unicode_words(text[end:])]


def _run_pieces(run: str, language: str) -> list[str]:
    """Words of a run without blanks; invisible characters do not cut words, and follow the character before them."""
    pieces = _segmenter(_language_of_run(run, language))(_INVISIBLE.sub("", run))
    starts = [place for place, character in enumerate(run) if not _INVISIBLE.match(character)]
    edges = [*(starts[start] for start, _ in _with_offsets(pieces)), len(run)]
    return [run[start:end] for start, end in pairwise(edges)]


def _language_of_run(run: str, language: str) -> str:
    if _SCRIPT_OF["th"].search(run):
        return "th"
    return "ja" if language == "ja" or _SCRIPT_OF["ja"].search(run) else "zh"


def _with_offsets(pieces: list[str]) -> Iterator[tuple[int, str]]:
    start = 0
    for piece in pieces:
        yield start, piece
        start += len(piece)


def _trimmed(place: tuple[int, str]) -> tuple[int, str]:
    """A piece and its offset, without invisible characters at its ends."""
    start, piece = place
    if piece.isascii():
        return place
    return start + len(piece) - len(piece.lstrip(_INVISIBLE_CHARACTERS)), piece.strip(_INVISIBLE_CHARACTERS)


def missing_dictionary(text: str, language: str = "") -> str:
    """The package whose dictionary the words of a text need; "" = it is installed, or none is needed."""
    for run in WITHOUT_BLANKS.finditer(text):
        package = _SEGMENTERS[_language_of_run(run.group(), _primary(language) or detect_language(text))][0]
        if not find_spec(package):
            return package
    return ""


@cache
def _segmenter(language: str) -> Callable[[str], list[str]]:
    package, from_dictionary, model = _SEGMENTERS[language]
    return from_dictionary() if find_spec(package) else _budoux(model)


def _chinese() -> Callable[[str], list[str]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pkg_resources
        import jieba

    tokenizer = jieba.Tokenizer()
    # jieba would read a cache in the temporary folder, where any user can put one
    tokenizer.FREQ, tokenizer.total = tokenizer.gen_pfdict(tokenizer.get_dict_file())
    tokenizer.initialized = True
    return lambda run: [part for piece in tokenizer.lcut(run) for part in _without_amount(piece)]


def _without_amount(piece: str) -> list[str]:
    """Cuts the amount from a name that jieba joins with it: 一个男孩."""
    amount = _AMOUNT.match(piece)
    return [piece[: amount.end()], piece[amount.end() :]] if amount and 1 < amount.end() < len(piece) else [piece]


def _japanese() -> Callable[[str], list[str]]:
    from janome.tokenizer import Tokenizer

    tokenizer = Tokenizer(wakati=True)
    return lambda run: [str(word) for word in tokenizer.tokenize(run)]


def _thai() -> Callable[[str], list[str]]:
    from pythainlp.tokenize import word_tokenize

    return lambda run: word_tokenize(run, engine="newmm")  # type: ignore[no-any-return]


def _budoux(language: str) -> Callable[[str], list[str]]:
    import budoux

    parse: Callable[[str], list[str]] = getattr(budoux, f"load_default_{language}_parser")().parse
    return parse


_SEGMENTERS: dict[str, tuple[str, Callable[[], Callable[[str], list[str]]], str]] = {
    "zh": ("jieba", _chinese, "simplified_chinese"),
    "ja": ("janome", _japanese, "japanese"),
    "th": ("pythainlp", _thai, "thai"),
}
"""Language -> package with a dictionary, its segmenter, and the model of BudouX where it is not installed."""
