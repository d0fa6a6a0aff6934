from __future__ import annotations

from collections import Counter
from pathlib import Path

from ccaco_cli.core.data.sources.lists import assumed_encodings, decode_text, hash_fraction, hash_split


def test_text_of_any_encoding() -> None:
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "cp1252"):
        assert decode_text("caf\u00e9 \u2019".encode(encoding)) == "caf\u00e9 \u2019", encoding


def test_files_that_are_not_unicode_are_named(tmp_path: Path) -> None:
    long = "\u00e9" * (1 << 20)  # a character crosses the blocks that are read
    contents = {
        "ascii.txt": b"dog",
        "empty.txt": b"",
        "utf8.txt": f"x{long}".encode(),
        "bom.txt": "caf\u00e9".encode("utf-8-sig"),
        "utf16.txt": "caf\u00e9".encode("utf-16"),
        "latin.txt": "caf\u00e9 au lait".encode("cp1252"),
        "mixed.txt": f"x{long}".encode() + b"\xe9",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    expected = {"latin.txt": "Windows-1252", "mixed.txt": "Windows-1252"}
    assert assumed_encodings(tmp_path / name for name in contents) == expected


def test_hash_split_is_fixed_and_of_the_size_it_says() -> None:
    # a change here would move samples between the splits of data sets that people have prepared
    assert [hash_split(f"photos/{i}.jpg") for i in range(12)] == [
        "val",
        "train",
        "train",
        "train",
        "train",
        "train",
        "val",
        "train",
        "train",
        "val",
        "train",
        "train",
    ]
    assert round(hash_fraction("a"), 6) == 0.791374
    share = Counter(hash_split(str(i)) for i in range(20_000))
    assert abs(share["train"] / 20_000 - 0.8) < 0.01 and abs(share["val"] / 20_000 - 0.1) < 0.01
