"""Drawn texts of every script: fonts, writing direction, and what happens where no font has a character."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import font_manager
from PIL import Image

from ccaco_cli.view import charts, fonts

SCRIPTS = {
    "zh": "一只橘猫在沙发上打盹，窗外下雨。",
    "ja": "ソファで昼寝をしている猫",
    "ko": "소파에서 낮잠을 자는 고양이",
    "hi": "एक नारंगी बिल्ली सोफे पर",
    "th": "แมวส้มกำลังนอนหลับบนโซฟา",
    "ar": "قطة برتقالية على الأريكة",
    "he": "חתול כתום על הספה",
    "emoji": "🐱😴🛋️👩‍👩‍👧👍🏽🇨🇳",
}
ODD = {
    "zero width": "zero\u200bwidth\u200djoin\u2060er",
    "byte order mark": "a\ufeff猫",
    "bidi controls": "\u202eabc\u202c \u2067אבג\u2069 \u200f",
    "variation": "☀\ufe0f 葛\U000e0100",
    "controls": "bell\x07 escape\x1b[31m c1\x9b",
    "surrogate": "half \ud83d of an emoji",
    "decomposed": "cafe\u0301 가 か\u3099",
    "tag": "a\U000e0041b",
}
"""Texts that need no further glyph, or become escapes."""
CACHES = ("_ordered", "_installed", "_packaged", "_note")
needs_fonts = pytest.mark.skipif(
    len(fonts._package_folders()) < len(fonts.PACKAGES), reason="pip install 'ccaco[fonts]'"
)


@pytest.fixture(autouse=True)
def new_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fonts as in a new process on a machine that has DejaVu only."""
    fontlist = [entry for entry in font_manager.fontManager.ttflist if entry.name.startswith("DejaVu")]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", fontlist)
    for name in CACHES:
        getattr(fonts, name).cache_clear()
    yield
    for name in CACHES:
        getattr(fonts, name).cache_clear()
    font_manager.fontManager._findfont_cached.cache_clear()


def drawn(*texts: str, format: str = "png", **options: Any) -> bytes:
    buffer = io.BytesIO()
    with charts.style() as plt:
        figure = plt.figure(figsize=(4, 0.4 * len(texts)))
        for number, text in enumerate(texts):
            figure.text(0.02, (number + 0.2) / len(texts), text, fontsize=14, parse_math=False, **options)
        fonts.save(figure, buffer, format=format, dpi=60)
    return buffer.getvalue()


def pixels(text: str, **options: Any) -> Any:
    return np.asarray(Image.open(io.BytesIO(drawn(text, **options))).convert("L"))


@needs_fonts
def test_every_script_is_drawn_without_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    drawn(*SCRIPTS.values(), fontweight="bold")  # a warning is an error in tests
    drawn(SCRIPTS["hi"], SCRIPTS["ar"], format="pdf")
    assert capsys.readouterr() == ("", "")
    boxes = pixels("\U0001fffe" * 3)
    for text in SCRIPTS.values():
        assert not np.array_equal(pixels(text), boxes)


@needs_fonts
def test_chinese_characters_have_the_form_of_the_language_of_the_text() -> None:
    forms = [pixels(text)[:, 24:] for text in ("直骨", "直骨", "の直骨")]
    assert np.array_equal(forms[0], forms[1])
    assert fonts._fallback("直骨", font_manager.FontProperties())[0][-1].endswith("SC")
    assert fonts._fallback("の直骨", font_manager.FontProperties())[0][-1].endswith("JP")


@pytest.mark.parametrize("text", [SCRIPTS[name] for name in ("zh", "hi", "th")])
def test_without_a_font_one_line_says_what_to_install(
    text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fonts, "PACKAGES", ("no_such_fonts",))
    for _ in range(3):
        drawn(text)
    drawn(text, format="pdf")
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert "pip install 'ccaco[fonts]'" in err and "fonts-noto-cjk" in err


def test_vector_files_keep_text(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "PACKAGES", ())
    assert SCRIPTS["zh"] in drawn(SCRIPTS["zh"], format="svg").decode()
    assert capsys.readouterr().err == "", "the viewer of an SVG file has its own fonts"
    assert b"/Type0" in drawn("plain", format="pdf") and b"/Type3" not in drawn("plain", format="pdf")


def test_unassigned_code_points_are_drawn_as_boxes_with_a_note(capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("a\u0378", "b\ue000", "c\U0003fffe"):
        drawn(text)
    assert capsys.readouterr().err == "ccaco: pictures show boxes for characters that Unicode does not define\n"


@needs_fonts
@pytest.mark.parametrize("format", ["png", "pdf", "svg"])
def test_odd_characters_end_no_drawing_and_leave_no_box(format: str, capsys: pytest.CaptureFixture[str]) -> None:
    drawn(*ODD.values(), format=format)
    assert capsys.readouterr() == ("", "")


def test_control_characters_are_escapes() -> None:
    assert np.array_equal(pixels("a\x07\x9b\ud800"), pixels(r"a\x07\x9b\ud800"))


def test_letters_from_right_to_left_are_ordered_and_joined() -> None:
    override = "\u202d{}\u202c"  # the letters as they stand here, from left to right
    hebrew, mixed = "\u05d0\u05d1\u05d2", "\u05d0\u05d1\u05d2 on sofa \u05d3\u05d4"
    assert np.array_equal(pixels(hebrew), pixels(override.format(hebrew[::-1])))
    assert np.array_equal(pixels(mixed), pixels(override.format("\u05d4\u05d3 on sofa \u05d2\u05d1\u05d0")))
    assert not np.array_equal(pixels(mixed), pixels(override.format(mixed)))
    arabic = "\u0643\u062a\u0628"
    assert not np.array_equal(pixels(arabic), pixels("\u200c".join(arabic))), "letters of a word are joined"


def test_each_line_keeps_the_direction_of_its_text() -> None:
    arabic = "\u0642\u0637\u0629 on a sofa by a book \u0643\u062a\u0627\u0628"
    lines = fonts.paragraph(arabic, 10).split("\n")
    assert len(lines) > 1 and all(line[0] == "\u2067" and line[-1] == "\u2069" for line in lines)
    last = lines[-2][1:-1]
    assert last.isascii(), "this line would begin at the left by itself"
    assert fonts.paragraph("a cat \u0642\u0637\u0629", 40) == "a cat \u0642\u0637\u0629"
    assert not fonts.is_right_to_left("12 ... ") and fonts.is_right_to_left("12 \u05d0 a")


def test_class_names_of_charts_are_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with charts.style():
        page = charts.inline(charts.confusion(["猫", "قطة"], np.eye(2)), "confusion")
    assert "猫" in page and "قطة" in page and capsys.readouterr().err == ""


@needs_fonts
def test_a_heat_map_and_a_sheet_of_chinese(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from ccaco_cli.core.types import no_progress
    from ccaco_cli.view.figures import contact_sheet
    from ccaco_cli.view.heat import write
    from tests.view.test_heat import explained

    hit = explained("一只橘猫在沙发上打盹")
    write(tmp_path / "why", [hit], 1, no_progress)
    contact_sheet(tmp_path / "sheet.pdf", [(hit.query, [hit.hit])])
    assert sorted(path.name for path in (tmp_path / "why").iterdir()) == ["01-01.png", "explain.json"]
    assert capsys.readouterr() == ("", "")


@needs_fonts
def test_installed_fonts_come_before_packaged_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    thai = next(fonts._package_folders()[0].glob("*Thai*"))
    font_manager.fontManager.addfont(thai)
    monkeypatch.setattr(fonts, "PACKAGES", ())
    names, language, missing = fonts._fallback(SCRIPTS["th"], font_manager.FontProperties())
    assert names == ["DejaVu Sans", "Noto Sans Thai"] and language == "th" and not missing
    assert fonts._fallback("猫", font_manager.FontProperties())[2] == {"猫"}
