from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from ccaco_cli.core.data import shards
from ccaco_cli.core.retrieval import item_columns
from ccaco_cli.core.retrieval.item_columns import ColumnTypes, row_facts, typed_columns, types_of
from ccaco_cli.core.types import PairRecord


@pytest.mark.parametrize(
    ("values", "type", "stored"),
    [
        ([1, None, 3], pa.int64(), [1, None, 3]),
        ([2**63 - 1, -(2**63)], pa.int64(), [2**63 - 1, -(2**63)]),
        ([1, 2.5, float("nan")], pa.float64(), [1.0, 2.5, None]),
        ([True, None, False], pa.bool_(), [True, None, False]),
        (["2021-07-04", "2021-07-04T12:30:05+02:00"], pa.timestamp("s"), [(2021, 7, 4), (2021, 7, 4, 10, 30, 5)]),
        (["2021-07-04", "2021-13-04"], pa.string(), ["2021-07-04", "2021-13-04"]),
        (["a", 1, 2.5, True, None], pa.string(), ["a", "1", "2.5", "true", None]),
        ([True, 1], pa.string(), ["true", "1"]),
        ([2**63, 1], pa.string(), [str(2**63), "1"]),
        (["0123", "4567"], pa.string(), ["0123", "4567"]),
        (["unpaired \ud800", "日本"], pa.string(), ["unpaired ", "日本"]),
    ],
)
def test_one_type_for_each_column(values: list[Any], type: pa.DataType, stored: list[Any]) -> None:
    columns = typed_columns([{} if value is None else {"x": value} for value in values])
    assert columns["x"].type == type
    assert columns["x"].to_pylist() == [datetime(*value) if isinstance(value, tuple) else value for value in stored]


def test_what_is_nowhere_known_or_a_structure_is_no_column() -> None:
    metas = [{"a": None, "b": [1, 2], "c": {"d": 1}, "e": float("nan"), "n": 1}, {"a": None}]
    assert list(typed_columns(metas)) == ["n"]
    assert typed_columns([]) == {} and typed_columns([{}, {}]) == {}


def test_names_that_are_taken_get_an_underscore() -> None:
    columns = typed_columns([{"id": 1, "Text": "x", "year": 1, "Year": 2, "year_": 3}])
    assert {name: values.to_pylist()[0] for name, values in columns.items()} == {
        "id_": 1,
        "Text_": "x",
        "year": 1,
        "Year_": 2,
        "year__": 3,
    }
    assert len({name.lower() for name in columns}) == 5, "SQL names columns without their capitals"


def test_ever_new_keys_are_limited() -> None:
    types = ColumnTypes()
    types.add({f"key {n}": n} for n in range(10_000))
    assert len(types.schema()) == item_columns.MAX_COLUMNS


def test_parts_have_the_types_of_all_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metas = [{"n": 1}, {"n": 2, "when": "2020-01-01"}, {"n": 2.5}, {"when": "2021-01-01", "nested": {"x": 1}}, {}]
    records = [
        PairRecord(f"{n}", f"{n}", "test", {"raw": b"%d" % n}, label="dog" if n == 3 else "", meta=meta)
        for n, meta in enumerate(metas)
    ]
    info = shards.DatasetInfo("d", ("raw",))
    shards.write(records, tmp_path / "d", info, shards.WriteOptions(workers=0, rows_per_shard=2))
    split = shards.open_any(tmp_path / "d").split("all")
    monkeypatch.setattr(item_columns, "ROWS_AT_ONCE", 2)
    parsed = 0

    def count(*arguments: Any, **options: Any) -> Any:
        nonlocal parsed
        parsed += 1
        return loads(*arguments, **options)

    loads = json.loads
    monkeypatch.setattr(json, "loads", count)
    at_once: list[int] = []
    metas_of = shards.Split.metas
    monkeypatch.setattr(shards.Split, "metas", lambda self, rows: at_once.append(len(rows)) or metas_of(self, rows))
    types = types_of(split)
    assert parsed == len(metas), "each row is read once for the types"
    assert at_once == [2, 2, 1], "the facts of few rows are Python objects at a time"
    assert types.schema() == {"n": pa.float64(), "when": pa.timestamp("s"), "label": pa.string()}
    part = types.arrays(row_facts(split, [3, 0]))
    assert [part[name].to_pylist() for name in ("n", "label")] == [[None, 1.0], ["dog", None]]
    assert part["when"].to_pylist() == [datetime(2021, 1, 1), None]
