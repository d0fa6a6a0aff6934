"""The vectors of an index: exact search by blocked products over a memory map, or a faiss index with a tuned recall."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ccaco_cli.core.errors import ConfigError

if TYPE_CHECKING:
    from ccaco_cli.core.retrieval.filters import Selection

Array = np.ndarray[Any, Any]
FILES = VECTORS, APPROXIMATE = "vectors.npy", "vectors.faiss"
DATABASE = "milvus.json"
"""File that says in which database the vectors of a side lie, if they do not lie in its folder."""
EXACT_BELOW = 1_000_000
"""Rows up to which ``auto`` searches exactly: 0.2 s a query there, limited by memory bandwidth."""
TARGET = 0.98
QUERIES = 1000
_SCORES = 2**20  # of one tile: 4 MiB, which stay in a core's cache
_ROWS = 2**14  # most rows of one tile
_GATHER = 2  # rows are gathered where a selection keeps at most one in so many, and masked where more
EXACT_SELECTION = 200_000
"""Selected rows up to which an approximate index searches them exactly: 0.05 s a query."""
_WIDER = 8  # candidates of a compressed index, in units of k, that are scored again by their exact vectors


class Vectors(Protocol):
    """What an index's search needs."""

    @property
    def ntotal(self) -> int:
        """Rows that are searched."""
        ...

    @property
    def d(self) -> int:
        """Their width."""
        ...

    def search(self, queries: Array, k: int, selection: Selection | None = None) -> tuple[Array, Array]:
        """Finds the k best rows of each query.

        Args:
            queries: [q, E] float32, unit norm.
            selection: the rows that may be returned; None = all of them.
        Returns:
            (cosines, rows), both [q, at most k], best first; row -1 where an approximate index returns fewer.
        Raises:
            FilterError: the condition of the selection cannot be evaluated.
        """
        ...

    def read(self, rows: Array) -> Array:
        """The vectors of some rows, [n, E] float32, unit norm."""
        ...


@dataclass(frozen=True)
class Built:
    """A built vector index, as the manifest describes it.

    Attributes:
        type: flat | ivf | hnsw | ivfpq.
        recall: share of the exact best ten that it returns for queries of the data set, 0..1.
        setting: the search setting that this recall needs (lists probed, or candidates kept); 0 = none.
    """

    type: str
    recall: float = 1.0
    setting: int = 0


class Flat:
    """Every vector, exactly: [n, E] float32 by memory map."""

    def __init__(self, path: Path):
        self.rows = np.load(path, mmap_mode="r", allow_pickle=False)

    @property
    def ntotal(self) -> int:
        return len(self.rows)

    @property
    def d(self) -> int:
        return int(self.rows.shape[1])

    def search(self, queries: Array, k: int, selection: Selection | None = None) -> tuple[Array, Array]:
        return _exact_search(self.rows, queries, k, selection)

    def read(self, rows: Array) -> Array:
        return np.asarray(self.rows[rows])


def _exact_search(vectors: Array, queries: Array, k: int, selection: Selection | None) -> tuple[Array, Array]:
    """The k best rows of vectors [n, E], tile by tile; of a selection, fewer where it holds fewer."""
    queries = np.ascontiguousarray(queries, np.float32)
    selected = None if selection is None else selection.rows
    count = len(vectors) if selected is None else len(selected)
    k = min(k, count)
    best = np.full((len(queries), k), -np.inf, np.float32)
    where = np.full((len(queries), k), -1, np.int64)
    if not k:
        return best, where
    step = max(k, min(_ROWS, _SCORES // max(1, len(queries))))
    for numbers, scores in _score_tiles(vectors, queries, selected, step):
        better = np.flatnonzero(scores > best[:, -1:])  # all of the first tile, few of those behind it
        query, column = np.divmod(better, scores.shape[1])
        counts = np.bincount(query, minlength=len(queries))
        candidates = np.full((len(queries), k + counts.max(initial=0)), -np.inf, np.float32)
        rows = np.full(candidates.shape, -1)
        new = np.arange(candidates.shape[1]) - k < counts[:, None]
        new[:, :k] = False
        candidates[:, :k], rows[:, :k] = best, where
        candidates[new], rows[new] = scores.ravel()[better], numbers[column]
        top = _top(candidates, k)
        best, where = np.take_along_axis(candidates, top, 1), np.take_along_axis(rows, top, 1)
    return best, where


def _score_tiles(vectors: Array, queries: Array, selected: Array | None, step: int) -> Iterator[tuple[Array, Array]]:
    """Yields (row numbers [m], scores [q, m]); a row that is not selected is left out, or its score is -inf."""
    if selected is not None and len(selected) * _GATHER <= len(vectors):
        for first in range(0, len(selected), step):
            numbers = selected[first : first + step]
            yield numbers, queries @ vectors[numbers].T
        return
    left_out = None if selected is None else np.ones(len(vectors), bool)
    if left_out is not None:
        left_out[selected] = False
    for first in range(0, len(vectors), step):
        scores = queries @ vectors[first : first + step].T
        if left_out is not None:
            scores[:, left_out[first : first + step]] = -np.inf
        yield np.arange(first, first + scores.shape[1]), scores


@dataclass
class Approximate:
    """A faiss index of the inner product; its candidates are scored again by the exact vectors [n, E]."""

    index: Any
    exact: Array

    @classmethod
    def open(cls, folder: Path) -> Approximate:
        import faiss

        # lists stay on disk; a graph (HNSW) is read whole
        index = faiss.read_index(str(folder / APPROXIMATE), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
        return cls(index, np.load(folder / VECTORS, mmap_mode="r", allow_pickle=False))

    @property
    def ntotal(self) -> int:
        return len(self.exact)

    @property
    def d(self) -> int:
        return int(self.exact.shape[1])

    def search(self, queries: Array, k: int, selection: Selection | None = None) -> tuple[Array, Array]:
        if selection is not None and len(selection.rows) <= EXACT_SELECTION:
            return _exact_search(self.exact, queries, k, selection)
        queries, k = np.ascontiguousarray(queries, np.float32), min(k, self.ntotal)
        if selection is None:
            return self._rescored(queries, k, None)
        return self._search_selected(queries, k, selection.rows)

    def _rescored(self, queries: Array, k: int, parameters: Any) -> tuple[Array, Array]:
        """Candidates of faiss, ranked by their exact vectors."""
        _, rows = self.index.search(queries, min(self.ntotal, _WIDER * k), params=parameters)
        scores = np.einsum("qe,qce->qc", queries, self.exact[np.maximum(rows, 0)])
        scores[rows < 0] = -np.inf
        keep = _top(scores, k)
        return np.take_along_axis(scores, keep, 1), np.take_along_axis(rows, keep, 1)

    def _search_selected(self, queries: Array, k: int, selected: Array) -> tuple[Array, Array]:
        """Widens the search until its answers stay: selected rows may lie far from where a query would look for them.

        Args:
            selected: [m] rows, more than ``EXACT_SELECTION``.
        """
        faiss: Any = import_module("faiss")  # its type stubs do not know the arguments that it takes
        chosen = np.zeros(self.ntotal, bool)
        chosen[selected] = True
        selector = faiss.IDSelectorBitmap(np.packbits(chosen, bitorder="little"))
        graph = isinstance(self.index, faiss.IndexHNSW)
        setting = self.index.hnsw.efSearch if graph else self.index.nprobe
        max_setting = self.ntotal if graph else self.index.nlist
        width = int(setting * self.ntotal / len(selected)) + 1
        cosines = np.full((len(queries), k), -np.inf, np.float32)
        rows = np.full((len(queries), k), -1, np.int64)
        waiting = np.arange(len(queries))
        while len(waiting):
            width = min(width, max_setting)
            parameters = (
                faiss.SearchParametersHNSW(sel=selector, efSearch=width)
                if graph
                else faiss.SearchParametersIVF(sel=selector, nprobe=width)
            )
            scores, answers = self._rescored(queries[waiting], k, parameters)
            changed = (answers != rows[waiting]).any(1)
            cosines[waiting], rows[waiting] = scores, answers
            waiting = waiting[changed & (width < max_setting)]
            width *= 2
        return cosines, rows

    def read(self, rows: Array) -> Array:
        return np.asarray(self.exact[rows])


def _top(scores: Array, k: int) -> Array:
    """Columns of the k best of each row, best first; equal scores in order of their columns."""
    k = min(k, scores.shape[1])
    if k == scores.shape[1]:
        columns = np.broadcast_to(np.arange(k), scores.shape)
    else:
        columns = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        last = np.take_along_axis(scores, columns, 1).min(1, keepdims=True)
        for row in np.flatnonzero((scores >= last).sum(1) > k):  # of equal scores at the end, the first ones
            better = np.flatnonzero(scores[row] > last[row])
            columns[row] = np.concatenate([better, np.flatnonzero(scores[row] == last[row])[: k - len(better)]])
    columns = np.sort(columns, 1)
    order = np.argsort(-np.take_along_axis(scores, columns, 1), axis=1, kind="stable")
    return np.take_along_axis(columns, order, 1)


@dataclass(frozen=True)
class _Kind:
    """One approximate index.

    Attributes:
        make: (rows, width) -> an empty faiss index.
        tune: sets the search setting of an index.
        start: smallest search setting.
        max_setting: rows -> largest search setting.
    """

    make: Callable[[int, int], Any]
    tune: Callable[[Any, int], None]
    start: int
    max_setting: Callable[[int], int]


def _lists(rows: int) -> int:
    return max(1, min(int(4 * rows**0.5), rows // 39))  # faiss wants 39 training points a centroid


def _ivf(rows: int, width: int) -> Any:
    import faiss

    return faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, _lists(rows), faiss.METRIC_INNER_PRODUCT)


def _ivfpq(rows: int, width: int) -> Any:
    import faiss

    max_bytes = min(width, max(16, width // 4))  # of a row
    parts = next(p for p in range(max_bytes, 0, -1) if width % p == 0)
    bits = min(8, max(1, int(np.log2(max(2, rows // 39)))))
    return faiss.IndexIVFPQ(faiss.IndexFlatIP(width), width, _lists(rows), parts, bits, faiss.METRIC_INNER_PRODUCT)


def _hnsw(rows: int, width: int) -> Any:
    import faiss

    index = faiss.IndexHNSWFlat(width, 32, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = 200
    return index


def _probe(index: Any, value: int) -> None:
    index.nprobe = value


def _widen(index: Any, value: int) -> None:
    index.hnsw.efSearch = value


KINDS: dict[str, _Kind | None] = {
    "flat": None,
    "ivf": _Kind(_ivf, _probe, 1, _lists),
    "hnsw": _Kind(_hnsw, _widen, 16, lambda rows: min(rows, 4096)),
    "ivfpq": _Kind(_ivfpq, _probe, 1, _lists),
}


def check(kind: str) -> None:
    """Raises ConfigError: no such type of index."""
    if kind not in ("auto", *KINDS):
        raise ConfigError("no such type of index", where=f"--index-type {kind}", expected=" | ".join(("auto", *KINDS)))


def write(folder: Path, z: Array, kind: str, queries: Array | None, target: float = TARGET) -> Built:
    """Writes vectors and, for an approximate type, its index with the smallest search setting that reaches the target.

    Args:
        z: [n, E], unit norm.
        kind: auto (exact below a million rows, else ivf) | flat | ivf | hnsw | ivfpq.
        queries: [m, E] vectors of the other modality, on which recall is measured: random vectors would not tell the
            recall of real queries. None = ``z`` itself.
        target: recall@10, 0..1.
    Returns:
        The type, and the recall that was reached.
    Raises:
        ConfigError: no such type.
    """
    check(kind)
    vectors = np.array(z, np.float32, order="C")
    vectors /= np.maximum(
        np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12
    )  # float16 shards are unit norm to three digits only
    np.save(folder / VECTORS, vectors)
    return build(folder, kind, queries, target)


def build(folder: Path, kind: str, queries: Array | None = None, target: float = TARGET) -> Built:
    """Builds the index of vectors that a folder holds already (``VECTORS``), as ``write`` does.

    Raises:
        ConfigError: no such type.
    """
    check(kind)
    vectors = np.load(folder / VECTORS, mmap_mode="r", allow_pickle=False)
    name = kind if kind != "auto" else "flat" if len(vectors) < EXACT_BELOW else "ivf"
    approximate = KINDS[name]
    if approximate is None:
        return Built(name)
    import faiss

    index = approximate.make(*vectors.shape)
    rng = np.random.default_rng(0)
    index.train(vectors[np.sort(rng.permutation(len(vectors))[: 256 * _lists(len(vectors))])])
    index.add(vectors)
    test_queries = vectors if queries is None else np.asarray(queries, np.float32)
    test_queries = test_queries[np.sort(rng.permutation(len(test_queries))[:QUERIES])]
    wanted = Flat(folder / VECTORS).search(test_queries, 10)[1]
    setting, max_setting = approximate.start, approximate.max_setting(len(vectors))
    while True:
        approximate.tune(index, setting)
        recall = recall_of(Approximate(index, vectors).search(test_queries, 10)[1], wanted)
        if recall >= target or setting >= max_setting:
            faiss.write_index(index, str(folder / APPROXIMATE))  # with its setting
            return Built(name, round(recall, 4), setting)
        setting = min(2 * setting, max_setting)


def open(folder: Path) -> Vectors:
    """The vectors of one side of an index."""
    if (folder / DATABASE).exists():
        from ccaco_cli.core.retrieval.milvus import MilvusVectors

        return MilvusVectors.open(folder)
    return Approximate.open(folder) if (folder / APPROXIMATE).exists() else Flat(folder / VECTORS)


def recall_of(rows: Array, exact_rows: Array) -> float:
    """Share of the exact best rows [q, k] that a search has returned, 0..1."""
    return float(np.mean([len(np.intersect1d(r, e)) / len(e) for r, e in zip(rows, exact_rows, strict=True)]))
