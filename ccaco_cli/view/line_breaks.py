"""Breaks texts of any script into lines (UAX 14), for terminals and pictures."""

from __future__ import annotations

import textwrap

PLACEHOLDER = " [...]"
"""Ends a text that was cut."""


def wrap(
    text: str, width: int, *, indent: str = "", max_lines: int | None = None, break_long_words: bool = True
) -> list[str]:
    """Breaks a text into lines.

    Args:
        width: of a line in characters of a terminal, of which an East Asian character takes two.
        indent: begins every line but the first.
        max_lines: the last of so many lines ends with ``PLACEHOLDER`` where the text is longer.
        break_long_words: False leaves a word that is longer than a line in one piece.
    """
    if text.isascii():
        return textwrap.wrap(
            text,
            width,
            subsequent_indent=indent,
            max_lines=max_lines,
            break_long_words=break_long_words,
            break_on_hyphens=break_long_words,
        )
    lines = [""] if text.split() else []
    for piece in _pieces(" ".join(text.split()), width - len(indent) if break_long_words else None):
        if lines[-1].strip() and cell_width((lines[-1] + piece).rstrip()) > width:
            lines.append(indent)
        lines[-1] += piece
    lines = [line.rstrip() for line in lines]
    if max_lines is None or len(lines) <= max_lines:
        return lines
    return [*lines[: max_lines - 1], _shortened(lines[max_lines - 1], width - len(PLACEHOLDER)) + PLACEHOLDER]


def longest_piece(text: str) -> int:
    """Width of the longest part of a text that no line break may cut, in characters of a terminal."""
    if text.isascii():
        return max(map(len, text.split()), default=0)
    from ccaco_cli.core.words import line_pieces

    return max((cell_width(piece.rstrip()) for piece in line_pieces(text)), default=0)


def cell_width(text: str) -> int:
    """Terminal characters of a text (an East Asian character takes two)."""
    from rich.cells import cell_len

    return cell_len(text)


def _pieces(text: str, width: int | None) -> list[str]:
    """Parts between which a line may break; with a width, parts that are longer are cut into visible characters."""
    from uniseg.graphemecluster import grapheme_clusters

    from ccaco_cli.core.words import line_pieces

    pieces: list[str] = []
    for piece in line_pieces(text):
        is_long = width is not None and cell_width(piece.rstrip()) > width
        pieces += grapheme_clusters(piece) if is_long else [piece]
    return pieces


def _shortened(line: str, width: int) -> str:
    from uniseg.graphemecluster import grapheme_clusters

    clusters = list(grapheme_clusters(line))
    while clusters and cell_width("".join(clusters)) > width:
        clusters.pop()
    return "".join(clusters).rstrip()
