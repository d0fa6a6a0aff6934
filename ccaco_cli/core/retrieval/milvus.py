"""Vectors in a Milvus database: one collection for each modality, whose rows the companion folder names by key.

The key of an item is a hash of its columns and its vector. An item that stays as it is keeps its key, so an update
inserts only what is new. A reader ignores keys that its folder does not name, so it never shows a wrong item, even
while the collection is updated.
"""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ccaco_cli.core import fault
from ccaco_cli.core.errors import ConfigError, DataError
from ccaco_cli.core.retrieval import vectors
from ccaco_cli.core.retrieval.address import DatabaseAddress, of_companion
from ccaco_cli.core.retrieval.item_columns import CONTENT_COLUMNS
from ccaco_cli.core.retrieval.milvus_client import Client
from ccaco_cli.core.retrieval.milvus_fields import Fields
from ccaco_cli.core.retrieval.vectors import DATABASE, VECTORS, Array, Built, Flat

if TYPE_CHECKING:
    from ccaco_cli.core.retrieval.filters import Selection

KEYS = "keys.npy"
"""File of one side of a companion: the key of each row."""
MAX_HITS = 16_384
"""Most answers to a query that Milvus returns."""
ROWS_AT_ONCE = 1_000
BYTES_AT_ONCE = 16 << 20
"""Rows and bytes of texts of one insertion: a server refuses messages above 64 MiB."""
QUERIES_AT_ONCE = 64
_TIES = 16  # further answers that are fetched at first, because Milvus orders equal cosines in its own way
_RECALL_QUERIES = 100


@dataclass(frozen=True)
class _IndexKind:
    """A type of vector index of Milvus.

    Attributes:
        name: in Milvus.
        build: parameters that it is built with, from the number of rows and the width.
        setting: name of the search setting that is tuned; "" = none.
        start, limit: smallest and largest value of the setting.
    """

    name: str
    build: Mapping[str, int]
    setting: str = ""
    start: int = 1
    limit: int = 1


def _kind(kind: str, rows: int, width: int, embedded: bool) -> _IndexKind:
    """The type of an ``--index-type``; ``auto`` is exact in an embedded database and AUTOINDEX on a server."""
    lists = max(1, min(65_536, int(4 * rows**0.5)))
    parts = next(p for p in range(min(width, max(16, width // 4)), 0, -1) if width % p == 0)
    kinds = {
        "auto": _IndexKind("FLAT", {}) if embedded else _IndexKind("AUTOINDEX", {}),
        "flat": _IndexKind("FLAT", {}),
        "ivf": _IndexKind("IVF_FLAT", {"nlist": lists}, "nprobe", 1, lists),
        "hnsw": _IndexKind("HNSW", {"M": 32, "efConstruction": 200}, "ef", 16, 4096),
        "ivfpq": _IndexKind("IVF_PQ", {"nlist": lists, "m": parts, "nbits": 8}, "nprobe", 1, lists),
    }
    if embedded and kind == "ivfpq":
        raise ConfigError(
            "Milvus Lite has no index of this type", where=f"--index-type {kind}", expected="flat, ivf, hnsw or auto"
        )
    return kinds[kind]


class MilvusVectors:
    """The vectors of one side, searched by Milvus (``vectors.Vectors``).

    Args:
        address: of the database.
        keys: [n] int64, the key of each row.
        facts: which collection of which model it is, how wide, and how it is searched (``milvus.json``).
        client: connected to the database; None = connect at the first search.
    """

    def __init__(self, address: DatabaseAddress, keys: Array, facts: Mapping[str, Any], client: Client | None = None):
        self.address, self.keys = address, keys
        self.collection, self._width = str(facts["collection"]), int(facts["width"])
        self.model: dict[str, str] = dict(facts["model"])
        self.search_params: dict[str, int] = dict(facts["search"])
        if client is not None:
            self.client = client

    @classmethod
    def open(cls, folder: Path, client: Client | None = None) -> MilvusVectors:
        """The side in the folder ``ROOT/GENERATION/MODALITY`` of a companion."""
        facts = json.loads((folder / DATABASE).read_text("utf-8"))
        keys = np.load(folder / KEYS, mmap_mode="r", allow_pickle=False)
        return cls(of_companion(folder.parents[1], facts["database"]), keys, facts, client)

    @property
    def ntotal(self) -> int:
        return len(self.keys)

    @property
    def d(self) -> int:
        return self._width

    @cached_property
    def client(self) -> Client:
        client = Client.connect(self.address)
        weakref.finalize(self, client.close)  # gives an embedded database free
        client.check_model(self.collection, self.model, self._width)
        client.load(self.collection)
        return client

    @cached_property
    def _sorted_keys(self) -> tuple[Array, Array]:
        order = np.argsort(self.keys)
        return self.keys[order], order

    def rows_of(self, keys: Array) -> Array:
        """Rows of some keys; -1 for those that this side does not have."""
        known, order = self._sorted_keys
        place = np.minimum(np.searchsorted(known, keys), len(known) - 1)
        rows: Array = np.where(known[place] == keys, order[place], -1)
        return rows

    def search(self, queries: Array, k: int, selection: Selection | None = None) -> tuple[Array, Array]:
        """Finds the k best rows of each query; equal cosines in the order of their rows.

        Args:
            queries: [q, E] float32, unit norm.
            selection: its expression is a filter in Milvus's own language over the columns of the collection.
        Returns:
            (cosines, rows), both [q, k], best first; row -1 where fewer are found.
        Raises:
            DataError: the database is not there, refuses the filter, or holds vectors of another model.
        """
        k, where = min(k, self.ntotal), "" if selection is None else selection.expression
        if k > MAX_HITS:
            raise DataError(
                f"{k} answers to a query",
                where=str(self.address),
                expected=f"at most {MAX_HITS:,}, the limit of Milvus",
                next="a smaller -k and --rerank",
            )
        queries = np.ascontiguousarray(queries, np.float32)
        cosines = np.full((len(queries), k), -np.inf, np.float32)
        rows = np.full((len(queries), k), -1, np.int64)
        for first in range(0, len(queries), QUERIES_AT_ONCE):
            waiting = np.arange(first, min(first + QUERIES_AT_ONCE, len(queries)))
            limit = min(MAX_HITS, k + _TIES)
            while len(waiting):
                hits = self.client.search(self.collection, queries[waiting], limit, where, self.search_params)
                open_ties = []
                for query, (scores, keys) in zip(waiting, hits, strict=True):
                    complete = self._rank(scores, keys, cosines[query], rows[query], exhausted=len(keys) < limit)
                    open_ties += [] if complete or limit == MAX_HITS else [query]
                waiting, limit = np.array(open_ties, np.int64), min(MAX_HITS, 4 * limit)
        return cosines, rows

    def read(self, rows: Array) -> Array:
        """The vectors of some rows, [n, E] float32. Raises DataError: one of them is no longer in the database."""
        vectors = np.zeros((len(rows), self.d), np.float32)
        for first in range(0, len(rows), ROWS_AT_ONCE):
            part = slice(first, first + ROWS_AT_ONCE)
            vectors[part] = self.client.vectors(self.collection, self.keys[rows[part]])
        return vectors

    def _rank(self, scores: Array, keys: Array, best: Array, best_rows: Array, *, exhausted: bool) -> bool:
        """Fills in the best rows of one query; False if the next of Milvus's answers may belong among them."""
        rows = self.rows_of(keys)
        last = scores[-1] if len(scores) else -np.inf
        scores, rows = scores[rows >= 0], rows[rows >= 0]
        order = np.lexsort((rows, -scores))[: len(best)]
        best[: len(order)], best_rows[: len(order)] = scores[order], rows[order]
        return exhausted or (len(order) == len(best) and bool(last < best[-1]))


@dataclass(frozen=True)
class MilvusStore:
    """Writes the vectors of an index into a Milvus database.

    Attributes:
        address: of the database.
        model: {"name", "sha256"} of the model that made the vectors.
        replace: a collection of another model, or with other columns, is replaced.
    """

    address: DatabaseAddress
    model: Mapping[str, str]
    replace: bool = False

    @classmethod
    def of(cls, address: DatabaseAddress, name: str, identity: str, replace: bool = False) -> MilvusStore:
        """A store for vectors of the model that has this name and is identified by its content."""
        return cls(address, {"name": name, "sha256": hashlib.sha256(identity.encode()).hexdigest()}, replace)

    def check(self, modalities: Iterable[str], width: int) -> None:
        """Raises DataError: the database is not there, or holds vectors of another model, which are not replaced."""
        with Client.connect(self.address, create=True) as client:
            for modality in modalities:
                if not self.replace and client.exists(self._collection(modality)):
                    client.check_model(self._collection(modality), self.model, width)

    def move(self, generation: Path, z: Mapping[str, Array], kind: str) -> dict[str, Built]:
        """Moves the vectors of all sides of a generation into the database (``upload``).

        Args:
            z: modality -> [n, E]: vectors, on which the recall of the other side is measured.
        """
        return {
            modality: self.upload(generation / modality, kind, next((z[m] for m in z if m != modality), None))
            for modality in z
        }

    def upload(self, folder: Path, kind: str = "auto", queries: Array | None = None) -> Built:
        """Moves the vectors of one side into the database, with the columns of its items.

        Only items that the collection does not have are inserted. Writes the keys of the rows, and deletes the file of
        vectors.

        Args:
            folder: of the side, with its vectors and ``items.arrow``; its name is the modality.
            kind: auto | flat | ivf | hnsw | ivfpq.
            queries: [m, E] vectors of the other modality, on which recall is measured; None = the vectors themselves.
        Returns:
            The type, and the recall@10 that was measured.
        """
        exact = Flat(folder / VECTORS)
        collection = self._collection(folder.name)
        index = _kind(kind, exact.ntotal, exact.d, self.address.embedded)
        items = pa.ipc.open_file(pa.memory_map(str(folder / "items.arrow")))
        # a photo of a later update may be the first with a camera or a place
        later = CONTENT_COLUMNS | {"year": pa.int64()} if "path" in items.schema.names else {}
        fields = Fields.of(items.schema, later)
        keys = unique(np.concatenate([row_keys(part, exact.rows[rows]) for rows, part in _parts(items)]))
        with Client.connect(self.address, create=True) as client:
            client.prepare(collection, fields, exact.d, (index.name, index.build), self.model, self.replace)
            fresh = not client.count(collection)
            for rows, part in _parts(items):
                new = np.arange(len(part)) if fresh else np.flatnonzero(~client.contains(collection, keys[rows]))
                client.insert(collection, fields.rows(part.take(new), keys[rows][new], exact.rows[rows][new]))
                fault.point("milvus.batch")
            client.flush(collection)
            fault.point("milvus.flushed")
            np.save(folder / KEYS, keys)
            facts = {
                "database": self.address.facts,
                "collection": collection,
                "width": exact.d,
                "model": dict(self.model),
                "search": {},
            }
            side = MilvusVectors(self.address, keys, facts, client)
            recall = _tune(side, index, exact, exact.rows if queries is None else queries)
        (folder / DATABASE).write_text(json.dumps(facts | {"search": side.search_params}, indent=1), "utf-8")
        (folder / VECTORS).unlink()
        return Built(f"milvus {index.name}", recall, next(iter(side.search_params.values()), 0))

    def finish(self, folder: Path, modalities: Iterable[str]) -> None:
        """Deletes the rows that a finished generation does not name: of an older one, or of a killed run."""
        with Client.connect(self.address) as client:
            for modality in modalities:
                side = MilvusVectors.open(folder / modality, client)
                if client.count(side.collection) > side.ntotal:
                    strays = [keys[side.rows_of(keys) < 0] for keys in client.keys(side.collection)]
                    client.delete(side.collection, np.concatenate(strays))

    def _collection(self, modality: str) -> str:
        return f"{self.address.collection}_{modality}"


def row_keys(items: pa.Table, z: Array) -> Array:
    """[n] int64, not negative: the key of each item, a hash of its columns and of its vector in float16."""
    rounded = np.ascontiguousarray(z, np.float16)
    digests = (
        hashlib.blake2b(_known(item).encode("utf-8", "surrogateescape") + vector.tobytes(), digest_size=8).digest()
        for item, vector in zip(items.to_pylist(), rounded, strict=True)
    )
    return np.array([int.from_bytes(digest) >> 1 for digest in digests], np.int64)


def _known(item: Mapping[str, Any]) -> str:
    """The columns of an item without those that are null: a column that comes or goes does not change other items."""
    return repr(sorted((name, value) for name, value in item.items() if value is not None))


def unique(keys: Array) -> Array:
    """Gives equal keys, of equal items or by chance, other values; the same keys always become the same."""
    keys = keys.copy()
    while True:
        _, first = np.unique(keys, return_index=True)
        again = np.setdiff1d(np.arange(len(keys)), first)
        if not len(again):
            return keys
        # each in turn, so that the third of three equal keys differs from the second
        keys[again] = (keys[again].astype(np.uint64) * np.uint64(6364136223846793005) + np.uint64(1)) >> np.uint64(1)


def _parts(items: Any) -> Iterator[tuple[slice, pa.Table]]:
    """(rows, their columns) of the items without their pictures, as many as one insertion may hold."""
    first = 0
    for number in range(items.num_record_batches):
        batch = pa.Table.from_batches([items.get_batch(number)])
        batch = batch.select([f.name for f in batch.schema if not pa.types.is_binary(f.type)])
        step = max(1, min(ROWS_AT_ONCE, BYTES_AT_ONCE * len(batch) // max(1, batch.nbytes)))
        for start in range(0, len(batch), step):
            part = batch.slice(start, step)
            yield slice(first, first + len(part)), part
            first += len(part)


def _tune(side: MilvusVectors, index: _IndexKind, exact: Flat, queries: Array) -> float:
    """Widens the search of an approximate index until its recall@10 reaches the target; returns the recall."""
    rng = np.random.default_rng(0)
    test_queries = np.asarray(queries[np.sort(rng.permutation(len(queries))[:_RECALL_QUERIES])], np.float32)
    wanted = exact.search(test_queries, 10)[1]
    setting = index.start
    while True:
        side.search_params = {index.setting: setting} if index.setting else {}
        recall = vectors.recall_of(side.search(test_queries, 10)[1], wanted)
        if recall >= vectors.TARGET or setting >= index.limit:
            return round(recall, 4)
        setting = min(2 * setting, index.limit)
