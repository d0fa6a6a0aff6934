"""What a data set being prepared amounts to: counts, lengths, sizes, rejects and leakage, from its shards and their journals.

One shard is looked at at a time; what is kept of a sample are three hashes of eight bytes, so memory hardly grows with their number.
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
from ccaco_cli.core.errors import DataError

REJECTS = "rejects.csv"
LEAKAGE = "leakage.csv"
_ORDER = ("train", "val", "test")
Hashes = np.ndarray[Any, np.dtype[np.uint64]]


@dataclass(frozen=True)
class Tally:
    """facts and files of the manifest; seen and rejected count records."""

    facts: dict[str, Any]
    files: list[dict[str, Any]]
    seen: int
    rejected: int


@dataclass
class _Spread:
    """Least, mean and most of values that come in parts."""

    count: int = 0
    total: float = 0
    least: float = math.inf
    most: float = -math.inf

    def add(self, values: Any) -> None:
        if len(values):
            self.count += len(values)
            self.total += np.sum(values).item()
            self.least, self.most = min(self.least, np.min(values).item()), max(self.most, np.max(values).item())

    def told(self) -> dict[str, float]:
        return {"min": self.least, "mean": round(self.total / self.count, 3), "max": self.most} if self.count else {}


@dataclass
class _Split:
    """One split while it is counted; hashes are of 64 bits, which tell a hundred million things apart."""

    counts: Counter[str] = field(default_factory=lambda: Counter(samples=0, groups=0, captions=0, rejects=0))
    reasons: Counter[str] = field(default_factory=Counter)
    spreads: dict[str, _Spread] = field(default_factory=dict)
    ids: list[Hashes] = field(default_factory=list)
    groups: list[Hashes] = field(default_factory=list)
    media: list[Hashes] = field(default_factory=list)
    captions: list[Any] = field(default_factory=list)

    def add(self, table: pa.Table, journal: dict[str, Any]) -> None:
        captions = pc.list_flatten(table["captions"])
        self.counts.update(samples=len(table), captions=len(captions))
        self.ids.append(_hashes(table["id"].to_pylist()))
        self.groups.append(_hashes(table["group"].to_pylist()))
        self.media.append(_media(journal))
        self.captions.append(pc.list_value_length(table["captions"]).to_numpy())
        measured = {"words": pc.list_value_length(pc.utf8_split_whitespace(captions)).to_numpy(), **journal["measures"]}
        for name, values in measured.items():
            self.spreads.setdefault(name, _Spread()).add(values)

    def inspection(self) -> dict[str, Any]:
        """What ``prepare`` tells of the split at its end."""
        _, group = (
            np.unique(np.concatenate(self.groups), return_inverse=True) if self.groups else (None, np.empty(0, int))
        )
        self.counts["groups"] = int(group.max()) + 1 if len(group) else 0
        per_group = _Spread()
        per_group.add(np.bincount(group, np.concatenate(self.captions)).astype(int) if len(group) else ())
        spreads = {"captions_per_group": per_group, **self.spreads}
        return {name: one.told() for name, one in spreads.items() if one.most > 0} | {
            "rejects": dict(sorted(self.reasons.items()))
        }


def journals(folder: Path, split: str) -> Iterator[dict[str, Any]]:
    """The journals of a split's finished shards, in order, up to the first that is missing."""
    index = 0
    while (file := folder / f"{split}-{index:05d}.json").is_file():
        yield json.loads(file.read_text("utf-8"))
        index += 1


def summarise(folder: Path) -> Tally:
    """Counts everything in a folder of finished shards; writes its rejects.csv, and leakage.csv when there is any.

    facts    splits {name: samples, groups, captions, rejects}; inspection {name: {captions_per_group, words, width, height ...: {min, mean,
             max}, rejects: {reason: count}}}; domains {name: samples}; captions {cleaned, dropped}; rejects {reason: count};
             leakage = how many media (by their bytes) are in several splits
    Raises   DataError: two samples have one id
    """
    names = {file.stem.rpartition("-")[0] for file in folder.glob("*-[0-9]*.json")}
    splits: dict[str, _Split] = {}
    domains: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    files, rejects = [], []
    for split in sorted(names, key=lambda n: (_ORDER.index(n) if n in _ORDER else len(_ORDER), n)):
        here = splits[split] = _Split()
        for index, journal in enumerate(journals(folder, split)):
            counts.update({key: journal[key] for key in ("seen", "cleaned", "dropped")})
            here.counts["rejects"] += len(journal["rejects"])
            here.reasons.update(reason for _, _, reason, _ in journal["rejects"])
            rejects += journal["rejects"]
            if journal["rows"]:
                file = folder / f"{split}-{index:05d}.arrow"
                files.append(manifest.file_entry(folder, file, rows=journal["rows"]))
                table = read_shard(file)
                domains.update({pair["values"]: pair["counts"] for pair in table["domain"].value_counts().to_pylist()})
                here.add(table, journal)
    _refuse_twins(folder, {split: here.ids for split, here in splits.items()})
    leaks = _leaks({split: here.media for split, here in splits.items()})
    for name, header, rows in (
        (REJECTS, ("id", "split", "reason", "where"), rejects),
        (
            LEAKAGE,
            ("sha1", "split", "id"),
            sorted(_named(folder, {s: here.media for s, here in splits.items()}, leaks)),
        ),
    ):
        (folder / name).unlink(missing_ok=True)
        if rows or name == REJECTS:
            (folder / name).write_bytes(_csv(header, rows))
            files.append(manifest.file_entry(folder, folder / name, rows=len(rows)))
    inspection = {split: here.inspection() for split, here in splits.items() if split}
    facts: dict[str, Any] = {
        "splits": {split: dict(here.counts) for split, here in splits.items() if split},
        "inspection": inspection,
        "domains": dict(sorted(domains.items())),
        "captions": {"cleaned": counts["cleaned"], "dropped": counts["dropped"]},
        "rejects": dict(sorted(sum((here.reasons for here in splits.values()), Counter()).items())),
        "leakage": len(leaks),
    }
    return Tally(facts, files, counts["seen"], len(rejects))


def read_shard(file: Path) -> pa.Table:
    """A shard by memory map: nothing is read until it is looked at."""
    return pa.ipc.open_stream(pa.memory_map(str(file))).read_all()


def _hashes(names: Sequence[str]) -> Hashes:
    return np.frombuffer(b"".join(blake2b(name.encode(), digest_size=8).digest() for name in names), np.uint64)


def _media(journal: dict[str, Any]) -> Hashes:
    """[rows] the start of each media's SHA-1; 0 for a row that has none."""
    return np.array([int(digest[:16] or "0", 16) for digest in journal["sha1"]], np.uint64)


def _refuse_twins(folder: Path, ids: dict[str, list[Hashes]]) -> None:
    each = [part for parts in ids.values() for part in parts]
    values, times = (
        np.unique(np.concatenate(each), return_counts=True) if each else (np.empty(0, np.uint64), np.empty(0))
    )
    if (times > 1).any():
        suspects = Counter(id for _, _, id in _named(folder, ids, values[times > 1]))
        twins = [id for id, count in suspects.items() if count > 1]
        if twins:  # not only equal by hash
            raise DataError(
                "two samples have one id",
                where=twins[0],
                expected="an id for every sample",
                next="mend the list of the data set",
            )


def _leaks(media: dict[str, list[Hashes]]) -> Hashes:
    """The hashes of media that are in several splits."""
    distinct = [np.unique(np.concatenate(parts)) for parts in media.values() if parts]
    values, splits = np.unique(np.concatenate([*distinct, np.empty(0, np.uint64)]), return_counts=True)
    found: Hashes = values[(splits > 1) & (values > 0)]
    return found


def _named(folder: Path, hashes: dict[str, list[Hashes]], wanted: Hashes) -> Iterator[tuple[str, str, str]]:
    """(SHA-1 of the media, split, id) of the samples with these hashes; only the shards that hold one are read again."""
    for split, parts in hashes.items() if len(wanted) else ():
        with_rows = ((i, j) for i, j in enumerate(journals(folder, split)) if j["rows"])
        for (index, journal), part in zip(with_rows, parts, strict=True):
            rows = np.flatnonzero(np.isin(part, wanted))
            if len(rows):
                ids = read_shard(folder / f"{split}-{index:05d}.arrow")["id"]
                yield from ((journal["sha1"][row], split, ids[row].as_py()) for row in rows.tolist())


def _csv(header: Sequence[str], rows: Iterable[Sequence[str]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([escape.cell(text) for text in row] for row in rows)
    return text.getvalue().encode()
