"""Computes the statistics of a data set from its shards and journals: counts, lengths, sizes, rejects, leakage and
near-duplicates.

One shard is read at a time. Of each sample four hashes of eight bytes are kept, so memory hardly grows with their
number.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ccaco_cli.core import escape, manifest
from ccaco_cli.core.data.hash_duplicates import near_groups
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.words import words

REJECTS = "rejects.csv"
LEAKAGE = "leakage.csv"
DUPLICATES = "duplicates.csv"
_ORDER = ("train", "val", "test")
_WITHOUT_BLANKS = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}]"
Array = np.ndarray[Any, Any]
Hashes = np.ndarray[Any, np.dtype[np.uint64]]


@dataclass(frozen=True)
class DatasetStats:
    """Facts and files of the manifest, and how many records were read and rejected."""

    facts: dict[str, Any]
    files: list[dict[str, Any]]
    records: int
    rejected: int


@dataclass
class _Range:
    """Running minimum, mean and maximum."""

    count: int = 0
    total: float = 0
    minimum: float = math.inf
    maximum: float = -math.inf

    def add(self, values: Any) -> None:
        if len(values):
            self.count += len(values)
            self.total += np.sum(values).item()
            self.minimum = min(self.minimum, np.min(values).item())
            self.maximum = max(self.maximum, np.max(values).item())

    def as_dict(self) -> dict[str, float]:
        if not self.count:
            return {}
        return {"min": self.minimum, "mean": round(self.total / self.count, 3), "max": self.maximum}


@dataclass
class _SplitStats:
    """Running statistics of one split. Hashes have 64 bits: enough to tell a hundred million samples apart."""

    counts: Counter[str] = field(default_factory=lambda: Counter(samples=0, groups=0, captions=0, rejects=0))
    reasons: Counter[str] = field(default_factory=Counter)
    ranges: dict[str, _Range] = field(default_factory=dict)
    ids: list[Hashes] = field(default_factory=list)
    groups: list[Hashes] = field(default_factory=list)
    media: list[Hashes] = field(default_factory=list)
    looks: list[Hashes] = field(default_factory=list)
    captions: list[Any] = field(default_factory=list)

    def add(self, table: pa.Table, journal: dict[str, Any]) -> None:
        """Adds the rows of one shard."""
        captions = pc.list_flatten(table["captions"])
        self.counts.update(samples=len(table), captions=len(captions))
        self.ids.append(_hashes(table["id"].to_pylist()))
        self.groups.append(_hashes(table["group"].to_pylist()))
        self.media.append(_media_hashes(journal))
        self.looks.append(np.array([int(digits or "0", 16) for digits in journal["phash"]], np.uint64))
        self.captions.append(pc.list_value_length(table["captions"]).to_numpy())
        measured = {"words": _word_counts(captions), **journal["measures"]}
        for name, values in measured.items():
            self.ranges.setdefault(name, _Range()).add(values)

    def inspection(self) -> dict[str, Any]:
        """The ranges and rejects that ``prepare`` prints at its end."""
        _, group = (
            np.unique(np.concatenate(self.groups), return_inverse=True) if self.groups else (None, np.empty(0, int))
        )
        self.counts["groups"] = int(group.max()) + 1 if len(group) else 0
        per_group = _Range()
        per_group.add(np.bincount(group, np.concatenate(self.captions)).astype(int) if len(group) else ())
        ranges = {"captions_per_group": per_group, **self.ranges}
        return {name: values.as_dict() for name, values in ranges.items() if values.maximum > 0} | {
            "rejects": dict(sorted(self.reasons.items()))
        }


def _word_counts(captions: pa.Array) -> Any:
    """Words of each caption, [captions] int; pieces between blanks in all scripts that have blanks, which is fast."""
    counts = pc.list_value_length(pc.utf8_split_whitespace(captions)).to_numpy().copy()
    for item in np.flatnonzero(pc.match_substring_regex(captions, _WITHOUT_BLANKS)):
        counts[item] = len(words(captions[item].as_py()))
    return counts


def journals(folder: Path, split: str) -> Iterator[dict[str, Any]]:
    """The journals of a split's finished shards, in order, up to the first missing one."""
    index = 0
    while (file := folder / f"{split}-{index:05d}.json").is_file():
        yield json.loads(file.read_text("utf-8"))
        index += 1


def compute_stats(folder: Path) -> DatasetStats:
    """Computes the statistics of finished shards; writes rejects.csv, and leakage.csv and duplicates.csv if any.

    Returns:
        Facts: splits {name: samples, groups, captions, rejects}; inspection {name: {captions_per_group, words, width,
        height ...: {min, mean, max}, rejects: {reason: count}}}; domains {name: samples}; captions {cleaned,
        dropped}; rejects {reason: count}; leakage = number of media (by their bytes) that are in several splits;
        duplicates {groups, samples, across_splits} of images that look alike.
    Raises:
        DataError: two samples have the same id.
    """
    names = {file.stem.rpartition("-")[0] for file in folder.glob("*-[0-9]*.json")}
    splits: dict[str, _SplitStats] = {}
    domains: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    files, rejects = [], []
    for split in sorted(names, key=lambda n: (_ORDER.index(n) if n in _ORDER else len(_ORDER), n)):
        stats = splits[split] = _SplitStats()
        for index, journal in enumerate(journals(folder, split)):
            counts.update({key: journal[key] for key in ("seen", "cleaned", "dropped")})
            stats.counts["rejects"] += len(journal["rejects"])
            stats.reasons.update(reason for _, _, reason, _ in journal["rejects"])
            rejects += journal["rejects"]
            if journal["rows"]:
                file = folder / f"{split}-{index:05d}.arrow"
                files.append(manifest.file_entry(folder, file, rows=journal["rows"]))
                table = read_shard(file)
                domains.update({pair["values"]: pair["counts"] for pair in table["domain"].value_counts().to_pylist()})
                stats.add(table, journal)
    _refuse_duplicate_ids(folder, {split: stats.ids for split, stats in splits.items()})
    media = {split: stats.media for split, stats in splits.items()}
    leaked = _leaked_media(media)
    alike, duplicates = _near_duplicates(folder, {split: stats.looks for split, stats in splits.items()})
    tables = (
        (REJECTS, ("id", "split", "reason", "where"), rejects),
        (LEAKAGE, ("sha1", "split", "id"), sorted(_find_samples(folder, media, leaked))),
        (DUPLICATES, ("group", "split", "id", "phash"), alike),
    )
    for name, header, rows in tables:
        (folder / name).unlink(missing_ok=True)
        if rows or name == REJECTS:
            (folder / name).write_bytes(csv_bytes(header, rows))
            files.append(manifest.file_entry(folder, folder / name, rows=len(rows)))
    inspection = {split: stats.inspection() for split, stats in splits.items() if split}
    facts: dict[str, Any] = {
        "splits": {split: dict(stats.counts) for split, stats in splits.items() if split},
        "inspection": inspection,
        "domains": dict(sorted(domains.items())),
        "captions": {"cleaned": counts["cleaned"], "dropped": counts["dropped"]},
        "rejects": dict(sorted(sum((stats.reasons for stats in splits.values()), Counter()).items())),
        "leakage": len(leaked),
        "duplicates": duplicates,
    }
    return DatasetStats(facts, files, counts["seen"], len(rejects))


def read_shard(file: Path) -> pa.Table:
    """A shard by memory map: columns are read only when they are used."""
    return pa.ipc.open_stream(pa.memory_map(str(file))).read_all()


def _hashes(names: Sequence[str]) -> Hashes:
    return np.frombuffer(b"".join(blake2b(name.encode(), digest_size=8).digest() for name in names), np.uint64)


def _media_hashes(journal: dict[str, Any]) -> Hashes:
    """[rows] the first 64 bits of each medium's SHA-1; 0 for a row without media."""
    return np.array([int(digest[:16] or "0", 16) for digest in journal["sha1"]], np.uint64)


def _refuse_duplicate_ids(folder: Path, ids: dict[str, list[Hashes]]) -> None:
    hashes = [part for parts in ids.values() for part in parts]
    values, counts = (
        np.unique(np.concatenate(hashes), return_counts=True) if hashes else (np.empty(0, np.uint64), np.empty(0))
    )
    if (counts > 1).any():
        candidates = Counter(id for _, _, id in _find_samples(folder, ids, values[counts > 1]))
        duplicates = [id for id, count in candidates.items() if count > 1]
        if duplicates:  # otherwise only the hashes are equal
            raise DataError(
                "two samples have the same id",
                where=duplicates[0],
                expected="a unique id for every sample",
                next="correct the list of the data set",
            )


def _leaked_media(media: dict[str, list[Hashes]]) -> Hashes:
    """The hashes of media that are in several splits."""
    distinct = [np.unique(np.concatenate(parts)) for parts in media.values() if parts]
    values, splits = np.unique(np.concatenate([*distinct, np.empty(0, np.uint64)]), return_counts=True)
    leaked: Hashes = values[(splits > 1) & (values > 0)]
    return leaked


def _near_duplicates(folder: Path, looks: dict[str, list[Hashes]]) -> tuple[list[tuple[str, ...]], dict[str, int]]:
    """The rows of duplicates.csv (group, split, id, hash), and how many groups and samples they are."""
    hashes = np.concatenate([*(part for parts in looks.values() for part in parts), np.empty(0, np.uint64)])
    hashed = np.flatnonzero(hashes)  # 0 stands for an image without a hash
    group = np.full(len(hashes), -1)
    group[hashed] = near_groups(hashes[hashed])
    rows: list[tuple[int, str, str, str]] = []
    start = 0
    for split, parts in looks.items():
        ends = start + np.cumsum([len(part) for part in parts], dtype=int)
        numbers = [group[end - len(part) : end] for end, part in zip(ends, parts, strict=True)]
        start = int(ends[-1]) if parts else start
        for place, journal, ids, chosen in _shards_with(folder, split, [part >= 0 for part in numbers]):
            for row in chosen.tolist():
                rows.append((int(numbers[place][row]), split, ids[row].as_py(), journal["phash"][row]))
    rows.sort(key=lambda row: row[0])
    splits = Counter(number for number, _ in {row[:2] for row in rows})
    across = sum(count > 1 for count in splits.values())
    facts = {"groups": len(splits), "samples": len(rows), "across_splits": across}
    return [(str(number + 1), *others) for number, *others in rows], facts


def _find_samples(folder: Path, hashes: dict[str, list[Hashes]], wanted: Hashes) -> Iterator[tuple[str, str, str]]:
    """(SHA-1 of the medium, split, id) of the samples with these hashes."""
    for split, parts in hashes.items() if len(wanted) else ():
        for _, journal, ids, rows in _shards_with(folder, split, [np.isin(part, wanted) for part in parts]):
            yield from ((journal["sha1"][row], split, ids[row].as_py()) for row in rows.tolist())


def _shards_with(
    folder: Path, split: str, chosen: Sequence[Array]
) -> Iterator[tuple[int, dict[str, Any], pa.ChunkedArray, Array]]:
    """(place, journal, ids, chosen rows) of the shards that contain a chosen row; no others are read.

    Args:
        chosen: one mask for each shard that has rows.
    """
    with_rows = ((i, j) for i, j in enumerate(journals(folder, split)) if j["rows"])
    for place, ((index, journal), mask) in enumerate(zip(with_rows, chosen, strict=True)):
        if mask.any():
            ids = read_shard(folder / f"{split}-{index:05d}.arrow")["id"]
            yield place, journal, ids, np.flatnonzero(mask)


def csv_bytes(header: Sequence[str], rows: Iterable[Sequence[str]]) -> bytes:
    """A CSV file whose cells cannot run as formulas in a spreadsheet."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([escape.cell(cell) for cell in row] for row in rows)
    return text.getvalue().encode()
