"""Where a text may be cut: not within a character, nor within several that are read as one."""

from __future__ import annotations


def whole_end(text: str, kept_end: int, first_cut: int) -> int | None:
    """Finds where a text that is too long must end, so that no character is cut (grapheme clusters, UAX 29).

    A token can hold a part of a character (byte pairs), and an emoji or a syllable can be several tokens.

    Args:
        kept_end: of the last token that is kept, the offset in characters behind it.
        first_cut: of the first token that is cut, the offset of its first character.
    Returns:
        Offset in characters; None = the text is cut between two characters, or its first one is already too long.
    """
    if text[: first_cut + 1].isascii():
        return None
    import regex

    places = [match.end() for match in regex.finditer(r"\X", text[: first_cut + 1])]
    end = max((place for place in places if place <= first_cut), default=0) or first_cut
    return end if 0 < end < kept_end else None
