from __future__ import annotations

from collections import Counter

from ccaco_cli.core.data.sources.lists import decode_text, hash_fraction, hash_split


def test_text_of_any_encoding() -> None:
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "cp1252"):
        assert decode_text("caf\u00e9 \u2019".encode(encoding)) == "caf\u00e9 \u2019", encoding


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
