"""Accuracy of answers to questions, as VQA measures it (arXiv:1505.00468)."""

from __future__ import annotations

import re
from collections.abc import Sequence

_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {**{word: str(number) for number, word in enumerate(_WORDS)}, "none": "0"}
ARTICLES = frozenset({"a", "an", "the"})
ENOUGH = 3
"""People who must give an answer for it to be fully right."""
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_PERIOD = re.compile(r"\.(?!\d)")
_THOUSANDS = re.compile(r"\d,\d")


def normalise_answer(text: str) -> str:
    """An answer as VQA's evaluation compares it: lower case, without articles and punctuation, numbers as digits.

    A punctuation mark between two words becomes a space. One beside a space, or any in a text with a thousands
    separator, is removed. Apostrophes are removed, where VQA adds those that are missing: "dont" is "don't" either way.
    """
    text = " ".join(text.split())
    normalised = text.replace("'", "")
    for mark in _PUNCTUATION:
        removed = f"{mark} " in text or f" {mark}" in text or _THOUSANDS.search(text)
        normalised = normalised.replace(mark, "" if removed else " ")
    words = _PERIOD.sub("", normalised).lower().split()
    return " ".join(NUMBERS.get(word, word) for word in words if word not in ARTICLES)


def answer_accuracy(answer: str, accepted: Sequence[str], *, voted: bool = False) -> float:
    """How right an answer is, 0..1.

    Args:
        accepted: right answers; with ``voted`` the answer of each person.
        voted: an answer is worth min(n / 3, 1), where n of the other people gave it; the mean over all ways to leave
            one person out.
    """
    normalised = normalise_answer(answer)
    matches = [normalise_answer(text) == normalised for text in accepted]
    if not voted or len(matches) < 2:
        return float(any(matches))
    return sum(min((sum(matches) - match) / ENOUGH, 1.0) for match in matches) / len(matches)
