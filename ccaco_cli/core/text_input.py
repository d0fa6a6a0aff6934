"""Text from outside (files, stdin, the command line): what is not UTF-8 text is refused, with its place."""

from __future__ import annotations

import codecs
import contextlib
import re
import unicodedata
from collections.abc import Iterable, Iterator

from ccaco_cli.core.errors import CcacoError, DataError

_OTHER_ENCODINGS = {
    codecs.BOM_UTF32_LE: "UTF-32",  # before UTF-16, whose mark is its beginning
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def decode_utf8(data: bytes, where: object, *, first_line: int = 1, error: type[CcacoError] = DataError) -> str:
    """Decodes UTF-8, with or without a byte order mark.

    Args:
        where: names the file or stream in the message.
        first_line: number of the first line of ``data``.
        error: class of the error.
    Raises:
        CcacoError: the bytes are not UTF-8, or hold a zero byte, which no text has; names line and byte.
    """
    encoding = next((name for mark, name in _OTHER_ENCODINGS.items() if first_line == 1 and data.startswith(mark)), "")
    try:
        text = data.decode("utf-8-sig" if first_line == 1 else "utf-8")
        position = data.find(b"\0")
        if position < 0:
            return text
        problem = "binary data where text was expected (byte 0x00)"
    except UnicodeDecodeError as failure:
        bom = len(codecs.BOM_UTF8) if first_line == 1 and data.startswith(codecs.BOM_UTF8) else 0
        position = failure.start + bom
        problem = f"not UTF-8 text (byte 0x{data[position]:02x})"
    line = first_line + data.count(b"\n", 0, position)
    column = position - data.rfind(b"\n", 0, position)
    raise error(
        f"{encoding} text, not UTF-8" if encoding else problem,
        where=f"{where}, line {line}, byte {column}",
        expected="UTF-8 text",
        next=f"convert it, for example with iconv -f {encoding or 'ISO-8859-1'} -t UTF-8",
    ) from None


def read_lines(stream: Iterable[bytes], where: object) -> Iterator[str]:
    """The lines of a stream of UTF-8 text without line ends, as they come.

    Raises:
        DataError: as ``decode_utf8``.
    """
    for number, line in enumerate(stream, 1):
        yield decode_utf8(line, where, first_line=number).rstrip("\r\n")


def check_utf8(text: str, where: object) -> None:
    """Checks a text that the system decoded: bytes that were not UTF-8 are unpaired surrogates in it.

    Raises:
        DataError: there are such bytes; names the first one.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        with contextlib.suppress(UnicodeEncodeError):  # raised for a surrogate that stands for no byte
            decode_utf8(text.encode("utf-8", "surrogateescape"), where)
        decode_utf8(text.encode("utf-8", "surrogatepass"), where)


def normal_form(text: str) -> str:
    """The text in Unicode's normal form C: "é" is one character, and not "e" with an accent that follows."""
    return unicodedata.normalize("NFC", text)


def is_blank(text: str) -> bool:
    """True for a text without any character that shows: spaces, control characters, zero-width characters."""
    return not any(character.isprintable() and not character.isspace() for character in text)


def joined_punctuation(text: str) -> str:
    """The text without spaces before punctuation marks, which tokenizers of whole words put there."""
    return re.sub(r"\s+([,.!?;:])", r"\1", " ".join(text.split()))
