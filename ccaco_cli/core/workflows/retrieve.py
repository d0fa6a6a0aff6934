"""``ccaco retrieve``: queries against an index."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice, tee
from pathlib import Path
from typing import TYPE_CHECKING

from ccaco_cli.core import runtime
from ccaco_cli.core.errors import ConfigError, DataError
from ccaco_cli.core.modalities import MODALITIES
from ccaco_cli.core.retrieval.index import Index
from ccaco_cli.core.retrieval.search import Hit, SearchOptions, ask, encode_query, search
from ccaco_cli.core.text_input import is_blank
from ccaco_cli.core.types import OnProgress, no_progress

if TYPE_CHECKING:  # a text query needs neither torch nor tables
    from ccaco_cli.core.data.sources.table_pairs import TablePair
    from ccaco_cli.core.experiments.pair_scores import PairModel, PairOptions, PairScore

QUERY_BATCH = 64
"""Text queries that are encoded at once."""


def by_text(
    index: Index, queries: Iterable[str], options: SearchOptions = SearchOptions()
) -> Iterator[tuple[str, list[Hit]]]:
    """Yields (query, hits) in the order of the queries; skips blank ones; reads at most one batch of queries ahead.

    Raises:
        DataError: every query is blank, or there is none.
    """
    index.targets("text", options.target)
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
    index.targets(modality, options.target)
    return search(index, modality, encode_query(index, modality, [file]), options)[0]


@dataclass(frozen=True, slots=True)
class ScoredRow:
    """A row of a table of pairs with its scores."""

    pair: TablePair
    score: PairScore


def by_pairs(
    model: PairModel,
    table: Path,
    options: PairOptions,
    media_root: Path | None = None,
    on_progress: OnProgress = no_progress,
) -> Iterator[ScoredRow]:
    """Scores the rows of a table of files and texts, one for each row, in order.

    Args:
        table: as ``table_pairs`` reads it.
        options: its ``folders`` are those of the table and ``media_root``, whatever it says.
        media_root: folder of the files, if it is not that of the table.
    Raises:
        ConfigError: the model has no text.
        DataError: as ``table_pairs``; the table has no rows.
    """
    if "text" not in model.modalities:
        raise ConfigError(
            f"this model aligns {' and '.join(model.modalities)}",
            where=model.manifest.path,
            expected="a model of text and something else: a table of pairs has files and texts",
        )
    from ccaco_cli.core.data.sources.table_pairs import table_pairs
    from ccaco_cli.core.experiments.pair_scores import Pair

    runtime.limit_threads()
    root = None if media_root is None else media_root.resolve()
    folders = tuple(str(folder) for folder in (table.parent.resolve(), root) if folder is not None)
    # the second iterator lags behind the first by the batches that are read ahead
    rows, scored_rows = tee(table_pairs(table, root))
    text_first = model.modalities[0] == "text"
    pairs = (
        Pair(row.caption, row.media, row.problem) if text_first else Pair(row.media, row.caption, row.problem)
        for row in rows
    )
    scores = model.score(pairs, replace(options, folders=folders))
    number = 0
    for number, (row, score) in enumerate(zip(scored_rows, scores, strict=False), 1):
        yield ScoredRow(row, score)
        on_progress(number, None, {})
    if not number:
        raise DataError("the table has no rows", where=table, expected="one pair a row")


def media_modality(index: Index, file: Path) -> str:
    """The modality of the index as which a file is encoded: that of its suffix, or the only one that files have.

    Raises:
        DataError: there is none, or more than one.
    """
    of_files = [modality for modality in index.queries if MODALITIES[modality].query_help]
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
