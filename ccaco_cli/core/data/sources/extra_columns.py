"""The columns of a source that no field of a sample takes: they travel in ``PairRecord.meta`` to the index."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

from ccaco_cli.core.data.sources.fields import MISSING_TEXTS, is_missing

if TYPE_CHECKING:
    import pyarrow as pa

RESERVED = frozenset(
    {
        *("id", "group", "text", "thumbnail"),  # columns of every index
        *("path", "folder", "size", "modified", "sha256", "width", "height", "duration"),  # measured on the files
        *("query", "rank", "score", "cosine", "match", "duplicates"),  # columns of answers
        *("languages", "parallel_captions", "choices", "questions"),  # facts of the captions
        *("twin", "binding", "boxes", "facts"),
    }
)
"""Names, in lower case, of columns that have a meaning of their own: a column of the source gets "_" at its end."""
MAX_TEXT = 1 << 16
"""Characters of the longest text that a column stores; a longer one counts as not known."""


def extra_facts(values: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of one sample as JSON types, without those that are missing.

    Numbers, booleans and texts stay; dates become ISO texts, lists and objects JSON texts. Bytes, texts of more than
    ``MAX_TEXT`` characters and columns without a name are left out.
    """
    facts = {}
    for name, value in values.items():
        converted = json_value(value)
        if name and converted is not None:
            facts[f"{name}_" if name.lower() in RESERVED else name] = converted
    return facts


def json_value(value: Any) -> Any:
    """A value as bool, int, float or text; None = missing, or of no such type."""
    value = value.tolist() if hasattr(value, "tolist") and not isinstance(value, str | bytes) else value
    if is_missing(value):
        return None
    match value:
        case bool() | str():
            converted: Any = value
        case Integral():
            converted = int(value)
        case Real() | Decimal():
            converted = float(value)
        case datetime() | date() | time():
            converted = value.isoformat()
        case timedelta():
            converted = value.total_seconds()
        case Mapping() | list() | tuple():
            converted = _json_text(value)
        case _:
            converted = None
    return None if isinstance(converted, str) and len(converted) > MAX_TEXT else converted


def _json_text(value: Any) -> str | None:
    try:
        return json.dumps(value, ensure_ascii=False, default=json_value)
    except (TypeError, ValueError, RecursionError):
        return None


def typed_texts(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of a text file as integers, fractions or booleans if all its values spell such, else as it is.

    Missing values (``MISSING_TEXTS``) become null. Numbers with leading zeros, such as postal codes, stay texts.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    stripped = pc.utf8_trim_whitespace(texts)
    missing = pc.is_in(stripped, value_set=pa.array(sorted(MISSING_TEXTS), stripped.type))
    values = pc.if_else(missing, pa.scalar(None, stripped.type), stripped)

    def all_match(pattern: str) -> bool:
        return bool(pc.all(pc.match_substring_regex(values, f"^(?:{pattern})$"), min_count=1).as_py())

    for pattern, type in ((r"-?(?:0|[1-9]\d{0,18})", pa.int64()), (_FRACTION, pa.float64()), (_BOOLEAN, pa.bool_())):
        if all_match(pattern):
            try:
                return values.cast(type)
            except pa.ArrowInvalid:  # an integer of more than 64 bits
                continue
    return pc.if_else(missing, pa.scalar(None, texts.type), texts)


_FRACTION = r"[+-]?(?:(?:0|[1-9]\d*)(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?"
_BOOLEAN = "true|false|True|False|TRUE|FALSE"
