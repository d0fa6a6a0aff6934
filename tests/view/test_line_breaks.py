from __future__ import annotations

import pytest
from rich.cells import cell_len

from ccaco_cli.view import terminal_table
from ccaco_cli.view.line_breaks import longest_piece, wrap
from ccaco_cli.view.terminal_table import TerminalColumn

CHINESE = "一只橘猫在沙发上打盹，窗外是雨天的街道（很冷）。"
TEXTS = [
    CHINESE,
    "ソファで昼寝をしている猫、外は雨。",
    "แมวส้มกำลังนอนหลับบนโซฟา",
    "소파에서 낮잠을 자는 고양이",
    "😴🛋️ 👩‍👩‍👧 naps on 🛋️",
]


@pytest.mark.parametrize("text", TEXTS)
def test_lines_fit_and_lose_nothing(text: str) -> None:
    lines = wrap(text, 12)
    assert max(map(cell_len, lines)) <= 12 and len(lines) > 1
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")


def test_no_line_begins_with_closing_punctuation() -> None:
    for width in range(6, 40):
        lines = wrap(CHINESE, width)
        assert not [line for line in lines if line[0] in "，。）"] and not [line for line in lines if line[-1] == "（"]


def test_text_is_cut_between_visible_characters() -> None:
    assert wrap(CHINESE, 12, max_lines=1) == ["一只橘 [...]"]
    assert wrap(CHINESE, 12, max_lines=2, indent="  ")[1] == "  发上 [...]"
    family = "👩‍👩‍👧"
    assert wrap(family * 9, 8)[0] in (family * n for n in range(1, 9))
    assert wrap("é" * 30, 12) == ["é" * 12, "é" * 12, "é" * 6]
    assert wrap("é" * 30, 12, break_long_words=False) == ["é" * 30]


def test_ascii_is_broken_as_before() -> None:
    assert wrap("a well-kept cat", 7) == ["a well-", "kept", "cat"]
    assert wrap("", 7) == wrap("\u3000", 7) == []
    assert longest_piece("a well-kept cat") == 9 and longest_piece("一只橘猫") == 2


def test_wide_characters_are_aligned() -> None:
    texts = [CHINESE * 3, "قطة برتقالية", "เด็กผู้ชายเล่นฟุตบอล", "नारंगी बिल्ली", "😴 naps", "plain"]
    columns = [
        TerminalColumn("text", texts, wraps=True),
        TerminalColumn("id", [f"p{number}" for number in range(6)], key=True),
    ]
    lines = terminal_table.render(columns, None, None, width=60).splitlines()
    ids = [line for line in lines if line.endswith(tuple(f" p{number}" for number in range(6)))]
    assert len(ids) == 6 and len({cell_len(line) for line in ids}) == 1
    assert max(map(cell_len, lines)) <= 60 and not [line for line in lines if line.startswith(("，", "。", "）"))]


def test_a_separator_of_lines_breaks_no_row() -> None:
    from ccaco_cli.core.escape import printable

    assert printable("a\u2028b\u2029c\u061cd") == "a\\u2028b\\u2029c\\u061cd"
    columns = [TerminalColumn("text", ["a\u2028b"]), TerminalColumn("id", ["p0"])]
    assert terminal_table.render(columns, None, None, width=60).count("\n") == 3
