"""``ccaco retrieve``: queries against an index."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from ccaco_cli.core import runtime
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.modalities import MODALITIES
from ccaco_cli.core.retrieval.index import Index
from ccaco_cli.core.retrieval.search import Hit, SearchOptions, ask, encode_query, search
from ccaco_cli.core.text_input import is_blank

QUERY_BATCH = 64
"""Text queries that are encoded at once."""


def by_text(
    index: Index, queries: Iterable[str], options: SearchOptions = SearchOptions()
) -> Iterator[tuple[str, list[Hit]]]:
    """Yields (query, hits) in the order of the queries; skips blank ones; reads at most one batch of queries ahead.

    Raises:
        DataError: every query is blank, or there is none.
    """
    index.target("text", options.target)
    if index.exported is None:
        runtime.limit_threads()
    stripped = (query.strip() for query in queries if not is_blank(query))
    answered = False
    while batch := list(islice(stripped, QUERY_BATCH)):
        answered = True
        yield from zip(batch, ask(index, "text", batch, options), strict=True)
    if not answered:
        raise DataError(
            "no query: every line is empty",
            expected="one sentence per line",
            next='echo "a dog chasing a ball" | ccaco retrieve - --index INDEX',
        )


def by_file(index: Index, modality: str, file: Path, options: SearchOptions = SearchOptions()) -> list[Hit]:
    """The items that match a media file (image, audio or video)."""
    runtime.limit_threads()
    index.target(modality, options.target)
    return search(index, modality, encode_query(index, modality, [file]), options)[0]


def media_modality(index: Index, file: Path) -> str:
    """The modality of the index as which a file is encoded: that of its suffix, or the only one that files have.

    Raises:
        DataError: there is none, or more than one.
    """
    of_files = [modality for modality in index.modalities if MODALITIES[modality].query_help]
    of_suffix = [modality for modality in of_files if file.suffix.lower() in MODALITIES[modality].suffixes]
    candidates = of_suffix or of_files
    if len(candidates) == 1:
        return candidates[0]
    options = [f"--{modality} {file} --target {modality}" for modality in candidates]
    raise DataError(
        "the modality of this file is not clear" if candidates else "the model of this index encodes no files",
        where=f"--similar {file}",
        expected=f"a file of the modality {' or '.join(candidates)}" if candidates else "a query by text",
        next=" or ".join(options) or None,
    )
