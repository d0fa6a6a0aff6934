"""One rule for the values of published lists: which are missing, which are texts, and what is refused.

Every source reads its captions with ``captions_from`` and its other fields with ``text_from``, whether the value comes
from CSV, JSON, Parquet, a tar or the hub. A value is never turned into the text of a Python object.
"""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, time
from numbers import Number
from typing import Any

from ccaco_cli.core.data.caption_languages import language_code
from ccaco_cli.core.data.questions import Question
from ccaco_cli.core.data.sources.lists import decode_text
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.manifest import parse_json

MISSING_TEXTS = frozenset({"", "nan", "NaN", "<NA>", "None", "null", "NULL"})
"""How programs write a missing value into a text file."""
CAPTION_KEYS = ("raw", "caption", "captions", "text", "texts", "sentence", "sentences")
"""Keys of the text in an object such as ``{"raw": "a dog", "tokens": ["a", "dog"]}``; the first that exists is used."""
MAX_LIST_TEXT = 1 << 16
"""Characters of the longest string that is parsed as a list."""


def is_missing(value: Any) -> bool:
    """None, NaN, pandas' NA and NaT, and the texts that stand for them (``MISSING_TEXTS``, blank ones too)."""
    if isinstance(value, bytes):
        value = decode_text(value)
    if isinstance(value, str):
        return value.strip() in MISSING_TEXTS
    if isinstance(value, Number):
        return bool(value != value)
    return value is None or type(value).__name__ in ("NAType", "NaTType")


def captions_from(value: Any) -> list[str]:
    """Captions of one field.

    The rule: a string, number or date is one caption. A list is several captions. An object stands for the value of
    the first of its ``CAPTION_KEYS``. A string that spells a list of strings, or an object, as JSON, Python or NumPy
    print it, is read as that list or object.

    Returns:
        The captions in order. Those that are missing within a list are "", so that they are counted; a missing field is
        [].
    Raises:
        DataError: an object without such a key, lists in lists, or a value that has no text.
    """
    if is_missing(value):
        return []
    value = value.tolist() if hasattr(value, "tolist") and not isinstance(value, str | bytes) else value
    if isinstance(value, bytes):
        value = decode_text(value)
    if isinstance(value, str):
        parsed = _parsed(value)
        return [value] if parsed is None else captions_from(parsed)
    if isinstance(value, Mapping):
        return captions_from(_text_of_object(value))
    if isinstance(value, list | tuple):
        return [caption for item in value for caption in _captions_of_item(item)]
    return [_scalar_text(value)]


def text_from(value: Any, name: str) -> str:
    """The one text of a field that is no caption: a path, a split, a label. "" = missing.

    Raises DataError: an object, or several different values.
    """
    values = value.tolist() if hasattr(value, "tolist") and not isinstance(value, str | bytes) else value
    values = list(values) if isinstance(values, list | tuple) else [values]
    if any(isinstance(item, Mapping | list | tuple) for item in values):
        raise DataError(f"{name} is a structure, not a text")
    texts = dict.fromkeys(_scalar_text(item) for item in values if not is_missing(item))
    if len(texts) > 1:
        raise DataError(f"several values of {name} in one row")
    return next(iter(texts), "")


def questions_from(questions: Any, answers: Any) -> list[Question]:
    """The questions of one field, and their accepted answers in another.

    The rule: one question has one text of answers divided by "|", or a list of them. A list of questions has a list
    with an entry for each question: a text or a list. A list may be written as JSON.

    Raises:
        DataError: a question without answers, or other numbers of questions and answers.
    """
    texts = captions_from(questions)
    value = answers.tolist() if hasattr(answers, "tolist") and not isinstance(answers, str | bytes) else answers
    value = _json_list(value)
    nested = isinstance(value, list | tuple) and any(isinstance(_json_list(item), list | tuple) for item in value)
    entries = list(value) if isinstance(value, list | tuple) and (nested or len(texts) > 1) else [value]
    if not texts and is_missing(answers):
        return []
    if len(entries) != len(texts):
        raise DataError("questions and answers of other numbers")
    accepted = [tuple(filter(None, map(str.strip, _accepted(_json_list(entry))))) for entry in entries]
    if not all(accepted) or not all(texts):
        raise DataError("a question without answers")
    return [Question(text, texts_of) for text, texts_of in zip(texts, accepted, strict=True)]


def _json_list(value: Any) -> Any:
    """The list that a text spells as JSON, or the value as it is."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return parse_json(value)
        except (ValueError, RecursionError):
            return value
    return value


def _accepted(value: Any) -> list[str]:
    """The accepted answers of one question."""
    if isinstance(value, list | tuple):
        return ["" if is_missing(item) else _scalar_text(item) for item in value]
    return [] if is_missing(value) else _scalar_text(value).split("|")


@dataclass
class FieldReader:
    """Reads the fields of one sample; ``problem`` is the reason why the first unusable one cannot be read."""

    problem: str = ""

    def captions(self, value: Any) -> list[str]:
        """``captions_from``; [] = it cannot be read."""
        try:
            return captions_from(value)
        except DataError as error:
            self.refuse(error.what)
            return []

    def text(self, value: Any, name: str) -> str:
        """``text_from``; "" = it cannot be read."""
        try:
            return text_from(value, name)
        except DataError as error:
            self.refuse(error.what)
            return ""

    def language(self, value: Any, captions: Iterable[str]) -> str:
        """The code of the language of some captions (``language_code``); "" = it cannot be read, or is missing."""
        text = self.text(value, "language")
        if not text:
            if any(caption.strip() for caption in captions):
                self.refuse("a caption without a language")
            return ""
        try:
            return language_code(text)
        except DataError as error:
            self.refuse(error.what)
            return ""

    def questions(self, cells: Iterable[tuple[Any, Any]]) -> list[Question]:
        """The questions of pairs of a field of questions and one of answers (``questions_from``)."""
        try:
            return [question for texts, answers in cells for question in questions_from(texts, answers)]
        except DataError as error:
            self.refuse(error.what)
            return []

    def refuse(self, reason: str) -> None:
        """Refuses the sample, unless it is refused already."""
        self.problem = self.problem or reason


def _captions_of_item(item: Any) -> list[str]:
    if is_missing(item):
        return [""]
    if isinstance(item, Mapping):
        return captions_from(_text_of_object(item)) or [""]
    return [_scalar_text(item)]


def _text_of_object(value: Mapping[Any, Any]) -> Any:
    key = next((key for key in CAPTION_KEYS if key in value), None)
    if key is None:
        raise DataError(
            "caption is an object without a known key",
            where=", ".join(map(str, list(value)[:8])),
            expected=f"one of {', '.join(CAPTION_KEYS)}",
        )
    return value[key]


def _scalar_text(value: Any) -> str:
    if isinstance(value, list | tuple):
        raise DataError("caption is a list in a list", expected="a list of texts")
    if isinstance(value, bytes):
        return decode_text(value)
    if isinstance(value, str | Number | date | time):
        return str(value)
    raise DataError("field is not a text", where=type(value).__name__)


def _parsed(text: str) -> list[Any] | Mapping[Any, Any] | None:
    """The list of texts, or the object, that a string spells; None = it is an ordinary text such as "[sic]"."""
    body = text.strip()
    if len(body) > MAX_LIST_TEXT or (body[:1], body[-1:]) not in (("[", "]"), ("{", "}")):
        return None
    for parse in (parse_json, _numpy_list, ast.literal_eval):
        try:
            value = parse(body)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
        if isinstance(value, Mapping):
            return value
        if isinstance(value, list):
            texts = all(isinstance(item, str | Mapping | list) or is_missing(item) for item in value)
            return value if texts else None
    return None


def _numpy_list(text: str) -> list[str]:
    """The strings of ``['a dog' 'two dogs']``: Python would join strings that no comma separates.

    Raises ValueError: not printed by NumPy; DataError: it was cut short.
    """
    try:
        tokens = [t for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.string.strip()]
    except (tokenize.TokenError, SyntaxError):
        raise ValueError("not a list") from None
    inside = tokens[1:-1]
    if any(token.string == "..." for token in inside) and any(token.type == tokenize.STRING for token in inside):
        raise DataError("caption is a list that was cut short", where=text[:60])
    if len(inside) < 2 or any(token.type != tokenize.STRING for token in inside):
        raise ValueError("not printed by NumPy")
    return [str(ast.literal_eval(token.string)) for token in inside]
