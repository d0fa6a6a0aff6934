"""What a data set being prepared amounts to: counts, lengths, sizes, rejects and leakage, from its shards and their journals."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ccaco_cli.core import manifest
from ccaco_cli.core.errors import DataError

REJECTS = "rejects.csv"
_ORDER = ("train", "val", "test")


@dataclass(frozen=True)
class Tally:
    """facts and files of the manifest; seen and rejected count records."""

    facts: dict[str, Any]
    files: list[dict[str, Any]]
    seen: int
    rejected: int


def journals(folder: Path, split: str) -> Iterator[dict[str, Any]]:
    """The journals of a split's finished shards, in order, up to the first that is missing."""
    index = 0
    while (file := folder / f"{split}-{index:05d}.json").is_file():
        yield json.loads(file.read_text("utf-8"))
        index += 1


def summarise(folder: Path, modalities: tuple[str, str]) -> Tally:
    """Counts everything in a folder of finished shards, and writes its rejects.csv.

    facts    splits {name: samples, groups, captions, rejects}; domains {name: samples}; captions {cleaned, dropped, words}; image_size
             {width, height} in pixels as stored; rejects {reason: count}; leakage = how many media (by their bytes) are in several splits
    Raises   DataError: two samples have one id
    """
    names = {file.stem.rpartition("-")[0] for file in folder.glob("*-[0-9]*.json")}
    splits: dict[str, dict[str, int]] = {}
    domains: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    rejects: list[list[str]] = []
    ids, words, sizes, sha1, split_of = [], [], [], [], []
    files = []
    for number, split in enumerate(sorted(names, key=lambda n: (_ORDER.index(n) if n in _ORDER else len(_ORDER), n))):
        groups, found = [], Counter(samples=0, groups=0, captions=0, rejects=0)
        for index, journal in enumerate(journals(folder, split)):
            counts.update({key: journal[key] for key in ("seen", "cleaned", "dropped")})
            found["rejects"] += len(journal["rejects"])
            rejects += journal["rejects"]
            if not journal["rows"]:
                continue
            file = folder / f"{split}-{index:05d}.arrow"
            files.append(manifest.file_entry(folder, file, rows=journal["rows"]))
            table = read_shard(file)
            captions = pc.list_flatten(table["captions"])
            words.append(pc.list_value_length(pc.utf8_split_whitespace(captions)).to_numpy())
            domains.update({pair["values"]: pair["counts"] for pair in table["domain"].value_counts().to_pylist()})
            found.update(samples=journal["rows"], captions=len(captions))
            # taken, that is copied, so that the shard's pages need not stay mapped until the end
            names_here = table.select(["id", "group"]).take(pa.array(np.arange(len(table))))
            ids.append(names_here["id"])
            groups.append(names_here["group"])
            sizes.append(np.array(journal["sizes"], np.int32).reshape(-1, 2))
            known = [digest for digest in journal["sha1"] if digest]
            sha1.append(np.array([int(digest[:16], 16) for digest in known], np.uint64))  # 64 bits tell a hundred million media apart
            split_of.append(np.full(len(known), number))
        found["groups"] = pc.count_distinct(_joined(groups)).as_py() if groups else 0
        if split:
            splits[split] = dict(found)
    _refuse_twins(_joined(ids))
    (rejects_file := folder / REJECTS).write_bytes(_csv(rejects))
    files.append(manifest.file_entry(folder, rejects_file, rows=len(rejects)))
    size = np.concatenate(sizes) if sizes else np.empty((0, 2), np.int32)
    facts: dict[str, Any] = {
        "splits": splits,
        "domains": dict(sorted(domains.items())),
        "captions": {"cleaned": counts["cleaned"], "dropped": counts["dropped"], "words": _spread(words)},
        "rejects": dict(sorted(Counter(reason for _, _, reason, _ in rejects).items())),
        "leakage": _leakage(sha1, split_of),
    }
    if "image" in modalities:
        facts["image_size"] = {"width": _spread([size[:, 0]]), "height": _spread([size[:, 1]])}
    return Tally(facts, files, counts["seen"], len(rejects))


def read_shard(file: Path) -> pa.Table:
    """A shard by memory map: nothing is read until it is looked at."""
    return pa.ipc.open_stream(pa.memory_map(str(file))).read_all()


def _joined(columns: list[pa.ChunkedArray]) -> pa.ChunkedArray:
    return pa.chunked_array([chunk for column in columns for chunk in column.chunks], pa.string())


def _refuse_twins(ids: pa.ChunkedArray) -> None:
    if pc.count_distinct(ids).as_py() < len(ids):
        twin = next(pair["values"] for pair in ids.value_counts().to_pylist() if pair["counts"] > 1)
        raise DataError("two samples have one id", where=twin, expected="an id for every sample", next="mend the list of the data set")


def _spread(parts: list[np.ndarray[Any, Any]]) -> dict[str, float]:
    values = np.concatenate(parts) if parts else np.empty(0, int)
    return {"min": int(values.min()), "mean": round(float(values.mean()), 3), "max": int(values.max())} if values.size else {}


def _leakage(sha1: list[np.ndarray[Any, Any]], split_of: list[np.ndarray[Any, Any]]) -> int:
    if not sha1:
        return 0
    _, media = np.unique(np.concatenate(sha1), return_inverse=True)
    several = max(int(part[0]) for part in split_of if part.size) + 1 if media.size else 1
    places = np.unique(media * several + np.concatenate(split_of)) // several
    return int((np.bincount(places) > 1).sum())


def _csv(rejects: list[list[str]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("id", "split", "reason", "where"))
    writer.writerows(rejects)
    return text.getvalue().encode()
