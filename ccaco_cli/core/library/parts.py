"""Finished parts of an index of media files: what was read and encoded survives a process that is killed.

The parts lie in a hidden folder beside the index and are removed when its generation is complete. A part has the layout
of one modality of an index (vectors, tokens, items), and the state of the files that were read for it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa

from ccaco_cli.core import fault
from ccaco_cli.core.library import items
from ccaco_cli.core.library.hashing import FileState
from ccaco_cli.core.library.side_rows import SideRows
from ccaco_cli.core.retrieval import token_store, vectors

if TYPE_CHECKING:
    from ccaco_cli.core.library.reader import ReadFile
    from ccaco_cli.core.types import EncodedSamples

Array = np.ndarray[Any, Any]
FILES = "files.arrow"
FILE_COLUMNS = ("path", "size", "mtime_ns", "sha256", "problem", "where")
PART_FILES, PART_BYTES, PART_SECONDS = 1024, 1 << 28, 60.0
"""A part ends when it has so many files, bytes or seconds: a process that is killed loses at most this."""


def parts_folder(index: Path, key: Mapping[str, Any]) -> Path:
    """The folder for the parts of an index, for one model and its settings (``key``, JSON types, with ``modality``)."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    return root_folder(index) / str(key["modality"]) / digest


def root_folder(index: Path) -> Path:
    """The hidden folder beside an index that holds the parts for all models."""
    return index.with_name(f".{index.name}.parts")


def remove_parts(index: Path, modality: str) -> None:
    """Removes the parts of one modality, whose items are in the index now. Those of other modalities stay."""
    shutil.rmtree(root_folder(index) / modality, ignore_errors=True)
    with suppress(OSError):  # parts of another modality are there, or there is no such folder
        root_folder(index).rmdir()


class ReadFiles(Protocol):
    """Files that were read for an update: those of a ``Part``, or some whose contents were known."""

    @property
    def files(self) -> Mapping[str, Sequence[Any]]:
        """States of the files (``FileState``), as columns."""
        ...

    @property
    def rows(self) -> SideRows | None:
        """Contents that were encoded; None = there are none."""
        ...


class KnownFiles:
    """Files whose contents were known already, or that cannot be read."""

    rows = None

    def __init__(self, states: Sequence[FileState]):
        self.files = {name: [getattr(state, name) for state in states] for name in FILE_COLUMNS}


class Part:
    """A finished part, opened.

    Attributes:
        files: states of the files that were read for it (``FileState``), as columns.
        rows: vectors, tokens and content columns of the contents that were encoded; None = there are none.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    @cached_property
    def files(self) -> dict[str, list[Any]]:
        columns: dict[str, list[Any]] = pa.ipc.open_file(pa.memory_map(str(self.folder / FILES))).read_all().to_pydict()
        return columns

    @cached_property
    def rows(self) -> SideRows | None:
        return SideRows.open(self.folder) if (self.folder / vectors.VECTORS).exists() else None

    def is_complete(self) -> bool:
        """False where a power cut left files that do not belong together."""
        try:
            _ = self.files, self.rows
        except Exception:  # numpy and pyarrow raise many kinds for a broken file
            return False
        return True


def remove_unfinished(folder: Path) -> None:
    """Removes what killed processes have left. No process may be writing a part meanwhile."""
    for path in folder.glob(".part-*.tmp"):
        shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob("part-*"):
        if not Part(path).is_complete():
            shutil.rmtree(path, ignore_errors=True)


def finished_parts(folder: Path) -> list[Part]:
    """The parts that this and earlier processes have finished, oldest first."""
    parts = [Part(path) for path in sorted(folder.glob("part-*"), key=_order)]
    return [part for part in parts if part.is_complete()]


def _order(folder: Path) -> list[int]:
    """[number, rank]: the parts of a later process have higher numbers."""
    return [int(number) for number in folder.name.split("-")[1:]]


@dataclass
class PartWriter:
    """Collects files that were read and encoded, and writes them as parts.

    Attributes:
        folder: of the parts.
        store: how tokens are stored: an entry of ``token_store.STORES``, or none.
        rank: number of this process, which is in the names of its parts.
    """

    folder: Path
    store: str
    rank: int = 0
    _files: list[ReadFile] = field(default_factory=list)
    _encoded: list[EncodedSamples] = field(default_factory=list)
    _bytes: int = 0
    _begun: float = field(default_factory=time.monotonic)

    def add(self, files: Sequence[ReadFile], encoded: EncodedSamples | None) -> None:
        """Adds files, and what those of them that have a sample were encoded to, in order."""
        self._files += files
        if encoded is not None:
            self._encoded.append(encoded)
            tokens = encoded.tokens
            self._bytes += encoded.z.nbytes + (tokens.tokens.nbytes if tokens is not None else 0)
        self._bytes += sum(len(file.thumbnail) for file in files)
        seconds = time.monotonic() - self._begun
        if len(self._files) >= PART_FILES or self._bytes >= PART_BYTES or seconds >= PART_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes what was collected since the last part."""
        if self._files:
            self._write()
        self._files, self._encoded, self._bytes, self._begun = [], [], 0, time.monotonic()

    def _write(self) -> None:
        numbers = [_order(path)[0] for path in self.folder.glob("part-*")]
        name = f"part-{max(numbers, default=0) + 1}-{self.rank}"
        temp = self.folder / f".{name}.tmp"
        shutil.rmtree(temp, ignore_errors=True)
        temp.mkdir(parents=True)
        try:
            if self._encoded:
                self._write_rows(temp)
            fault.point("part.rows")
            _write_files(temp / FILES, (file.state for file in self._files))
            fault.point("part.files")
            temp.rename(self.folder / name)
            fault.point("part.renamed")
        finally:
            shutil.rmtree(temp, ignore_errors=True)

    def _write_rows(self, folder: Path) -> None:
        z = np.concatenate([encoded.z.numpy() for encoded in self._encoded]).astype(np.float32)
        z /= np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)
        np.save(folder / vectors.VECTORS, z)
        fault.point("part.vectors")
        if self.store != "none":
            with token_store.Writer(folder, self.store) as writer:
                for encoded in self._encoded:
                    writer.add(encoded.local_tokens.tokens.numpy(), encoded.local_tokens.mask.numpy())
        fault.point("part.tokens")
        items.write_contents(folder, [file for file in self._files if file.sample is not None])


def _write_files(path: Path, states: Iterable[FileState]) -> None:
    rows = list(states)
    table = pa.table({name: [getattr(state, name) for state in rows] for name in FILE_COLUMNS})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
