"""How run results and retrieval answers are laid out in rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ccaco_cli.view import tables

_SMALL = ("mAP", "median_rank", "mean_rank")


def show(rows: Sequence[tables.Row], format: str | None, title: str) -> None:
    """Results of runs; a table leaves out what the other formats keep (ranks, sizes, single losses)."""
    if not rows:
        return
    names = list(dict.fromkeys(name for row in rows for name in row))
    format = format or tables.default_format()
    if format in ("table", "markdown", "latex"):
        hidden = ("seed", "weight", "parameters", "steps", "loss_total", "samples/s")
        names = [n for n in names if not n.endswith(_SMALL[1:]) and n not in hidden]
    tables.show(rows, names, format, title)


def show_answers(answers: Iterable[tuple[str, Sequence[Any]]], format: str | None) -> None:
    """Ranked answers, as they come: a table a query, or rows of one CSV."""
    format = format or tables.default_format()
    columns = ("query", "rank", "score", "cosine", "match", "id", "text")
    if format == "table":
        for query, hits in answers:
            tables.show([_row(query, hit) for hit in hits], columns[1:], "table", query)
        return
    if format == "csv":
        for number, (query, hits) in enumerate(answers):
            tables.show([_row(query, hit) for hit in hits], columns, "csv", header=number == 0)
        return
    tables.show([_row(query, hit) for query, hits in answers for hit in hits], columns, format)


def _row(query: str, hit: Any) -> dict[str, Any]:
    found = {"query": query, "rank": hit.rank, "score": round(hit.score, 4), "cosine": round(hit.cosine, 4)}
    return found | {"match": None if hit.match is None else round(hit.match, 4), "id": hit.item["id"], "text": hit.item["text"]}
