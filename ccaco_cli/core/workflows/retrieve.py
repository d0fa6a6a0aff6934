"""``ccaco retrieve``: queries against an index."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from ccaco_cli.core import runtime
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.retrieval.index import Index
from ccaco_cli.core.retrieval.search import Hit, ask, encode_query, search
from ccaco_cli.core.types import Encoded

AT_ONCE = 64


def by_text(index: Index, queries: Iterable[str], *, k: int, rerank: int | None) -> Iterator[tuple[str, list[Hit]]]:
    """(query, answers) in the order of the queries; blank lines are left out. Reads no further ahead than one batch."""
    index.other("text")
    if index.exported is None:
        runtime.threads()
    stream = (q.strip() for q in queries)
    stream = (q for q in stream if q)
    while batch := list(islice(stream, AT_ONCE)):
        yield from zip(batch, ask(index, "text", batch, k, rerank), strict=True)


def by_file(index: Index, modality: str, file: Path, *, k: int, rerank: int | None) -> list[Hit]:
    """What belongs to a picture, a sound or a film: items of the index's other modality."""
    runtime.threads()
    index.other(modality)
    return search(index, modality, from_file(index, modality, file)[1], k, rerank)[0]


def from_file(index: Index, modality: str, file: Path) -> tuple[Any, Encoded]:
    """What a file holds, as decoded and as the index's model sees it."""
    from ccaco_cli.core.data.loader import DECODERS

    try:
        sample = DECODERS[modality](file.read_bytes())
        return sample, encode_query(index, modality, [sample])  # recordings are decoded here
    except OSError as error:
        raise DataError(f"cannot read this file ({error.strerror or error})", where=file, expected=f"a readable {modality} file") from None
    except DataError as error:  # decoders see bytes and do not know whose
        raise DataError(error.what, where=file, expected=error.expected) from None
