from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from ccaco_cli.core.data import hash_duplicates
from ccaco_cli.core.data.checks import Rules, check
from ccaco_cli.core.data.hash_duplicates import DISTANCE, near_groups, perceptual_hash
from ccaco_cli.core.data.preparation import prepare
from ccaco_cli.core.data.shards import WriteOptions
from ccaco_cli.core.data.sources.source import SourceOptions
from ccaco_cli.core.types import PairRecord
from ccaco_cli.core.workflows.prepare import notes


def by_brute_force(hashes: list[int], distance: int) -> list[int]:
    """Groups by comparing all pairs, numbered as ``near_groups`` numbers them."""
    group = list(range(len(hashes)))
    for i, a in enumerate(hashes):
        for j, b in enumerate(hashes):
            if (a ^ b).bit_count() <= distance:
                group = [group[i] if g == group[j] else g for g in group]
    alike = [g for g in dict.fromkeys(group) if group.count(g) > 1]
    return [alike.index(g) if g in alike else -1 for g in group]


BASES = st.sampled_from([0x0F0F0F0F0F0F0F0F, 0xFFFF0000FFFF0000, 0x123456789ABCDEF0])
FLIPS = st.lists(st.integers(0, 63), max_size=6)


@given(st.lists(st.tuples(BASES, FLIPS), max_size=12), st.integers(0, 6))
def test_groups_equal_a_comparison_of_all_pairs(drawn: list[tuple[int, list[int]]], distance: int) -> None:
    hashes = [base ^ sum(1 << bit for bit in set(bits)) for base, bits in drawn]
    assert near_groups(np.array(hashes, np.uint64), distance).tolist() == by_brute_force(hashes, distance)


def test_many_pairs_are_joined_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    hashes = [int(h) ^ (1 << int(rng.integers(64))) for h in rng.integers(0, 2**63, 20, np.uint64) for _ in range(8)]
    expected = near_groups(np.array(hashes, np.uint64))
    monkeypatch.setattr(hash_duplicates, "PAIRS_AT_ONCE", 3)
    assert near_groups(np.array(hashes, np.uint64)).tolist() == expected.tolist() == by_brute_force(hashes, DISTANCE)


def test_a_hundred_thousand_hashes_take_seconds() -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, 100_000, np.uint64, endpoint=False)
    hashes[50_000:50_010] = hashes[:10] ^ np.uint64(0b1011)
    hashes[90_000:] = hashes[90_000]  # ten thousand copies of one picture
    start = time.perf_counter()
    group = near_groups(hashes)
    assert time.perf_counter() - start < 20
    assert group[:10].tolist() == group[50_000:50_010].tolist() == list(range(10))
    assert set(group[90_000:].tolist()) == {10}
    assert (group >= 0).sum() == 20 + 10_000


def photo(seed: int, size: tuple[int, int] = (300, 200)) -> Image.Image:
    noise = Image.fromarray(np.random.default_rng(seed).integers(0, 255, (6, 9, 3), np.uint8))
    return noise.resize(size, Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(4))


def encoded(image: Image.Image, kind: str = "JPEG", **more: int) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **more)
    return out.getvalue()


def test_a_picture_that_was_saved_again_or_made_smaller_is_near() -> None:
    first = photo(0)
    variants = [
        Image.open(io.BytesIO(encoded(first, quality=30))),
        first.resize((120, 80)),
        first.resize((900, 600)),
        first.convert("L").convert("RGB"),
        first.point(lambda value: min(255, round(value * 1.05))),
    ]
    hashes = [int(perceptual_hash(image), 16) for image in (first, *variants, *map(photo, range(1, 30)))]
    group = near_groups(np.array(hashes, np.uint64)).tolist()
    assert group[: 1 + len(variants)] == [0] * (1 + len(variants))
    assert set(group[1 + len(variants) :]) == {-1}


@pytest.mark.parametrize("size", [(300, 200), (64, 64), (20, 90), (1000, 130)])
def test_the_hash_is_that_of_imagehash(size: tuple[int, int]) -> None:
    imagehash = pytest.importorskip("imagehash", reason="imagehash is not installed: no library to compare with")
    for seed in range(20):
        image = photo(seed, size)
        assert imagehash.phash(image) - imagehash.hex_to_hash(perceptual_hash(image)) <= 2, "averaging costs few bits"
        small = image.resize((48, 48))
        assert perceptual_hash(small) == str(imagehash.phash(small))


def test_plain_areas_have_no_hash() -> None:
    assert {perceptual_hash(Image.new("RGB", (40, 40), colour)) for colour in ("red", "black", "white")} == {""}
    rules = Rules(None, ("image",), hash_images=True)
    passed = check(PairRecord("x", "x", "test", {"image": encoded(photo(1))}), rules)
    assert len(passed.phash) == 16 and "phash" not in passed.row["meta"]  # type: ignore[union-attr]


def test_groups_are_listed_beside_the_rejects(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    for name, data in {
        "train/dog/1.jpg": encoded(photo(1)),
        "train/dog/again.png": encoded(photo(1), "PNG"),
        "test/cat/small.jpg": encoded(photo(1).resize((90, 60))),
        "train/cat/2.jpg": encoded(photo(2)),
        "train/cat/3.jpg": encoded(photo(3)),
        "train/cat/3 copy.jpg": encoded(photo(3)),
        "train/cat/plain.jpg": encoded(Image.new("RGB", (40, 40), "red")),
        "train/cat/blue.jpg": encoded(Image.new("RGB", (40, 40), "blue")),
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    prepared = [
        prepare(
            "imagefolder",
            source_path=root,
            out=tmp_path / f"d{rows}",
            write=WriteOptions(workers=0, rows_per_shard=rows),
        )
        for rows in (2, 100)
    ]
    for data in prepared:
        rows = list(csv.DictReader((data.path / "duplicates.csv").read_text("utf-8").splitlines()))
        assert [(row["group"], row["split"], row["id"]) for row in rows] == [
            ("1", "train", "train/cat/3 copy.jpg"),
            ("1", "train", "train/cat/3.jpg"),
            ("2", "train", "train/dog/1.jpg"),
            ("2", "train", "train/dog/again.png"),
            ("2", "test", "test/cat/small.jpg"),
        ]
        assert data.facts["duplicates"] == {"groups": 2, "samples": 5, "across_splits": 1}
        assert "duplicates.csv" in {entry["name"] for entry in data.files}
        assert any(
            line.startswith("near-duplicates: 5 images in 2 groups (1 of them across splits)") for line in notes(data)
        )


def test_the_search_for_duplicates_can_be_switched_off(ccaco: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    for name in ("1.jpg", "2.jpg"):
        (tmp_path / "s" / name).write_bytes(encoded(photo(1)))
    command = ("prepare", "media", "--source", tmp_path / "s", "--workers", 0)
    done = ccaco(*command, "--out", tmp_path / "a")
    assert done.code == 0 and "near-duplicates: 2 images in 1 groups look alike" in done.err
    done = ccaco(*command, "--out", tmp_path / "b", "--no-duplicates")
    assert done.code == 0 and "near-duplicates" not in done.err
    assert [(tmp_path / name / "duplicates.csv").exists() for name in "ab"] == [True, False]


def test_generated_pictures_are_not_compared(tmp_path: Path) -> None:
    data = prepare("scenes", out=tmp_path / "d", options=SourceOptions(limit=4, size=32), write=WriteOptions(workers=0))
    assert data.facts["duplicates"] == {"groups": 0, "samples": 0, "across_splits": 0}
    assert not (tmp_path / "d" / "duplicates.csv").exists()
