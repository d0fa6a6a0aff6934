"""Escapes untrusted text (captions, file names) for the terminal and for spreadsheets."""

from __future__ import annotations

import re

_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
"""Control characters except tab and line end, marks that change the writing direction, separators of lines, and
unpaired surrogates."""
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def printable(text: str) -> str:
    """Text for a terminal: control characters and marks of writing direction are shown as escapes."""
    return _CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def cell(text: str) -> str:
    """Text for a spreadsheet: formulas are quoted. Names of arms, such as -cross and +mmd, are no formulas."""
    return "'" + text if text.startswith(_FORMULA) and not re.fullmatch(r"[-+][a-z][\w-]*", text) else text
