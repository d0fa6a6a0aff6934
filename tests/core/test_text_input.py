from __future__ import annotations

import codecs

import pytest

from ccaco_cli.core.errors import DataError
from ccaco_cli.core.text_input import check_utf8, decode_utf8, is_blank, read_lines


@pytest.mark.parametrize(
    ("data", "problem", "place"),
    [
        ("ein Café\n".encode("latin-1"), "not UTF-8 text (byte 0xe9)", "stdin, line 1, byte 8"),
        (b"a cat\na dog\n\xff\n", "not UTF-8 text (byte 0xff)", "stdin, line 3, byte 1"),
        (b"a cat\nb\0c\n", "binary data where text was expected (byte 0x00)", "stdin, line 2, byte 2"),
        ("a cat".encode("utf-16"), "UTF-16 text, not UTF-8", "stdin, line 1, byte 1"),
        (codecs.BOM_UTF8 + b"a\xc3", "not UTF-8 text (byte 0xc3)", "stdin, line 1, byte 5"),
    ],
)
def test_bytes_that_are_not_utf8_are_refused_with_their_place(data: bytes, problem: str, place: str) -> None:
    with pytest.raises(DataError) as refused:
        decode_utf8(data, "stdin")
    assert str(refused.value).startswith(f"{problem}: {place}; expected UTF-8 text; next: convert it")


def test_utf8_is_accepted_with_and_without_a_byte_order_mark() -> None:
    assert decode_utf8(codecs.BOM_UTF8 + "Café 猫".encode(), "x") == decode_utf8("Café 猫".encode(), "x") == "Café 猫"
    assert list(read_lines([b"a cat\r\n", b"\n", "猫".encode()], "x")) == ["a cat", "", "猫"]


def test_lines_are_counted() -> None:
    lines = read_lines([b"a cat\n", b"a dog\n", b"\x80\n"], "stdin")
    assert [next(lines), next(lines)] == ["a cat", "a dog"]
    with pytest.raises(DataError, match="stdin, line 3, byte 1"):
        next(lines)


@pytest.mark.parametrize("data", [b"caf\xe9", b"\xff\xfe", b"a \xf0\x9f cat"])
def test_arguments_that_the_system_could_not_decode_are_refused(data: bytes) -> None:
    with pytest.raises(DataError, match="argument 2"):
        check_utf8(data.decode("utf-8", "surrogateescape"), "argument 2")


def test_an_unpaired_surrogate_of_no_byte_is_refused() -> None:
    with pytest.raises(DataError, match="not UTF-8"):
        check_utf8("a \ud800 cat", "the query")
    check_utf8("a 猫", "the query")


@pytest.mark.parametrize("text", ["", " \t\n", "\u200b\ufeff", "\x00\x1b"])
def test_blank_texts(text: str) -> None:
    assert is_blank(text)
    assert not is_blank(text + "a")
