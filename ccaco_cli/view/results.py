"""How run results and retrieval answers are laid out in rows."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

from ccaco_cli.view import tables

_SMALL = ("mAP", "median_rank", "mean_rank")
SAID_ONCE = {"dataset": "{}", "pool": "pool {}", "covers": "95 % intervals cover {}"}
"""Columns that go to a table's title when all rows agree."""
_ALWAYS = ("arm", "seeds", "verdict")


def show(rows: Sequence[tables.Row], format: str | None, title: str) -> None:
    """Results of runs or arms. What people read is laid out for them; CSV and JSON keep every column (ranks, sizes, single losses)."""
    if not rows:
        return
    format = format or tables.default_format()
    if format in ("csv", "json"):
        tables.show(rows, list(rows[0]), format, title)
        return
    found = laid(rows, format)
    same = {n: v for n in SAID_ONCE if format == "table" and len(v := {row.get(n) for row in found} - {None, ""}) == 1}
    names = [n for n in dict.fromkeys(name for row in found for name in row) if n not in same]
    names = [n for n in names if n in _ALWAYS or any(row.get(n) not in (None, "") for row in found)]
    tables.show(found, names, format, "; ".join([title, *(SAID_ONCE[n].format(*v) for n, v in same.items())]))


def laid(rows: Sequence[tables.Row], format: str) -> list[dict[str, Any]]:
    """Rows as people read them: of runs, of arms with the evidence, of domains, or of a comparison."""
    return [_laid(row, format) for row in rows]


def _laid(row: tables.Row, format: str) -> dict[str, Any]:
    if "measure" in row:
        return dict(row)
    if "retention" in row:
        return _domain(row)
    return _pair(row) if "other" in row else _arm(row, format) if "verdict" in row else _run(row)


def _run(row: tables.Row) -> dict[str, Any]:
    hidden = ("seed", "weight", "parameters", "steps", "loss_total", "samples/s", "dataset" if "run" in row else "")
    of_other_tables = ("accuracy/", "matching_binary", "twin_")  # choices and matching
    people = {
        k: v
        for k, v in row.items()
        if not k.endswith((*_SMALL[1:], "_way_accuracy")) and not k.startswith(of_other_tables)
    }
    return {k: v or None if k == "warnings" else v for k, v in people.items() if k not in hidden}


def _arm(row: tables.Row, format: str) -> dict[str, Any]:
    """An arm's evidence: figure with interval, change with interval, p and the verdict in words."""
    metric = row.get("metric") or ""
    head = {k: row[k] for k in tuple(row)[: tuple(row).index("seeds") + 1]}
    few = ("_R@1", "R-sum", "accuracy") if format == "table" else ("_R@1", "_R@5", "_R@10", "_mAP", "R-sum", "accuracy")
    figures = {k: v for k, v in row.items() if k.endswith(few) and k != metric}
    change = (
        f"{_number(metric, row['difference'], '+')} {_interval(metric, row, 'difference_')}"
        if row.get("difference") is not None
        else None
    )
    found: dict[str, Any] = head | figures
    found |= (
        {metric: row.get("value"), f"{metric} 95 %": _interval(metric, row), "covers": row.get("covers")}
        if metric
        else {}
    )
    found |= {f"change against {row['reference']}": change} if row.get("reference") else {}
    found |= {"p (Holm)": row.get("p_holm"), "effect": row.get("effect"), "verdict": row["verdict"]}
    return found | {
        "seconds": row.get("seconds"),
        "warnings": row.get("warnings") or None,
        "failed": row.get("failed") or None,
    }


def _domain(row: tables.Row) -> dict[str, Any]:
    """An arm across domains."""
    metric, own = row["metric"], ("target", "gain", "source", "oracle (chosen on the target)")
    found = {
        k: _number(metric, v, "+" if k == "gain" else "") if k in own else v
        for k, v in row.items()
        if k not in ("low", "high", "metric")
    }
    told = {f"target ({tables.short(metric)})": found.pop("target"), "95 %": _interval(metric, row)}
    found |= {
        "retention": None if row["retention"] is None else f"{100 * row['retention']:.0f} %",
        "warnings": row["warnings"] or None,
    }
    first = ("dataset", "sources", "target_domain", "arm", "seeds")
    return {k: found[k] for k in first} | told | {k: v for k, v in found.items() if k not in first}


def _pair(row: tables.Row) -> dict[str, Any]:
    """One metric of two runs."""
    metric = row["metric"]
    found = {"metric": tables.short(metric), f"A: {row['reference']}": _number(metric, row["reference_value"])}
    found |= {
        f"B: {row['other']}": _number(metric, row["other_value"]),
        "B - A": _number(metric, row["difference"], "+"),
    }
    found |= {"95 %": _interval(metric, row), "covers": row["covers"]}
    return found | {"p": row["p"], "p (Holm)": row["p_holm"], "effect": row["effect"], "B is": row["verdict"]}


def _number(metric: str, value: float | None, sign: str = "") -> str:
    return "" if value is None else f"{100 * value if tables.percent(metric) else value:{sign}.1f}"


def _interval(metric: str, row: tables.Row, prefix: str = "") -> str:
    low, high = row.get(f"{prefix}low"), row.get(f"{prefix}high")
    return "" if low is None or high is None else f"[{_number(metric, low)}, {_number(metric, high)}]"


def show_prepared(rows: Sequence[tables.Row], format: str | None, title: str) -> None:
    """What a prepared data set holds, one row a split; people get each measure as its mean and range."""
    format = format or tables.default_format()
    laid = rows if format in ("csv", "json") else [_split(row) for row in rows]
    names = [
        n
        for n in dict.fromkeys(n for row in laid for n in row)
        if n in ("split", "rejects") or any(row.get(n) for row in laid)
    ]
    if format == "table":  # the protocol is one for all splits
        title = f"{title}: {rows[0]['protocol']}"
        names.remove("protocol")
    tables.show(laid, names, format, title)


def _split(row: tables.Row) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in row.items():
        measure, _, part = name.rpartition("_")
        if part not in ("min", "mean", "max"):
            found[name] = value
        elif part == "mean" and value is not None:
            least, most = (tables.text(name, row[f"{measure}_{end}"]) for end in ("min", "max"))
            found[measure.replace("_", " ")] = f"{value:.4g}" if least == most else f"{value:.4g} ({least} to {most})"
    return found


def show_answers(answers: Iterable[tuple[str, Sequence[Any]]], format: str | None) -> None:
    """Ranked answers, as they come: a table a query, or rows of one CSV."""
    format = format or tables.default_format()
    columns = ("query", "rank", "score", "cosine", "match", "id", "text")
    if format == "table":
        for query, hits in answers:
            tables.show([_first_caption(_row(query, hit)) for hit in hits], columns[1:], "table", query)
        return
    if format == "csv":
        for number, (query, hits) in enumerate(answers):
            tables.show([_row(query, hit) for hit in hits], columns, "csv", header=number == 0)
        return
    rows = (_row(query, hit) for query, hits in answers for hit in hits)
    if format == "json":
        for part in tables.json_parts(rows, columns):
            sys.stdout.write(part)
            sys.stdout.flush()
        return
    tables.show(list(rows), columns, format)


def _first_caption(row: dict[str, Any]) -> dict[str, Any]:
    text = row["text"]
    return row | {"text": text[0] if isinstance(text, list) and text else text}


def _row(query: str, hit: Any) -> dict[str, Any]:
    found = {"query": query, "rank": hit.rank, "score": round(hit.score, 4), "cosine": round(hit.cosine, 4)}
    return found | {
        "match": None if hit.match is None else round(hit.match, 4),
        "id": hit.item["id"],
        "text": hit.item["text"],
    }
