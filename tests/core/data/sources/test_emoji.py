from __future__ import annotations

import os
from pathlib import Path

import pytest

from ccaco_cli.core.data.sources.emoji import SOURCE
from ccaco_cli.core.data.sources.lists import REPEATED
from ccaco_cli.core.data.sources.source import SourceOptions
from ccaco_cli.core.errors import DataError

OPTIONS = SourceOptions()


def test_one_record_a_style_and_one_group_an_emoji(tmp_path: Path) -> None:
    table = (
        "codepoint\tchar\tunicode_name\tcategory\tsplit\tstyles\n1f4a5\t\U0001f4a5\tcollision "
        "symbol\tnature\ttest\tnoto2018,fxemoji,own\n"
    )
    (tmp_path / "emoji.tsv").write_text(table, "utf-8")
    data = SOURCE.read(tmp_path, OPTIONS)
    noto, fx, pebble = data.records
    assert (noto.id, noto.group, noto.split, noto.domain, noto.label) == (
        "noto2018/1f4a5",
        "1f4a5",
        "test",
        "noto2018",
        "nature",
    )
    assert list(fx.captions) == ["collision symbol"] and fx.group == noto.group and fx.domain == "fxemoji"
    assert noto.media["image"] == tmp_path / "noto2018/png/128/emoji_u1f4a5.png"
    assert pebble.media["image"] == tmp_path / "own/1f4a5.png"
    assert data.counts == {"test": 3}


def test_another_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no emoji styles here"):
        SOURCE.read(tmp_path, OPTIONS)
    (tmp_path / "emoji.tsv").write_text("a\tb\n1\t2\n")
    with pytest.raises(DataError, match=r"a table without the expected columns.*codepoint"):
        SOURCE.read(tmp_path, OPTIONS)


@pytest.mark.skipif("CCACO_REAL_DATA" not in os.environ, reason="CCACO_REAL_DATA is not set: no real emoji to read")
def test_every_real_picture_exists() -> None:
    rows = list(SOURCE.read(Path(os.environ["CCACO_REAL_DATA"]) / "emoji_styles", OPTIONS).records)
    assert len(rows) == 3 * 611 and len({r.group for r in rows}) == 611
    assert all(Path(str(r.media["image"])).is_file() for r in rows)
    assert len({(r.group, r.split) for r in rows}) == 611


def test_repeated_rows_and_columns_and_missing_names(tmp_path: Path) -> None:
    header = "codepoint\tunicode_name\tcategory\tsplit\tstyles\n"
    rows = 'a\tone "\ta b\ttrain\tx,y\nb\tnan\t\ttrain\tx\na\ttwo\tc\tval\tx\n'
    (tmp_path / "emoji.tsv").write_text(header + rows)
    records = [(r.id, list(r.captions), r.label, r.problem) for r in SOURCE.read(tmp_path, OPTIONS).records]
    assert records == [
        ("x/a", ['one "'], "a b", REPEATED),
        ("y/a", ['one "'], "a b", ""),
        ("x/b", [], "", ""),
        ("x/a", ["two"], "c", REPEATED),
    ]
    (tmp_path / "emoji.tsv").write_text(header.replace("category", "split") + rows)
    with pytest.raises(DataError, match="a table without the expected columns"):
        SOURCE.read(tmp_path, OPTIONS)
    (tmp_path / "emoji.tsv").write_text(header + "a\tone\n")
    with pytest.raises(DataError, match=r"unreadable table.*emoji.tsv:2"):
        SOURCE.read(tmp_path, OPTIONS)
