"""Prepared data sets on disk: Arrow shards, written in order by a pool of workers, read by memory map.

A shard is the outcome of a run of consecutive records of one split. While a data set is being written, each finished shard has a
journal beside it (what was rejected, sizes, hashes); after a kill, the records of finished shards are skipped, so the result is the same,
byte by byte.
"""

from __future__ import annotations

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
from ccaco_cli.core.data.checks import SPLIT_NAME, Passed, Rejected, Rules
from ccaco_cli.core.data.dataset_stats import REJECTS, Tally, journals, summarise
from ccaco_cli.core.data.pairs import PairData, Split, open
from ccaco_cli.core.data.pool import checked
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.manifest import Manifest
from ccaco_cli.core.types import OnProgress, PairRecord, no_progress

ROWS = 2048
BYTES = 128 << 20
MAX_REJECTS = 0.01
HOPELESS = 1000
"""Rejects from which on a run that cannot succeed any more stops at once; fewer are worth being listed whole."""
_PLAN = "plan.json"


@dataclass
class _Open:
    """The shard of one split that is being filled, and the split's running digest of what was read."""

    index: int = 0
    digest: Any = field(default_factory=hashlib.sha256)
    rows: list[dict[str, Any]] = field(default_factory=list)
    size: int = 0
    journal: dict[str, Any] = field(default_factory=lambda: _journal())


def _journal() -> dict[str, Any]:
    return {"seen": 0, "rows": 0, "cleaned": 0, "dropped": 0, "measures": {}, "sha1": [], "rejects": []}


def write(
    records: Iterable[PairRecord],
    out: Path,
    *,
    name: str,
    modalities: tuple[str, str],
    facts: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    root: Path | None = None,
    image_size: int | None = None,
    unpaired: Sequence[str] = (),
    workers: int | None = None,
    max_rejects: float = MAX_REJECTS,
    total: int | None = None,
    rows_per_shard: int = ROWS,
    on_progress: OnProgress = no_progress,
) -> Manifest:
    """Checks a stream of records and writes it as a data set: shards, rejects.csv, and the manifest last.

    records      consumed once, in order; memory holds a few tasks and one open shard a split, however many there are
    out          the folder to be; written as ``.NAME.partial`` beside it and renamed when complete. The same call after a kill goes on
    facts        protocol, licence, revision and the like, told in the manifest as they are
    config       what the records depend on; a partial data set made with another is thrown away
    root         real path of the folder that every media path starts with and may not leave
    image_size   short side in pixels above which pictures are re-encoded (JPEG); None keeps the original bytes
    unpaired     domains whose records may be without captions
    workers      processes; None = all cores, 0 or 1 = none besides this one
    max_rejects  the share of records, 0..1, that may be rejected; with ``total`` known, a run that has lost many more stops at once
    total        records to come, where known
    Raises       DataError: ``out`` exists, another process is writing it, too many rejects, no usable record, an id twice
    """
    out = Path(os.path.abspath(out))
    refuse_overwrite(out)
    partial = out.with_name(f".{out.name}.partial")
    plan = {
        "name": name,
        "modalities": list(modalities),
        "facts": dict(facts or {}),
        "config": dict(config or {}),
        "rows": rows_per_shard,
    }
    plan["image_size"] = image_size
    rules = Rules(str(root) if root is not None else None, modalities, image_size, frozenset(unpaired))
    with lock.held(out, "data set"):
        _begin(partial, plan)
        seen = _write_shards(records, partial, rules, workers, total, rows_per_shard, max_rejects, on_progress)
        try:
            tally = summarise(partial)
            _refuse_losses(partial, tally, max_rejects)
        except DataError:
            (partial / _PLAN).unlink()  # the source will be mended, so the next run begins anew
            raise
        if tally.seen != seen:
            raise _changed(partial)
        fault.point("prepare.counted")
        manifest.write(
            partial,
            "dataset",
            facts={"name": name, "modalities": list(modalities), **(facts or {}), **tally.facts},
            config={**(config or {}), "image_size": image_size},
            files=tally.files,
        )
        fault.point("prepare.manifest")
        partial.rename(out)
        fault.point("prepare.renamed")
        for leftover in (out / _PLAN, *out.glob("*-[0-9]*.json")):
            leftover.unlink()
    return manifest.open(out, kind="dataset")


def refuse_overwrite(out: Path) -> None:
    """Raises DataError when something lies at ``out`` already (an empty folder is nothing)."""
    if out.is_dir() and not any(out.iterdir()):
        return
    if out.exists():
        what = "a data set is there already" if manifest.exists(out) else "something else is there already"
        raise DataError(what, where=out, expected="a new folder", next=f"--out OTHER, or: rm -r {out}")


def _refuse_losses(partial: Path, tally: Tally, max_rejects: float) -> None:
    if tally.rejected > max_rejects * tally.seen or tally.rejected == tally.seen:
        if not tally.seen:
            raise DataError("the source has no records", expected="at least one", next="look at --source and --limit")
        reasons = ", ".join(f"{reason} {count}" for reason, count in tally.facts["rejects"].items())
        share = math.ceil(100 * tally.rejected / tally.seen) / 100
        raise DataError(
            f"{tally.rejected} of {tally.seen} samples rejected ({reasons})",
            where=partial / REJECTS,
            expected=f"at most {max_rejects:.2%}",
            next="mend them" if tally.rejected == tally.seen else f"mend them, or --max-rejects {share:g}",
        )


def _begin(partial: Path, plan: Mapping[str, Any]) -> None:
    """Keeps what an interrupted run of the same plan has finished; anything else is cleared away."""
    text = json.dumps(plan, sort_keys=True, default=str)
    if partial.exists() and not ((partial / _PLAN).is_file() and (partial / _PLAN).read_text("utf-8") == text):
        shutil.rmtree(partial)
    partial.mkdir(exist_ok=True)
    manifest.sweep(partial)
    manifest.write_bytes(partial / _PLAN, text.encode())


def _write_shards(
    records: Iterable[PairRecord],
    partial: Path,
    rules: Rules,
    workers: int | None,
    total: int | None,
    rows_per_shard: int,
    max_rejects: float,
    tell: OnProgress,
) -> int:
    """Returns how many records went by, those of shards that were finished before included; stops when too many are lost."""
    opened: dict[str, _Open] = {}
    skip: dict[str, deque[tuple[int, str, int]]] = {}  # of shards finished before: records, digest, rejects
    done = rejected = resumed = 0
    clock = time.perf_counter()

    def unfinished() -> Iterator[PairRecord]:
        nonlocal done, rejected, resumed
        for record in records:
            split = _bucket(record)
            if split not in skip:
                opened[split] = _Open()
                skip[split] = deque((j["seen"], j["digest"], len(j["rejects"])) for j in journals(partial, split))
            if not skip[split]:
                yield record
                continue
            shard, (seen, digest, lost) = opened[split], skip[split][0]
            _note(shard, record)
            done += 1
            resumed += 1
            if shard.journal["seen"] == seen:
                if shard.digest.hexdigest() != digest:
                    raise _changed(partial)
                rejected += lost
                opened[split] = _Open(index=shard.index + 1, digest=shard.digest)
                skip[split].popleft()
                tell(done, total, {"rejects": rejected, "resumed": True})

    schema = _schema(rules.modalities)
    with closing(checked(unfinished(), rules, workers)) as outcomes:
        for record, result in outcomes:
            split = _bucket(record)
            shard = opened[split]
            _note(shard, record)
            done += 1
            _put(shard, result, rules.modalities)
            rejected += isinstance(result, Rejected)
            if shard.journal["seen"] >= rows_per_shard or shard.size >= BYTES:
                _close(partial, split, shard, schema)
                opened[split] = _Open(index=shard.index + 1, digest=shard.digest)
            tell(done, total, {"rejects": rejected, "samples/s": (done - resumed) / (time.perf_counter() - clock)})
            if total is not None and rejected > max(HOPELESS, max_rejects * max(total, done)):
                break
    for split, shard in opened.items():
        if shard.journal["seen"] and not skip[split]:
            _close(partial, split, shard, schema)
    return done


def _bucket(record: PairRecord) -> str:
    """The split whose journal a record goes to; one that cannot be in a file name ("../x") has the nameless one."""
    return record.split if SPLIT_NAME.fullmatch(record.split) else ""


def _changed(partial: Path) -> DataError:
    return DataError(
        "the source changed since the interrupted run", where=partial, next=f"rm -r {partial}, then the same command"
    )


def _note(shard: _Open, record: PairRecord) -> None:
    shard.journal["seen"] += 1
    shard.digest.update(
        repr((record.id, record.group, record.domain, record.label, record.family, list(record.captions))).encode()
    )


def _put(shard: _Open, result: Passed | Rejected, modalities: tuple[str, str]) -> None:
    journal = shard.journal
    if isinstance(result, Rejected):
        journal["rejects"].append([result.id, result.split, result.reason, result.where])
        return
    shard.rows.append(result.row)
    shard.size += sum(len(result.row[m]) for m in modalities if m != "text")
    journal["cleaned"] += result.cleaned
    journal["dropped"] += result.dropped
    journal["sha1"].append(result.sha1)
    for name, value in result.measures.items():
        journal["measures"].setdefault(name, []).append(value)


def _close(partial: Path, split: str, shard: _Open, schema: pa.Schema) -> None:
    """A shard and then its journal, each whole or absent: a shard without a journal was not finished."""
    stem = f"{split}-{shard.index:05d}"
    if shard.rows:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, schema) as stream:
            stream.write_table(pa.Table.from_pylist(shard.rows, schema=schema))
        fault.point("prepare.before")
        manifest.write_bytes(partial / f"{stem}.arrow", sink.getvalue())
        fault.point("prepare.shard")
    shard.journal |= {"rows": len(shard.rows), "digest": shard.digest.hexdigest()}
    manifest.write_bytes(partial / f"{stem}.json", json.dumps(shard.journal).encode())
    fault.point("prepare.journal")


def _schema(modalities: tuple[str, str]) -> pa.Schema:
    texts = [(name, pa.string()) for name in ("id", "group", "domain", "label", "family")]
    media = [(name, pa.binary()) for name in modalities if name != "text"]
    return pa.schema([*texts, ("captions", pa.list_(pa.string())), ("meta", pa.string()), *media])


__all__ = ["PairData", "Split", "open", "refuse_overwrite", "write"]
