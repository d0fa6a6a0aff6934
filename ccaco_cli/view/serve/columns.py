"""What a page needs to know of the columns of items to offer filters: their types, ranges and frequent values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import date, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

FIXED = ("id", "group", "text", "thumbnail")
"""Columns that every index has; the ids are shown, and the others have fields of their own in an answer."""
CHOICES = 24
"""Different texts up to which a column is offered as a list of choices."""


def json_value(value: Any) -> Any:
    """A value of a column as a JSON type: dates as ISO text, a number that is not finite as null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, datetime | date):
        return value.isoformat()
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def type_name(type: pa.DataType) -> str:
    """integer | number | boolean | date | text."""
    if pa.types.is_boolean(type):
        return "boolean"
    if pa.types.is_integer(type):
        return "integer"
    if pa.types.is_floating(type):
        return "number"
    return "date" if pa.types.is_temporal(type) else "text"


def describe(sides: Sequence[pa.Table]) -> list[dict[str, Any]]:
    """Describes the typed columns of the items of one side, or of several together.

    Returns:
        For each column its name, type, the number of items without a value, and a range (numbers and dates) or the
        values with their counts (booleans, and texts with few values; most frequent first).
    """
    typed = [items.select([field.name for field in items.schema if _is_typed(field)]) for items in sides]
    items = pa.concat_tables(typed, promote_options="permissive")
    return [_describe(name, items.column(name)) for name in items.column_names]


def _is_typed(field: pa.Field) -> bool:
    return field.name not in FIXED and not pa.types.is_nested(field.type) and not pa.types.is_binary(field.type)


def _describe(name: str, column: pa.ChunkedArray) -> dict[str, Any]:
    kind = type_name(column.type)
    described: dict[str, Any] = {"name": name, "type": kind, "missing": column.null_count}
    if kind in ("integer", "number", "date"):
        numbers = column.filter(pc.is_finite(column)) if kind == "number" else column
        extremes = pc.min_max(numbers).as_py()
        return described | {"minimum": json_value(extremes["min"]), "maximum": json_value(extremes["max"])}
    counts = _few_values(column)
    return described if counts is None else described | {"values": counts}


def _few_values(column: pa.ChunkedArray) -> list[dict[str, Any]] | None:
    """The values and their counts, most frequent first; None = more than ``CHOICES``."""
    head = column.slice(0, 50 * CHOICES)
    if pc.count_distinct(head).as_py() > CHOICES or pc.count_distinct(column).as_py() > CHOICES:
        return None
    counts = [(entry["values"], entry["counts"]) for entry in pc.value_counts(column).to_pylist()]
    ordered = sorted((entry for entry in counts if entry[0] is not None), key=lambda entry: (-entry[1], str(entry[0])))
    return [{"value": value, "count": count} for value, count in ordered]
