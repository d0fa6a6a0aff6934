"""Prints the answers of a search. It imports little, because a text query starts in a quarter of a second."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ccaco_cli.view import tables
from ccaco_cli.view.streams import write_result


def show_answers(answers: Iterable[tuple[str, Sequence[Any]]], format: str | None) -> None:
    """Prints ranked hits while they come: one table for each query, or the rows of one CSV.

    Stops when the process that reads stdout has ended, so that no further query is answered.

    Args:
        answers: (query, its hits) in order.
    """
    format = format or tables.default_format()
    columns = ("query", "rank", "score", "cosine", "match", "id", "text")
    if format == "table":
        for query, hits in answers:
            if not tables.show([_first_caption(_hit_cells(query, hit)) for hit in hits], columns[1:], "table", query):
                return
        return
    if format == "csv":
        for number, (query, hits) in enumerate(answers):
            if not tables.show([_hit_cells(query, hit) for hit in hits], columns, "csv", header=number == 0):
                return
        return
    rows = (_hit_cells(query, hit) for query, hits in answers for hit in hits)
    if format == "json":
        for part in tables.json_parts(rows, columns):
            if not write_result(part):
                return
        return
    tables.show(list(rows), columns, format)


def _first_caption(cells: dict[str, Any]) -> dict[str, Any]:
    text = cells["text"]
    return cells | {"text": text[0] if isinstance(text, list) and text else text}


def _hit_cells(query: str, hit: Any) -> dict[str, Any]:
    cells = {"query": query, "rank": hit.rank, "score": round(hit.score, 4), "cosine": round(hit.cosine, 4)}
    match = None if hit.match is None else round(hit.match, 4)
    return cells | {"match": match, "id": hit.item["id"], "text": hit.item["text"]}
