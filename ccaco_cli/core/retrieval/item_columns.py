"""Typed columns of the items of an index, made from the facts of samples (``PairRecord.meta``).

The types are known after a first pass over all samples (``ColumnTypes.add``), and the columns are then made part by
part (``ColumnTypes.arrays``), so that the facts of few samples are Python objects at a time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pyarrow as pa

if TYPE_CHECKING:
    from ccaco_cli.core.data.pairs import Split

ITEM_COLUMNS = ("id", "group", "text", "thumbnail")
"""Columns of the items that are not facts of the source."""
SECONDS = pa.timestamp("s")
CONTENT_COLUMNS: dict[str, pa.DataType] = {
    "sha256": pa.string(),
    "width": pa.int64(),
    "height": pa.int64(),
    "taken": SECONDS,
    "camera": pa.string(),
    "latitude": pa.float64(),
    "longitude": pa.float64(),
    "duration": pa.float64(),
}
"""What is known of the content of a file: name -> type. Two files of one content have the same values."""
MAX_COLUMNS = 256
"""Columns that are stored: a source whose objects have ever new keys would fill the memory."""
ROWS_AT_ONCE = 1024
"""Samples whose facts are Python objects at a time."""
_TIME = re.compile(r"\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d{1,6})?)?(?:Z|[+-]\d\d:?\d\d)?)?")


def _as_time(value: Any) -> datetime | None:
    """The date of an ISO text, in UTC if it names an offset; None = it is none."""
    if not isinstance(value, str) or not _TIME.fullmatch(value):
        return None
    try:
        date = datetime.fromisoformat(value)
        return (date.astimezone(UTC) if date.tzinfo else date).replace(tzinfo=None, microsecond=0)
    except (ValueError, OverflowError):
        return None


def _as_text(value: Any) -> str:
    """A text that UTF-8 can spell: JSON can name unpaired surrogates."""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text if text.isascii() else text.encode("utf-8", "ignore").decode()


_TYPES: Mapping[str, tuple[pa.DataType, Callable[[Any], Any]]] = {
    "bool": (pa.bool_(), bool),
    "int": (pa.int64(), int),
    "float": (pa.float64(), float),
    "time": (pa.timestamp("s"), _as_time),
    "text": (pa.string(), _as_text),
}
"""Kind of a value -> type of its column, and its conversion."""


def _kind(value: Any) -> str:
    """An entry of ``_TYPES``; "" = not known (None, NaN), or a structure, which is no column."""
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int" if -(2**63) <= value < 2**63 else "text"
    if isinstance(value, float):
        return "float" if value == value else ""
    if isinstance(value, str):
        return "time" if _as_time(value) is not None else "text"
    return ""


@dataclass
class ColumnTypes:
    """The names and types of the columns of all samples that were added.

    Integers and fractions together are float64; ISO dates are timestamps; any other mixture is text. A value that is
    nowhere known is no column. A name that is taken (``ITEM_COLUMNS``, or in other capitals) gets "_" at its end.

    Attributes:
        kinds: name -> kinds of its values, in the order of first mention.
    """

    kinds: dict[str, set[str]] = field(default_factory=dict)

    def add(self, metas: Iterable[Mapping[str, Any]]) -> None:
        """Adds the facts of some samples (JSON types; structures are ignored)."""
        for meta in metas:
            for name, value in meta.items():
                kind = _kind(value)
                if kind and (name in self.kinds or len(self.kinds) < MAX_COLUMNS):
                    self.kinds.setdefault(name, set()).add(kind)

    def schema(self) -> dict[str, pa.DataType]:
        """Name of each column -> its type."""
        return {name: _TYPES[self._kind(source)][0] for source, name in self._names().items()}

    def arrays(self, metas: Sequence[Mapping[str, Any]]) -> dict[str, pa.Array]:
        """Name of each column -> [n] values of n samples, null where not known."""
        columns = {}
        for source, name in self._names().items():
            type, convert = _TYPES[self._kind(source)]
            values = (meta.get(source) for meta in metas)
            columns[name] = pa.array([convert(value) if _kind(value) else None for value in values], type)
        return columns

    def _kind(self, source: str) -> str:
        kinds = self.kinds[source]
        return "float" if kinds == {"int", "float"} else next(iter(kinds)) if len(kinds) == 1 else "text"

    def _names(self) -> dict[str, str]:
        """Name in the source -> name of the column."""
        names: dict[str, str] = {}
        taken = set(ITEM_COLUMNS)
        for source in self.kinds:
            name = source
            while name.lower() in taken:
                name += "_"
            taken.add(name.lower())
            names[source] = name
        return names


def typed_columns(metas: Sequence[Mapping[str, Any]]) -> dict[str, pa.Array]:
    """Name of each column -> [n] values of n samples (``ColumnTypes``), for samples that fit into memory."""
    types = ColumnTypes()
    types.add(metas)
    return types.arrays(metas)


def types_of(split: Split) -> ColumnTypes:
    """The columns of all rows of a split; the rows are read in parts."""
    types = ColumnTypes()
    for first in range(0, len(split), ROWS_AT_ONCE):
        types.add(row_facts(split, range(first, min(first + ROWS_AT_ONCE, len(split)))))
    return types


def row_facts(split: Split, rows: Sequence[int] | Any) -> list[dict[str, Any]]:
    """The facts of some rows of a split: those of the source, the class, and the domain if there are several."""
    facts = split.metas(rows)
    for row, meta in zip(rows, facts, strict=True):
        if split.label[row] >= 0:
            meta.setdefault("label", split.labels[split.label[row]])
        if len(split.domains) > 1:
            meta.setdefault("domain", split.domains[split.domain[row]])
    return facts
