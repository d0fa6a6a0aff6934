"""Fonts of drawn texts: each text gets fonts that have its characters, installed ones first, then packaged ones."""

from __future__ import annotations

import re
import unicodedata
import warnings
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ccaco_cli.view.line_breaks import wrap
from ccaco_cli.view.streams import write_message

if TYPE_CHECKING:
    from matplotlib.font_manager import FontEntry

PACKAGES = ("manimgx_fonts", "noto_cjk_sans_otc")
"""Packages of the extra ``fonts``: Noto Sans of many scripts with Noto Emoji, and Noto Sans CJK."""
SELECTABLE = {"svg.fonttype": "none", "pdf.fonttype": 42}
"""Settings of matplotlib with which the text of PDF and SVG files stays text."""
_REGIONS = {"zh": "SC", "ja": "JP", "ko": "KR"}
"""Language -> end of the names of fonts with its form of the Chinese characters; of others, that of ``zh``."""
_UNDRAWABLE = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters but the line end, and unpaired surrogates."""
_DROPPED = re.compile("[\ufe00-\ufe0f\ufeff\U000e0100-\U000e01ef]")
"""Selectors of the form of a character and the zero-width mark: matplotlib cannot place them in PDF files."""
_INVISIBLE = ("Cf", "Zs", "Zl", "Zp", "Cc", "Cs")
"""Categories of characters that need no glyph."""
_REGULAR = (400, "normal", "regular", "book")


def save(figure: Any, target: Any, **options: Any) -> None:
    """Writes a figure in fonts that have its characters, and closes it. Text of PDF and SVG files stays text.

    One line on stderr says what to install if there is no font for a character; SVG files take fonts of the viewer.

    Args:
        target: path or binary stream.
        options: of ``Figure.savefig``.
    """
    import matplotlib.pyplot as plt

    missing = set_fonts(figure)
    is_svg = "svg" in (options.get("format"), Path(str(target)).suffix[1:].lower())
    with plt.rc_context(SELECTABLE), warnings.catch_warnings():
        if missing:
            warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font", UserWarning)
        figure.savefig(target, **options)
    plt.close(figure)
    if missing and not is_svg:
        _note(any(unicodedata.category(character) not in ("Cn", "Co") for character in missing))


def set_fonts(figure: Any) -> set[str]:
    """Gives each text of a figure the fonts that it needs after its own, and escapes control characters.

    Returns:
        The characters that no font has.
    """
    from matplotlib.text import Text

    missing: set[str] = set()
    for text in figure.findobj(Text):
        content = _UNDRAWABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text.get_text())
        content = _DROPPED.sub("", content)
        if content != text.get_text():
            text.set_text(content)
        if content.isascii():
            continue
        names, language, without = _fallback(content, text.get_fontproperties())
        missing |= without
        if names:
            text.set_fontfamily(names)
            text.set_fontweight("normal")  # these fonts have one weight, and matplotlib reports that it takes another
            text.set_language(language or None)
    return missing


def paragraph(text: str, width: int, **options: Any) -> str:
    """A text in lines (``line_breaks.wrap``) of one writing direction, also where a line begins with another script."""
    lines = wrap(text, width, **options)
    if is_right_to_left(text):
        lines = [f"\u2067{line}\u2069" for line in lines]  # an isolate from right to left
    return "\n".join(lines)


def is_right_to_left(text: str) -> bool:
    """True if the first letter that has a direction is written from right to left (UAX 9, rules P2 and P3)."""
    directions = (unicodedata.bidirectional(character) for character in text)
    return next((direction for direction in directions if direction in ("L", "R", "AL")), "L") != "L"


def _fallback(text: str, properties: Any) -> tuple[list[str], str, set[str]]:
    """Fonts for the characters that the font of a text lacks.

    Returns:
        Families, the font of the text first ([] = it needs no other); language; the characters that no font has.
    """
    from matplotlib.font_manager import fontManager
    from matplotlib.ft2font import FT2Font

    path = fontManager.findfont(properties)
    visible = {c for c in unicodedata.normalize("NFC", text) if unicodedata.category(c) not in _INVISIBLE}
    missing = visible - _characters(path.path, path.face_index)
    if not missing:
        return [], "", missing
    from ccaco_cli.core.words import detect_language

    language = detect_language(text)
    names = [FT2Font(path.path, face_index=path.face_index).family_name]
    for is_packaged in (False, True):
        entries = _ordered(is_packaged, _REGIONS.get(language, "SC")) if missing else []
        while missing and entries:
            covering = (entry for entry in entries if missing <= _characters(entry.fname, entry.index))
            best = next(covering, None) or max(entries, key=lambda entry: len(missing & _entry_characters(entry)))
            if not missing & _entry_characters(best):
                break
            names.append(best.name)
            missing = missing - _entry_characters(best)
    return names if len(names) > 1 else [], language, missing


@cache
def _ordered(is_packaged: bool, region: str) -> list[FontEntry]:
    """One upright font of normal weight of each family: those of the region first, then Noto Sans, then sans-serif."""
    entries = _packaged() if is_packaged else _installed()
    return sorted(
        {entry.name: entry for entry in entries if entry.style == "normal" and entry.weight in _REGULAR}.values(),
        key=lambda e: (not e.name.endswith(region), "Noto Sans" not in e.name, "Sans" not in e.name, e.name),
    )


@cache
def _installed() -> list[FontEntry]:
    """The fonts of this machine; those whose glyphs are coloured pictures cannot be drawn."""
    from matplotlib.font_manager import fontManager

    files = {path for folder in _package_folders() for path in map(str, folder.glob("*"))}
    return [e for e in fontManager.ttflist if "Color" not in e.name and "Last" not in e.name and e.fname not in files]


@cache
def _packaged() -> list[FontEntry]:
    """The fonts of ``PACKAGES``, which matplotlib knows from now on."""
    from matplotlib.font_manager import fontManager

    before = len(fontManager.ttflist)
    for folder in _package_folders():
        for path in sorted([*folder.glob("*.ttf"), *folder.glob("*.ttc"), *folder.glob("*.otf")]):
            fontManager.addfont(path)
    return fontManager.ttflist[before:]  # type: ignore[no-any-return]


def _package_folders() -> list[Path]:
    specs = [spec for name in PACKAGES if (spec := find_spec(name))]
    return [Path(folder) for spec in specs for folder in spec.submodule_search_locations or []]


def _entry_characters(entry: FontEntry) -> frozenset[str]:
    return _characters(entry.fname, entry.index)


@cache
def _characters(path: str, face: int) -> frozenset[str]:
    """The characters that a font has."""
    from matplotlib.ft2font import FT2Font

    return frozenset(map(chr, FT2Font(path, face_index=face).get_charmap()))


@cache
def _note(assigned: bool) -> None:
    """Says once why pictures have boxes: no font has the characters, or Unicode does not define them."""
    if not assigned:
        write_message("ccaco: pictures show boxes for characters that Unicode does not define")
        return
    extra = "pip install 'ccaco[fonts]', or " if len(_package_folders()) < len(PACKAGES) else ""
    write_message(
        "ccaco: pictures show boxes for characters that no font here has; next: "
        f"{extra}apt install fonts-noto-core fonts-noto-cjk (Debian)"
    )
