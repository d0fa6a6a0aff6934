"""The columns of an index's items as fields of a Milvus collection."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa

from ccaco_cli.core.retrieval.vectors import Array

KEY, VECTOR = "key", "vector"
"""Fields of every collection: the key of an item, and its vector."""
MAX_TEXT = 65_535
"""Most bytes of a text in a collection. A longer text is cut there; the companion folder holds all of it."""


@dataclass(frozen=True)
class Fields:
    """The scalar fields of a collection.

    Attributes:
        types: name of the field -> type of the column of the items.
        columns: name of the field -> name of the column.
    """

    types: Mapping[str, pa.DataType]
    columns: Mapping[str, str]

    @classmethod
    def of(cls, schema: pa.Schema, later: Mapping[str, pa.DataType] = MappingProxyType({})) -> Fields:
        """Fields for all columns except pictures. Milvus allows letters, digits and underscores in a name.

        Args:
            later: columns that items may have after an update; null until then.
        """
        columns_later = [pa.field(name, type) for name, type in later.items() if name not in schema.names]
        types: dict[str, pa.DataType] = {}
        columns: dict[str, str] = {}
        for column in (*schema, *columns_later):
            if pa.types.is_binary(column.type):
                continue
            name = base = re.sub(r"^(?=\d)|\W", "_", column.name, flags=re.ASCII)[:200] or "_"
            number = 2
            while name in types or name in (KEY, VECTOR):
                name, number = f"{base}_{number}", number + 1
            types[name], columns[name] = column.type, column.name
        return cls(types, columns)

    def rows(self, items: pa.Table, keys: Array, vectors: Array) -> list[dict[str, Any]]:
        """Rows for an insertion: key, vector and all fields."""
        values = [
            [_value(value) for value in items[column].to_pylist()]
            if column in items.column_names
            else [None] * len(items)
            for column in self.columns.values()
        ]
        names = [KEY, VECTOR, *self.columns]
        return [dict(zip(names, row, strict=True)) for row in zip(keys.tolist(), vectors, *values, strict=True)]

    def add_to(self, schema: Any) -> None:
        """Adds the fields to a schema of pymilvus. Lists and times are texts."""
        from pymilvus import DataType

        for name, type in self.types.items():
            kind = _kind(type)
            more = {"max_length": MAX_TEXT} if kind == "VARCHAR" else {}
            schema.add_field(name, getattr(DataType, kind), nullable=True, **more)

    def names_and_kinds(self) -> dict[str, str]:
        """Name of the field -> name of its type in Milvus."""
        return {name: _kind(type) for name, type in self.types.items()}


def _kind(type: pa.DataType) -> str:
    if pa.types.is_boolean(type):
        return "BOOL"
    if pa.types.is_integer(type):
        return "INT64"
    return "DOUBLE" if pa.types.is_floating(type) else "VARCHAR"


def _value(value: Any) -> Any:
    if isinstance(value, list):
        value = "\n".join(value)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    text = value if isinstance(value, str) else value.isoformat()
    return text.encode("utf-8", "replace")[:MAX_TEXT].decode("utf-8", "ignore")
