"""An opened data set: small columns in memory, media by memory map."""

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
from ccaco_cli.core.data.split_shares import prepare_command
from ccaco_cli.core.errors import DataError, ManifestError
from ccaco_cli.core.manifest import Manifest
from ccaco_cli.core.shell import quoted_path

Array = np.ndarray[Any, Any]
ALL = "all"
"""Name of the split that is every split together."""


@dataclass(frozen=True, eq=False)
class Split:
    """The rows of one split, or a selection of them. Cheap to pickle, because media stay in their files.

    Attributes:
        name: train | val | test ...
        modalities: of every sample: the two of a pair, or one.
        rows: [n] int64, position of each row in the stored split.
        group: [n] int64, dense over the data set; rows of one group have the same meaning.
        domain: [n] int64, index into ``domains``.
        label: [n] int64, index into ``labels``; -1 = none.
        family: [n] int64; hard negatives of each other share a family, any other row has a family to itself.
        domains, labels: names of the codes.
        paired: number of rows that have a partner, None = all. The captions of the rows after them are withheld.
    """

    name: str
    modalities: tuple[str, ...]
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
        # texts are read again from the files when they are needed
        return {key: value for key, value in self.__dict__.items() if key not in ("ids", "captions", "_texts")}

    def select(self, rows: Any) -> Split:
        """The split with these rows only (indices or a boolean mask), in this order; media are not copied."""
        if self.paired is not None:
            raise DataError("rows cannot be chosen from a split with withheld captions", where=self.name)
        columns = {name: getattr(self, name)[rows] for name in ("rows", "group", "domain", "label", "family")}
        return Split(self.name, self.modalities, domains=self.domains, labels=self.labels, _data=self._data, **columns)

    @cached_property
    def ids(self) -> list[str]:
        """[n] ids."""
        ids: list[str] = self._column("id").to_pylist()
        return ids

    @property
    def key(self) -> str:
        """Identifies this selection of rows in the keys of caches."""
        if self._is_complete and self.paired is None:
            return self.name
        return f"{self.name}-{hashlib.sha256(self.rows.tobytes() + repr(self.paired).encode()).hexdigest()[:16]}"

    @cached_property
    def _texts(self) -> pa.ChunkedArray:
        return self._column("captions", self.rows[: self.paired])

    @cached_property
    def captions(self) -> list[str]:
        """All captions, row by row."""
        captions: list[str] = pc.list_flatten(self._texts).to_pylist()
        return captions

    @cached_property
    def caption_count(self) -> Array:
        """[n] int64, number of captions of each row, 0 for rows after ``paired``; the texts are not read."""
        counts: Array = pc.list_value_length(self._data.data.column("captions")).to_numpy().astype(np.int64)[self.rows]
        counts[self.paired if self.paired is not None else len(self) :] = 0
        return counts

    @cached_property
    def caption_start(self) -> Array:
        """[n + 1] int64; row r has ``captions[caption_start[r] : caption_start[r + 1]]``."""
        return np.concatenate([[0], np.cumsum(self.caption_count)]).astype(np.int64)

    @cached_property
    def caption_row(self) -> Array:
        """[captions] int64, the row of each caption."""
        return np.repeat(np.arange(len(self)), np.diff(self.caption_start))

    def media(self, modality: str, rows: Sequence[int] | Array) -> list[bytes]:
        """The stored bytes of one modality for these rows.

        Raises DataError: the data set does not have this modality.
        """
        if modality not in self.modalities or modality == "text":
            available = ", ".join(m for m in self.modalities if m != "text")
            raise DataError(f"no media of modality {modality!r}", where=self.name, expected=available)
        column = self._data.data.column(modality)
        return [column[int(row)].as_py() for row in self.rows[np.asarray(rows, np.int64)]]

    def meta(self, row: int) -> dict[str, Any]:
        """The other facts that the source has about a row (``PairRecord.meta``)."""
        return self.metas([row])[0]

    def metas(self, rows: Sequence[int] | Array) -> list[dict[str, Any]]:
        """``meta`` of several rows."""
        column = self._data.data.column("meta")
        return [json.loads(column[int(row)].as_py()) for row in self.rows[np.asarray(rows, np.int64)]]

    @property
    def _is_complete(self) -> bool:
        return len(self.rows) == len(self._data) and bool((self.rows == np.arange(len(self.rows))).all())

    def _column(self, name: str, rows: Array | None = None) -> pa.ChunkedArray:
        column = self._data.data.column(name)
        return (
            column
            if self._is_complete and self.paired is None
            else column.take(pa.array(self.rows if rows is None else rows))
        )


@dataclass(frozen=True, eq=False)
class PreparedData:
    """An opened data set, of pairs or of one modality.

    Attributes:
        manifest: of the data set.
        name: of its folder.
        modalities: of every sample: the two of a pair, or one.
        splits: names of the splits that have rows.
    """

    manifest: Manifest
    name: str
    modalities: tuple[str, ...]
    splits: tuple[str, ...]

    def split(self, name: str) -> Split:
        """One split; ``all`` is every split together, in their order.

        Raises DataError that lists the splits: there is no such split.
        """
        if name not in self.splits and name != ALL:
            expected = f"one of {', '.join(self.splits)}, or {ALL}"
            can_divide = name in ("val", "test") and "train" in self.splits
            next_step = prepare_command(self.manifest, [name]) if can_divide else None
            raise DataError(f"no split {name!r}", where=self.manifest.path, expected=expected, next=next_step)
        if name in self.splits:
            start = sum(len(self._tables[before]) for before in self.splits[: self.splits.index(name)])
            table = self._tables[name]
        else:
            start, table = 0, datasets.concatenate_datasets([self._tables[part] for part in self.splits])
        rows = slice(start, start + len(table))
        codes, names = self._codes
        return Split(
            name=name,
            modalities=self.modalities,
            rows=np.arange(len(table)),
            group=codes["group"][rows],
            domain=codes["domain"][rows],
            label=codes["label"][rows],
            family=codes["family"][rows],
            domains=names["domain"],
            labels=names["label"],
            _data=table,
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
        """One shard by memory map. Its offsets are validated, because readers use them without checks."""
        names = ["id", "group", "domain", "label", "family", "captions", "meta"]
        try:
            shard = datasets.Dataset.from_file(str(file))
            for name in [*names, *(m for m in self.modalities if m != "text")]:
                shard.data.column(name).validate(full=True)
            return shard
        except (pa.ArrowException, OSError, KeyError, ValueError, TypeError) as error:
            message = " ".join(str(error).split())[:100]
            raise ManifestError(f"a damaged shard ({message})", where=file, next="ccaco prepare NAME") from None

    @cached_property
    def _codes(self) -> tuple[dict[str, Array], dict[str, tuple[str, ...]]]:
        """Codes over all splits, in order of first mention, so that a group has the same number in every split."""
        codes, names = {}, {}
        for column in ("group", "domain", "label", "family"):
            chunks = [chunk for table in self._tables.values() for chunk in table.data.column(column).chunks]
            values = pa.chunked_array(chunks, pa.string())
            known = pc.unique(values).to_pylist()
            if column in ("label", "family"):
                known = [name for name in known if name]
            index = pc.index_in(values, value_set=pa.array(known, pa.string()))
            code = pc.fill_null(index, -1).to_numpy().astype(np.int64)
            if column == "family":
                code = np.where(code < 0, len(known) + np.arange(len(code)), code)
            codes[column], names[column] = code, tuple(known)
        return codes, names


@dataclass(frozen=True, eq=False)
class PairData(PreparedData):
    """An opened data set of pairs.

    Attributes:
        modalities: the two of every pair.
    """

    modalities: tuple[str, str]


def open(path: Path, verify: str = manifest.QUICK) -> PairData:
    """Opens a prepared data set of pairs.

    Args:
        path: its folder.
        verify: quick | full, as ``manifest.open``.
    Raises:
        DataError: a data set of one modality, which has no pairs.
        ManifestError: not a data set, or one of its files is missing or altered.
    """
    data = open_any(path, verify)
    if not isinstance(data, PairData):
        index = quoted_path(f"{data.name}.idx")
        raise DataError(
            f"this data set has one modality ({data.modalities[0]}), and this needs pairs",
            where=path,
            expected="a data set of two modalities, such as images with captions",
            next=f"ccaco embed --model SPEC --dataset {quoted_path(path)} --index {index}",
        )
    return data


def open_any(path: Path, verify: str = manifest.QUICK) -> PreparedData:
    """Opens a prepared data set of two modalities (``PairData``) or of one.

    Args:
        path: its folder.
        verify: quick | full, as ``manifest.open``.
    Raises:
        ManifestError: not a data set, or one of its files is missing or altered.
    """
    opened = manifest.open(Path(path), kind="dataset", verify=verify)
    try:
        modalities = tuple(map(str, opened.facts["modalities"]))
        splits = tuple(name for name, counts in opened.facts["splits"].items() if counts["samples"])
        if not 1 <= len(modalities) <= 2:
            raise ValueError(f"{len(modalities)} modalities")
        data = PairData if len(modalities) == 2 else PreparedData
        return data(opened, opened.path.resolve().name, modalities, splits)  # type: ignore[arg-type]
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ManifestError(
            f"unreadable manifest ({error})", where=path, expected="a dataset", next="ccaco prepare NAME"
        ) from None
