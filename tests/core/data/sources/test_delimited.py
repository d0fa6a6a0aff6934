from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccaco_cli.core.data.sources.delimited import open_delimited
from ccaco_cli.core.errors import DataError


def read(path: Path, content: str | bytes, separator: str | None = None, quoted: bool = True) -> list[list[str]]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(open_delimited(path, separator, path_column="filepath", quoted=quoted).rows)


def test_proper_quotes_are_read(tmp_path: Path) -> None:
    text = (
        'filepath,title\na.jpg,"one, ""two""\nthree, four"\nb.jpg,"x.jpg is\nnot a row"\n\nc.jpg,19" wheels\n"d.jpg",\n'
    )
    assert read(tmp_path / "t.csv", text) == [
        ["a.jpg", 'one, "two"\nthree, four'],
        ["b.jpg", "x.jpg is\nnot a row"],
        ["c.jpg", '19" wheels'],
        ["d.jpg", ""],
    ]
    last = 'title\tfilepath\n"one\ntwo"\ta.jpg\n"a\r\nb\r\nc"\tb.jpg\n'
    assert read(tmp_path / "t.tsv", last) == [["one\ntwo", "a.jpg"], ["a\r\nb\r\nc", "b.jpg"]]
    assert read(tmp_path / "t.tsv", "filepath\ttitle\n\t\na.jpg\tx") == [["", ""], ["a.jpg", "x"]], "blank, but a row"


STRAY_QUOTES = [
    # the closing quote stands in the middle, at the end, nowhere
    (['a.jpg\t"Hello there', "b.jpg\tx", 'c.jpg\t19" wheels'], "3-5"),
    (['a.jpg\t"Hello there', "b.jpg\tx", 'c.jpg\t19"'], "3"),
    (['a.jpg\t"Hello there', "b.jpg\tx", "c.jpg\ty"], "3-5"),
    (["a.jpg\tx", 'b.jpg\t"Hello" she said', "c.jpg\ty"], "4"),
    (["a.jpg\tx", 'b.jpg\t"Hello there', 'c.jpg\tlast" of', "e.jpg\tz"], "4-5"),
    (["a.jpg\tx", 'b.jpg\t"Hello there', 'c.jpg\tlast"', "d.jpg\ty"], "4"),
]


@pytest.mark.parametrize(
    ("rows", "lines"), [*STRAY_QUOTES, (["a.jpg\tx", "b.jpg\ty\tz"], "4"), (["a.jpg\tx", "b.jpg"], "4")]
)
@pytest.mark.parametrize("separator", ["\t", ",", ";"])
@pytest.mark.parametrize("quoted_row", ['z.jpg\t"a quoted\tseparator"', 'z.jpg\t"a ""doubled"" quote"', '"z.jpg"\tx'])
def test_a_stray_quote_among_quoted_cells_names_its_line(
    tmp_path: Path, quoted_row: str, rows: list[str], lines: str, separator: str
) -> None:
    text = "\n".join(["filepath\ttitle", quoted_row, *rows, ""]).replace("\t", separator)
    with pytest.raises(DataError, match="unreadable table") as error:
        read(tmp_path / "t.txt", text)
    assert str(error.value.where) == f"{tmp_path / 't.txt'}:{lines}"
    assert error.value.next


@pytest.mark.parametrize(
    "rows", [rows for rows, _ in STRAY_QUOTES] + [["a\t'", 'b\t"x', 'c\t"y" and z'], ['a.JPEG\t"', 'b.png\t"x"']]
)
@pytest.mark.parametrize("separator", ["\t", ",", ";"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_quotes_that_do_not_add_up_are_characters_where_each_line_is_a_row(
    tmp_path: Path, rows: list[str], separator: str, encoding: str
) -> None:
    file = tmp_path / "t.txt"
    file.write_bytes("\n".join(["filepath\ttitle", *rows, ""]).replace("\t", separator).encode(encoding))
    table = open_delimited(file, separator, path_column="filepath")
    assert list(table.rows) == [row.split("\t") for row in rows]
    assert table.facts() == {"quotes": "ordinary characters"}


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        (['a.jpg\t"Hello', 'b.png\tthere"'], 2),
        (["a.jpg\tx", 'b.jpg\t"Hello', 'c.gif\tthere"', "d.jpg\ty"], 3),
        (["a\tx", 'b\t"Hello', "c.d\tz", 'd e\tthere"'], 0),
    ],
)
def test_two_possible_readings_are_refused_with_the_line(tmp_path: Path, rows: list[str], line: int) -> None:
    text = "\n".join(["filepath\ttitle", *rows, ""])
    if not line:  # "d e" is no file name, so that only one reading is possible
        with pytest.raises(DataError, match="swallows line 4"):
            read(tmp_path / "t.tsv", text)
        return
    with pytest.raises(DataError, match="may enclose several lines, or each of them may be a row") as error:
        read(tmp_path / "t.tsv", text)
    assert str(error.value.where) == f"{tmp_path / 't.tsv'}:{line}"


@pytest.mark.parametrize("text", ['"a"\t"b"\n"c.jpg"\t"x\n"d.jpg"\t"y"\n', '"filepath"\ttitle\na.jpg\t"x\nb.jpg\ty\n'])
def test_a_table_with_quoted_names_is_not_read_without_quotes(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match="unreadable table"):
        read(tmp_path / "t.tsv", text)


def test_quotes_are_characters_where_the_format_has_none(tmp_path: Path) -> None:
    assert read(tmp_path / "t.tsv", 'filepath\ttitle\na\t"x\nb\ty"\n', "\t", quoted=False) == [["a", '"x'], ["b", 'y"']]


def test_separators_encodings_and_line_ends(tmp_path: Path) -> None:
    for end in ("\n", "\r\n", "\r"):
        for encoding in ("utf-8", "utf-8-sig", "utf-16"):
            text = f"filepath\ttitle{end}a.jpg\tcaf\u00e9 \u2028 x{end}"
            assert read(tmp_path / "t.csv", text.encode(encoding)) == [["a.jpg", "caf\u00e9 \u2028 x"]]
    mixed = "filepath|title\na.jpg|caf\u00e9\n".encode() + b"b.jpg|caf\xe9\n"
    assert [row[1] for row in read(tmp_path / "t.csv", mixed, "|")] == ["caf\u00e9"] * 2
    assert read(tmp_path / "t.csv", "filepath\ttitle\na\tb\n", "\\t") == [["a", "b"]]
    for separator in ("ab", '"'):
        with pytest.raises(DataError, match="not a separator"):
            read(tmp_path / "t.csv", "filepath,title\n", separator)
    with pytest.raises(DataError, match="unreadable table"):
        read(tmp_path / "t.csv", b"\xff\xfe" + "filepath,title\n".encode("utf-16-le") + b"\x00\xd8")


CELLS = st.text(st.sampled_from('ab "\n,\t'), max_size=12)


@given(captions=st.lists(CELLS, min_size=1, max_size=6), tabs=st.booleans())
def test_what_a_csv_writer_writes_is_read(
    tmp_path_factory: pytest.TempPathFactory, captions: list[str], tabs: bool
) -> None:
    rows = [[f"{number}.jpg", caption] for number, caption in enumerate(captions)]
    text = io.StringIO()
    csv.writer(text, delimiter="\t" if tabs else ",", lineterminator="\n").writerows([["filepath", "title"], *rows])
    path = tmp_path_factory.getbasetemp() / "written.csv"
    assert read(path, text.getvalue(), "\t" if tabs else ",") == rows
