"""``ccaco retrieve``: queries against an index."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from ccaco_cli.core import runtime
from ccaco_cli.core.retrieval.index import Index
from ccaco_cli.core.retrieval.search import Hit, ask, encode_query, search

AT_ONCE = 64


def by_text(index: Index, queries: Iterable[str], *, k: int, rerank: int | None) -> Iterator[tuple[str, list[Hit]]]:
    """(query, answers) in the order of the queries; blank lines are left out. Reads no further ahead than one batch."""
    index.other("text")
    if index.exported is None:
        runtime.limit_threads()
    stream = (q.strip() for q in queries)
    stream = (q for q in stream if q)
    while batch := list(islice(stream, AT_ONCE)):
        yield from zip(batch, ask(index, "text", batch, k, rerank), strict=True)


def by_file(index: Index, modality: str, file: Path, *, k: int, rerank: int | None) -> list[Hit]:
    """What belongs to a picture, a sound or a film: items of the index's other modality."""
    runtime.limit_threads()
    index.other(modality)
    return search(index, modality, encode_query(index, modality, [file]), k, rerank)[0]
