"""A prepared data set as the rest of the house sees it: columns in memory, media by memory map."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ccaco_cli.core import manifest
from ccaco_cli.core.errors import DataError, ManifestError
from ccaco_cli.core.manifest import Manifest

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Split:
    """The rows of one split, or some of them. Cheap to pickle: media stay in their files.

    name     train | val | test ...
    rows     [n] int64, where each row lies in the whole split
    group    [n] int64, dense over the data set; equal = means the same
    domain   [n] int64, index into ``domains``
    label    [n] int64, index into ``labels``; -1 = none
    family   [n] int64; hard negatives of each other share one, a row without family has one of its own
    paired   how many rows have a partner, None = all. Captions of the rows behind them are withheld: nobody reads them here
    """

    name: str
    modalities: tuple[str, str]
    rows: Array
    group: Array
    domain: Array
    label: Array
    family: Array
    domains: tuple[str, ...]
    labels: tuple[str, ...]
    _data: datasets.Dataset
    paired: int | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getstate__(self) -> dict[str, Any]:
        # texts are read again from the files where they are asked for
        return {key: value for key, value in self.__dict__.items() if key not in ("ids", "captions", "_texts")}

    def select(self, rows: Any) -> Split:
        """These rows (indices or a boolean mask over this split's rows), in this order; media are not copied."""
        if self.paired is not None:
            raise DataError("rows cannot be chosen from a split with withheld captions", where=self.name)
        columns = {name: getattr(self, name)[rows] for name in ("rows", "group", "domain", "label", "family")}
        return Split(self.name, self.modalities, domains=self.domains, labels=self.labels, _data=self._data, **columns)

    @cached_property
    def ids(self) -> list[str]:
        """[n] ids."""
        found: list[str] = self._column("id").to_pylist()
        return found

    @property
    def key(self) -> str:
        """Names these very rows of the data set, for caches of what was computed from them."""
        if self._whole and self.paired is None:
            return self.name
        return f"{self.name}-{hashlib.sha256(self.rows.tobytes() + repr(self.paired).encode()).hexdigest()[:16]}"

    @cached_property
    def _texts(self) -> pa.ChunkedArray:
        return self._column("captions", self.rows[: self.paired])

    @cached_property
    def captions(self) -> list[str]:
        """All captions, row by row."""
        found: list[str] = pc.list_flatten(self._texts).to_pylist()
        return found

    @cached_property
    def caption_count(self) -> Array:
        """[n] int64, how many captions each row has, none behind ``paired``; the texts themselves stay unread."""
        found: Array = pc.list_value_length(self._data.data.column("captions")).to_numpy().astype(np.int64)[self.rows]
        found[self.paired if self.paired is not None else len(self) :] = 0
        return found

    @cached_property
    def caption_start(self) -> Array:
        """[n + 1] int64; the captions of row r are ``captions[caption_start[r]:caption_start[r + 1]]``, none of a row behind ``paired``."""
        return np.concatenate([[0], np.cumsum(self.caption_count)]).astype(np.int64)

    @cached_property
    def caption_row(self) -> Array:
        """[captions] int64, the row of each caption."""
        return np.repeat(np.arange(len(self)), np.diff(self.caption_start))

    def media(self, modality: str, rows: Sequence[int] | Array) -> list[bytes]:
        """Encoded bytes of one modality for these rows; raises DataError for a modality the data set does not have."""
        if modality not in self.modalities or modality == "text":
            have = ", ".join(m for m in self.modalities if m != "text")
            raise DataError(f"no media of modality {modality!r}", where=self.name, expected=have)
        column = self._data.data.column(modality)
        return [column[int(row)].as_py() for row in self.rows[np.asarray(rows, np.int64)]]

    def meta(self, row: int) -> dict[str, Any]:
        """What else the source told of a row."""
        found: dict[str, Any] = json.loads(self._data.data.column("meta")[int(self.rows[row])].as_py())
        return found

    @property
    def _whole(self) -> bool:
        return len(self.rows) == len(self._data) and bool((self.rows == np.arange(len(self.rows))).all())

    def _column(self, name: str, rows: Array | None = None) -> pa.ChunkedArray:
        column = self._data.data.column(name)
        return (
            column
            if self._whole and self.paired is None
            else column.take(pa.array(self.rows if rows is None else rows))
        )


@dataclass(frozen=True, eq=False)
class PairData:
    """An opened data set, by the name of its folder; ``splits`` names those that have rows."""

    manifest: Manifest
    name: str
    modalities: tuple[str, str]
    splits: tuple[str, ...]

    def split(self, name: str) -> Split:
        """Raises DataError for a split that is not there, with those that are."""
        if name not in self.splits:
            raise DataError(f"no split {name!r}", where=self.manifest.path, expected=f"one of {', '.join(self.splits)}")
        start = sum(len(self._tables[before]) for before in self.splits[: self.splits.index(name)])
        here = slice(start, start + len(self._tables[name]))
        codes, names = self._codes
        return Split(
            name=name,
            modalities=self.modalities,
            rows=np.arange(len(self._tables[name])),
            group=codes["group"][here],
            domain=codes["domain"][here],
            label=codes["label"][here],
            family=codes["family"][here],
            domains=names["domain"],
            labels=names["label"],
            _data=self._tables[name],
        )

    @cached_property
    def _tables(self) -> dict[str, datasets.Dataset]:
        shards: dict[str, list[datasets.Dataset]] = {name: [] for name in self.splits}
        for entry in self.manifest.files:
            split, _, suffix = entry["name"].rpartition("-")
            if suffix.endswith(".arrow"):
                shards.setdefault(split, []).append(self._shard(self.manifest.path / entry["name"]))
        if empty := [name for name in self.splits if not shards[name]]:
            raise ManifestError(f"no shard of split {empty[0]}", where=self.manifest.path, next="ccaco prepare NAME")
        return {name: datasets.concatenate_datasets(parts) for name, parts in shards.items()}

    def _shard(self, file: Path) -> datasets.Dataset:
        """One shard by memory map; its offsets are looked at, for what reads them trusts them."""
        try:
            found = datasets.Dataset.from_file(str(file))
            for name in (
                "id",
                "group",
                "domain",
                "label",
                "family",
                "captions",
                "meta",
                *(m for m in self.modalities if m != "text"),
            ):
                found.data.column(name).validate(full=True)
            return found
        except (pa.ArrowException, OSError, KeyError, ValueError, TypeError) as error:
            what = " ".join(str(error).split())[:100]
            raise ManifestError(f"a damaged shard ({what})", where=file, next="ccaco prepare NAME") from None

    @cached_property
    def _codes(self) -> tuple[dict[str, Array], dict[str, tuple[str, ...]]]:
        """Codes over all splits, in order of first mention, so that a group has one number wherever it is."""
        codes, names = {}, {}
        for column in ("group", "domain", "label", "family"):
            chunks = [chunk for table in self._tables.values() for chunk in table.data.column(column).chunks]
            values = pa.chunked_array(chunks, pa.string())
            known = pc.unique(values).to_pylist()
            if column in ("label", "family"):
                known = [name for name in known if name]
            found = pc.index_in(values, value_set=pa.array(known, pa.string()))
            code = pc.fill_null(found, -1).to_numpy().astype(np.int64)
            if column == "family":
                code = np.where(code < 0, len(known) + np.arange(len(code)), code)
            codes[column], names[column] = code, tuple(known)
        return codes, names


def open(path: Path, verify: str = manifest.QUICK) -> PairData:
    """Opens a prepared folder; raises ManifestError when it is none, or a file of it is missing or altered."""
    found = manifest.open(Path(path), kind="dataset", verify=verify)
    try:
        first, second = map(str, found.facts["modalities"])
        splits = tuple(name for name, counts in found.facts["splits"].items() if counts["samples"])
        return PairData(found, found.path.resolve().name, (first, second), splits)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ManifestError(
            f"unreadable manifest ({error})", where=path, expected="a dataset", next="ccaco prepare NAME"
        ) from None
