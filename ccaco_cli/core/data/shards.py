"""Prepared data sets on disk: Arrow shards, written in order by a pool of workers, read by memory map.

A shard holds the rows of consecutive records of one split. While a data set is being written, each finished shard has
a journal beside it (rejects, sizes, hashes). After a kill, the records of finished shards are skipped, so the result
is the same, byte by byte.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import shutil
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from ccaco_cli.core import fault, lock, manifest
from ccaco_cli.core.data.checks import MISSING, OUTSIDE, SPLIT_NAME, UNLIKELY, Passed, Rejected, Rules
from ccaco_cli.core.data.dataset_stats import REJECTS, DatasetStats, compute_stats, journals
from ccaco_cli.core.data.pairs import ALL, PairData, PreparedData, Split, open, open_any
from ccaco_cli.core.data.pool import checked
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.manifest import Manifest
from ccaco_cli.core.modalities import uniform_of
from ccaco_cli.core.shell import quoted_path
from ccaco_cli.core.types import OnProgress, PairRecord, RecordFilter, no_progress

MAX_SHARD_BYTES = 128 << 20
EARLY_STOP_REJECTS = 1000
"""A run with too many rejects stops early only after this many; fewer rejects are listed completely."""
_PLAN = "plan.json"


@dataclass(frozen=True)
class DatasetInfo:
    """What a data set is.

    Attributes:
        name: stored in the manifest.
        modalities: of every sample: the two of a pair, or one.
        facts: protocol, licence, revision and the like, stored in the manifest.
        config: what the records depend on; a partial data set with another config is deleted.
        root: real path of the source folder, which media paths may not leave; None = media are not files.
        unpaired: domains whose records may have no captions.
        media_root: real path of a second folder that media paths may lie in.
        media_facts, file_facts: what is stored of media and files (``Rules``).
    """

    name: str
    modalities: tuple[str, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    root: Path | None = None
    unpaired: tuple[str, ...] = ()
    media_root: Path | None = None
    media_facts: bool = False
    file_facts: bool = False


@dataclass(frozen=True)
class WriteOptions:
    """How a data set is written.

    Attributes:
        image_size: short side in pixels above which images and videos are re-encoded; None = keep the original bytes.
        workers: processes; None = all cores, 0 or 1 = only this one.
        max_rejects: share of records, 0..1, that may be rejected.
        rows_per_shard: records per shard.
        duplicates: list images that look alike, unless they are generated.
        pair_filter: rejects pairs that it takes for no true ones; None = all are kept.
    """

    image_size: int | None = None
    workers: int | None = None
    max_rejects: float = 0.01
    rows_per_shard: int = 2048
    duplicates: bool = True
    pair_filter: RecordFilter | None = None


def write(
    records: Iterable[PairRecord],
    out: Path,
    info: DatasetInfo,
    options: WriteOptions | None = None,
    *,
    total: int | None = None,
    on_progress: OnProgress = no_progress,
) -> Manifest:
    """Checks a stream of records and writes it as a data set: shards, rejects.csv, and the manifest last.

    Memory holds a few tasks and one open shard per split, whatever the number of records.

    Args:
        records: consumed once, in order.
        out: the new folder. It is written as ``.NAME.partial`` beside it and renamed when complete. The same call
            after a kill resumes.
        info: name, modalities and facts.
        options: re-encoding, processes, limits.
        total: expected number of records, if known; a run that has lost too many of them then stops early.
        on_progress: called with the number of records that are done.
    Returns:
        The manifest.
    Raises:
        DataError: ``out`` exists, another process is writing it, too many rejects, no usable record, a duplicate id.
    """
    options = options or WriteOptions()
    out = Path(os.path.abspath(out))
    refuse_overwrite(out)
    partial = out.with_name(f".{out.name}.partial")
    plan = {
        "name": info.name,
        "modalities": list(info.modalities),
        "facts": dict(info.facts),
        "config": dict(info.config),
        "rows": options.rows_per_shard,
        "image_size": options.image_size,
        "stored_facts": [info.media_facts, info.file_facts, options.duplicates],
    }
    pair_filter = options.pair_filter
    filter_facts = {} if pair_filter is None else {"filter": dict(pair_filter.facts)}
    plan |= filter_facts
    root, media_root = (str(folder) if folder is not None else None for folder in (info.root, info.media_root))
    rules = Rules(
        root,
        info.modalities,
        options.image_size,
        frozenset(info.unpaired),
        media_root,
        info.media_facts,
        info.file_facts,
        hash_images=info.media_facts and options.duplicates,
    )
    if pair_filter is not None:
        records = pair_filter.select(records, info.modalities, rules.folders)
    with lock.hold(out, "data set"):
        _begin(partial, plan)
        count = _ShardWriter(partial, rules, options, total, on_progress).write(records)
        try:
            stats = compute_stats(partial)
            _refuse_losses(partial, stats, options.max_rejects, info)
        except DataError:
            (partial / _PLAN).unlink()  # the source has to be corrected, so the next run starts from the beginning
            raise
        if stats.records != count:
            raise _changed(partial)
        fault.point("prepare.counted")
        manifest.write(
            partial,
            "dataset",
            facts={"name": info.name, "modalities": list(info.modalities), **info.facts, **stats.facts},
            config={**info.config, "image_size": options.image_size, **filter_facts},
            files=stats.files,
        )
        fault.point("prepare.manifest")
        partial.rename(out)
        fault.point("prepare.renamed")
        for leftover in (out / _PLAN, *out.glob("*-[0-9]*.json")):
            leftover.unlink()
    return manifest.open(out, kind="dataset")


def refuse_overwrite(out: Path) -> None:
    """Raises DataError when ``out`` exists (an empty folder is allowed)."""
    if out.is_dir() and not any(out.iterdir()):
        return
    if out.exists():
        problem = "a data set is there already" if manifest.exists(out) else "something else is there already"
        raise DataError(problem, where=out, expected="a new folder", next=f"--out OTHER, or: rm -r {quoted_path(out)}")


def _refuse_losses(partial: Path, stats: DatasetStats, max_rejects: float, info: DatasetInfo) -> None:
    if not stats.records:
        raise DataError("the source has no records", expected="at least one", next="check --source and --limit")
    unlikely = stats.facts["rejects"].get(UNLIKELY, 0)
    if stats.rejected - unlikely > max_rejects * (stats.records - unlikely) or stats.rejected == stats.records:
        reasons = ", ".join(f"{reason} {count}" for reason, count in stats.facts["rejects"].items())
        share = math.ceil(100 * stats.rejected / stats.records) / 100
        next = "correct them" if stats.rejected == stats.records else f"correct them, or --max-rejects {share:g}"
        raise DataError(
            f"{stats.rejected} of {stats.records} samples rejected ({reasons})",
            where=partial / REJECTS,
            expected=f"at most {max_rejects:.2%}",
            next=_media_root_hint(partial / REJECTS, stats.records, info.root) + next,
        )


def _media_root_hint(rejects: Path, records: int, root: Path | None) -> str:
    """``--image-root FOLDER, or `` where files lie in another folder than the source; "" = that is not the reason."""
    if root is None:
        return ""
    with rejects.open(encoding="utf-8", newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if row["reason"] in (OUTSIDE, MISSING)]
    # a path may lead through a link that lies in the source folder
    paths = [root / row["where"] for row in rows if row["reason"] == OUTSIDE and "\0" not in row["where"]]
    folder = os.path.commonpath([os.path.dirname(os.path.realpath(path)) for path in paths]) if paths else ""
    if folder not in ("", os.path.dirname(folder)):
        return f"--image-root {quoted_path(folder)}, or "
    return "--image-root FOLDER_OF_THE_FILES, or " if 2 * len(rows) >= records else ""


def _begin(partial: Path, plan: Mapping[str, Any]) -> None:
    """Keeps the finished shards of an interrupted run of the same plan; deletes anything else."""
    text = json.dumps(plan, sort_keys=True, default=str)
    if partial.exists() and not ((partial / _PLAN).is_file() and (partial / _PLAN).read_text("utf-8") == text):
        shutil.rmtree(partial)
    partial.mkdir(exist_ok=True)
    manifest.sweep(partial)
    manifest.write_bytes(partial / _PLAN, text.encode())


def _changed(partial: Path) -> DataError:
    return DataError(
        "the source changed since the interrupted run",
        where=partial,
        next=f"rm -r {quoted_path(partial)}, then the same command",
    )


def _new_journal() -> dict[str, Any]:
    counts = {"seen": 0, "rows": 0, "cleaned": 0, "dropped": 0}
    return {**counts, "measures": {}, "sha1": [], "phash": [], "rejects": []}


@dataclass
class _OpenShard:
    """The shard of one split that is being filled, and the running digest of all records of the split so far."""

    index: int = 0
    digest: Any = field(default_factory=hashlib.sha256)
    rows: list[dict[str, Any]] = field(default_factory=list)
    bytes: int = 0
    journal: dict[str, Any] = field(default_factory=_new_journal)

    def count(self, record: PairRecord) -> None:
        """Counts a record and adds its names and captions to the digest."""
        self.journal["seen"] += 1
        names = (record.id, record.group, record.domain, record.label, record.family, list(record.captions))
        self.digest.update(repr(names).encode())

    def add(self, result: Passed | Rejected, modalities: tuple[str, ...]) -> None:
        """Adds the outcome of a check: a row, or a line of the rejects."""
        journal = self.journal
        if isinstance(result, Rejected):
            journal["rejects"].append([result.id, result.split, result.reason, result.where])
            return
        self.rows.append(result.row)
        self.bytes += sum(len(result.row[m]) for m in modalities if m != "text")
        journal["cleaned"] += result.cleaned
        journal["dropped"] += result.dropped
        journal["sha1"].append(result.sha1)
        journal["phash"].append(result.phash)
        for name, value in result.measures.items():
            journal["measures"].setdefault(name, []).append(value)

    def next(self) -> _OpenShard:
        """The empty shard after this one."""
        return _OpenShard(index=self.index + 1, digest=self.digest)


@dataclass
class _ShardWriter:
    """Writes the shards of a data set.

    ``finished`` holds (records, digest, rejects) of the shards that an earlier run wrote; ``uniform`` the measures that
    all samples share, as the first sample has them.
    """

    folder: Path
    rules: Rules
    options: WriteOptions
    total: int | None
    on_progress: OnProgress
    shards: dict[str, _OpenShard] = field(default_factory=dict)
    finished: dict[str, deque[tuple[int, str, int]]] = field(default_factory=dict)
    done: int = 0
    rejected: int = 0
    resumed: int = 0
    uniform: dict[str, float] = field(default_factory=dict)

    def write(self, records: Iterable[PairRecord]) -> int:
        """Returns the number of records, those of finished shards included; stops early when too many are rejected."""
        start = time.perf_counter()
        schema = _schema(self.rules.modalities)
        with closing(checked(self._unfinished(records), self.rules, self.options.workers)) as outcomes:
            for record, result in outcomes:
                split = _file_split(record)
                shard = self.shards[split]
                shard.count(record)
                result = self._refuse_other_shape(result, record)
                shard.add(result, self.rules.modalities)
                self.done += 1
                self.rejected += isinstance(result, Rejected) and result.reason != UNLIKELY
                if shard.journal["seen"] >= self.options.rows_per_shard or shard.bytes >= MAX_SHARD_BYTES:
                    _write_shard(self.folder, split, shard, schema)
                    self.shards[split] = shard.next()
                rate = (self.done - self.resumed) / (time.perf_counter() - start)
                self.on_progress(self.done, self.total, {"rejects": self.rejected, "samples/s": rate})
                if self._too_many_rejects():
                    break
        for split, shard in self.shards.items():
            if shard.journal["seen"] and not self.finished[split]:
                _write_shard(self.folder, split, shard, schema)
        return self.done

    def _refuse_other_shape(self, result: Passed | Rejected, record: PairRecord) -> Passed | Rejected:
        """The outcome of a check, or the reject of a sample that differs from the first in what all must share."""
        if isinstance(result, Rejected):
            return result
        for name in (name for modality in self.rules.modalities for name in uniform_of(modality)):
            expected, measured = self.uniform.setdefault(name, result.measures[name]), result.measures[name]
            if measured != expected:
                where = f"{name} {measured:g}, in the first sample {expected:g}"
                return Rejected(result.row["id"], record.split, "another shape than the first sample", where)
        return result

    def _unfinished(self, records: Iterable[PairRecord]) -> Iterator[PairRecord]:
        """The records that are in no finished shard. Raises DataError: the records of a finished shard have changed."""
        for record in records:
            split = _file_split(record)
            if split not in self.finished:
                self.shards[split] = _OpenShard()
                written = list(journals(self.folder, split))
                self.finished[split] = deque((j["seen"], j["digest"], _losses(j["rejects"])) for j in written)
                for name, values in (measure for journal in written for measure in journal["measures"].items()):
                    self.uniform.setdefault(name, values[0])
            if not self.finished[split]:
                yield record
                continue
            shard = self.shards[split]
            shard.count(record)
            self.done += 1
            self.resumed += 1
            count, digest, rejects = self.finished[split][0]
            if shard.journal["seen"] == count:
                if shard.digest.hexdigest() != digest:
                    raise _changed(self.folder)
                self.rejected += rejects
                self.shards[split] = shard.next()
                self.finished[split].popleft()
                self.on_progress(self.done, self.total, {"rejects": self.rejected, "resumed": True})

    def _too_many_rejects(self) -> bool:
        if self.total is None:
            return False
        return self.rejected > max(EARLY_STOP_REJECTS, self.options.max_rejects * max(self.total, self.done))


def _losses(rejects: Sequence[Sequence[str]]) -> int:
    """The number of rejects (id, split, reason, where) that no filter wanted."""
    return sum(reason != UNLIKELY for _, _, reason, _ in rejects)


def _file_split(record: PairRecord) -> str:
    """The split in the file name of a record's shard; "" for one that cannot be part of a file name ("../x")."""
    return record.split if SPLIT_NAME.fullmatch(record.split) else ""


def _write_shard(folder: Path, split: str, shard: _OpenShard, schema: pa.Schema) -> None:
    """Writes a shard and then its journal, each atomically: a shard without a journal counts as unfinished."""
    stem = f"{split}-{shard.index:05d}"
    if shard.rows:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, schema) as stream:
            stream.write_table(pa.Table.from_pylist(shard.rows, schema=schema))
        fault.point("prepare.before")
        manifest.write_bytes(folder / f"{stem}.arrow", sink.getvalue())
        fault.point("prepare.shard")
    shard.journal |= {"rows": len(shard.rows), "digest": shard.digest.hexdigest()}
    manifest.write_bytes(folder / f"{stem}.json", json.dumps(shard.journal).encode())
    fault.point("prepare.journal")


def _schema(modalities: tuple[str, ...]) -> pa.Schema:
    texts = [(name, pa.string()) for name in ("id", "group", "domain", "label", "family")]
    media = [(name, pa.binary()) for name in modalities if name != "text"]
    return pa.schema([*texts, ("captions", pa.list_(pa.string())), ("meta", pa.string()), *media])


__all__ = [
    "ALL",
    "DatasetInfo",
    "PairData",
    "PreparedData",
    "Split",
    "WriteOptions",
    "open",
    "open_any",
    "refuse_overwrite",
    "write",
]
