"""Text of strangers (captions, file names) made harmless for where it is shown."""

from __future__ import annotations

import re

_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
"""Control characters but for tab and line end, marks that turn the direction of writing, and halves of characters."""
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def printable(text: str) -> str:
    """Text for a terminal: what would move its cursor, change its colours or turn its lines around is shown as an escape."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def cell(text: str) -> str:
    """Text for a spreadsheet: what it would run as a formula is quoted (names of our arms, such as -cross and +mmd, are no formulas)."""
    return "'" + text if text.startswith(_FORMULA) and not re.fullmatch(r"[-+][a-z][\w-]*", text) else text
