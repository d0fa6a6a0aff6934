"""Reads the list files of published data sets (text, JSON, Karpathy's split files), and splits by hash."""

from __future__ import annotations

import codecs
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ccaco_cli.core.errors import DataError
from ccaco_cli.core.manifest import parse_json, sha256

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
HASH_SPLITS = ("train", "val", "test")  # of ``hash_split``
TYPE_FILE = "dataset_type.txt"
"""File in which CLIP_benchmark says whether its shards are for classification or retrieval."""
REPEATED = "listed more than once"
"""Reason of a reject: two samples have one name, so it is not known which caption belongs to which."""


def decode_text(data: bytes) -> str:
    """Decodes UTF-8 (with or without BOM) or UTF-16 (with BOM); anything else is read as Windows-1252."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", "replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", "replace")


def assumed_encodings(paths: Iterable[Path]) -> dict[str, str]:
    """The text files whose encoding is an assumption of ``decode_text``: file name -> encoding."""
    return {path.name: "Windows-1252" for path in paths if not _is_unicode(path)}


def _is_unicode(path: Path) -> bool:
    with path.open("rb") as binary:
        block = binary.read(1 << 20)
        if block.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return True
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            while block:
                decoder.decode(block)
                block = binary.read(1 << 20)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return False
    return True


def read_lines(path: Path) -> list[str]:
    """Lines of a list file without line ends and without blank lines; the encoding is detected line by line."""
    data = path.read_bytes()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        # str.splitlines would also split at characters such as U+2028, which may be part of a caption
        lines = re.split(r"\r\n|\r|\n", decode_text(data))
    else:
        lines = [decode_text(line) for line in data.splitlines()]
    return [line for line in lines if line.strip()]


def read_json(path: Path, *keys: str) -> dict[str, Any]:
    """A JSON object with the lists ``keys``. Raises DataError: another content."""
    try:
        body = parse_json(decode_text(path.read_bytes()), object_pairs_hook=_without_tokens)
    except ValueError as error:
        raise DataError(f"not a JSON file ({error})", where=path, expected="the file as published") from None
    if not isinstance(body, dict) or not all(isinstance(body.get(key), list) for key in keys):
        raise DataError(
            "a JSON file with other content", where=path, expected=f"an object with the lists {', '.join(keys)}"
        )
    return body


def parse_strictly(text: str) -> Any:
    """``parse_json``; raises ValueError also for an object with a repeated key, of which JSON would keep the last."""
    return parse_json(text, object_pairs_hook=_unique_keys)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entry = dict(pairs)
    if len(entry) != len(pairs):
        raise ValueError(f"repeated key {min(repeated(key for key, _ in pairs))!r}")
    return entry


def _without_tokens(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Drops the words that Karpathy's files repeat beside every caption: they take most of the memory."""
    entry = _unique_keys(pairs)
    entry.pop("tokens", None)
    return entry


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file with one object per line.

    Raises:
        DataError: a line that is no JSON object, with its number.
    """
    for number, line in enumerate(re.split(r"\r\n|\r|\n", decode_text(path.read_bytes())), 1):
        if not line.strip():
            continue
        try:
            entry = parse_strictly(line)
        except ValueError as error:
            raise DataError(f"not a JSON line ({error})", where=f"{path}, line {number}") from None
        if not isinstance(entry, dict):
            raise DataError("this line is no JSON object", where=f"{path}, line {number}", expected="{...}")
        yield entry


def karpathy_images(path: Path) -> list[dict[str, Any]]:
    """``images`` of a Karpathy split file, each with ``filename``, ``split`` and ``sentences``. Raises DataError."""
    images: list[dict[str, Any]] = read_json(path, "images")["images"]
    for image in images:
        if not isinstance(image, dict) or not {"filename", "split", "sentences"} <= image.keys():
            raise DataError(
                "not a Karpathy split file", where=path, expected="images[].{filename, split, sentences[].raw}"
            )
    return images


def is_retrieval(data: bytes) -> bool:
    """Whether the content of a ``TYPE_FILE`` says that each line of a text is a caption."""
    return decode_text(data).strip().lower() == "retrieval"


def repeated(names: Iterable[str]) -> frozenset[str]:
    """The names that occur more than once."""
    return frozenset(name for name, count in Counter(names).items() if count > 1)


def hash_fraction(key: str) -> float:
    """A number in [0, 1) that depends on ``key`` only: equal on every machine and in every data set."""
    return int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()[:6], "big") / 2**48


def hash_split(key: str) -> str:
    """train, val or test, for 80, 10 and 10 percent of all keys."""
    fraction = hash_fraction(key)
    return "train" if fraction < 0.8 else "val" if fraction < 0.9 else "test"


def missing_part(counts: Mapping[str, int], published: Mapping[str, int]) -> str:
    """Suffix of a protocol name if the lists are not the published ones: "" or "; a part: test 500 of 1,000"."""
    differing = [
        f"{name} {counts.get(name, 0):,} of {count:,}"
        for name, count in published.items()
        if counts.get(name, 0) != count
    ]
    return f"; a part: {', '.join(differing)}" if differing else ""


def revision_of(*paths: Path) -> str:
    """The lists that a data set was read from: file names and the start of their SHA-256."""
    return ", ".join(f"{path.name} sha256:{sha256(path)[:16]}" for path in paths)
