"""``ccaco retrieve``: queries against an index."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from ccaco_cli.core import runtime
from ccaco_cli.core.data.checks import decode_image
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.retrieval.index import Index
from ccaco_cli.core.retrieval.search import Hit, encode_query, search

AT_ONCE = 64


def by_text(index: Index, queries: Iterable[str], *, k: int, rerank: int | None) -> Iterator[tuple[str, list[Hit]]]:
    """(query, answers) in the order of the queries; blank lines are left out. Reads no further ahead than one batch."""
    runtime.threads()
    index.other("text")
    stream = (q.strip() for q in queries)
    stream = (q for q in stream if q)
    while batch := list(islice(stream, AT_ONCE)):
        yield from zip(batch, search(index, "text", encode_query(index, "text", batch), k, rerank), strict=True)


def by_image(index: Index, file: Path, *, k: int, rerank: int | None) -> list[Hit]:
    """Captions for a picture."""
    runtime.threads()
    index.other("image")
    try:
        picture = decode_image(file.read_bytes())
    except OSError as error:
        raise DataError(f"cannot read this picture ({error.strerror or error})", where=file, expected="an image file") from None
    except DataError as error:  # decode_image sees bytes and does not know whose
        raise DataError(error.what, where=file, expected=error.expected) from None
    return search(index, "image", encode_query(index, "image", [picture]), k, rerank)[0]
