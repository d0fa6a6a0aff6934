from __future__ import annotations

import datetime
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ccaco_cli.core.errors import DataError, FilterError
from ccaco_cli.core.retrieval import filters
from ccaco_cli.core.retrieval.filters import Selection, column_types, rows_where

DAY = datetime.datetime(2021, 6, 1, 12)
TABLE = pa.table(
    {
        "id": ["a", "b", "c", "d"],
        "group": pa.array([0, 1, 2, None], pa.int64()),
        "text": [["a dog", "a black dog"], ["a cat"], [], None],
        "thumbnail": pa.array([b"", b"", b"", b""], pa.binary()),
        "year": pa.array([2019, 2020, 2021, None], pa.int64()),
        "folder": ["/", "/2020/beach/", "/2021/O'Brien/", None],
        "taken": pa.array([None, DAY.replace(year=2020), DAY, None], pa.timestamp("s")),
        "latitude": [1.5, float("nan"), -3.0, None],
        "flash": [True, False, None, None],
        'odd "name"; --': ["x", "y", "z", None],
    }
)


@pytest.mark.parametrize(
    ("condition", "rows"),
    [
        ("year >= 2020", [1, 2]),
        ("YEAR >= 2020 and Folder like '%/beach/%'", [1]),
        ('"year" = 2019 or items.year = 2021', [0, 2]),
        ("not (year >= 2020)", [0]),  # NULL is not selected, nor is its opposite
        ("year is null", [3]),
        ("folder = '/2021/O''Brien/'", [2]),
        ("taken >= '2021-01-01'", [2]),
        ("taken between '2019-01-01' and '2021-01-01'", [1]),
        ("month(taken) = 6 and extract(hour from taken) = 12", [1, 2]),
        ("taken < current_date - interval 1 year", [1, 2]),
        ("latitude < 0", [2]),
        ("flash", [0]),
        ("flash is distinct from true", [1, 2, 3]),
        ("text like '%black%'", [0]),  # lists of captions as one text
        ("text = 'a cat'", [1]),
        ("id in ('a', 'd')", [0, 3]),
        ("folder ilike '%BEACH%' or regexp_matches(folder, 'O.Br')", [1, 2]),
        ("case when year = 2019 then true else false end", [0]),
        ("coalesce(year, 0) % 2 = 0", [1, 3]),
        ('"odd ""name""; --" = \'y\'', [1]),
        ("cast(year as varchar) = '2020' or year::double = 2021.0", [1, 2]),
        ("true", [0, 1, 2, 3]),
        ("year > 3000", []),
        ("year = 2020 -- a comment", [1]),
        ("year = /* */ 2020", [1]),
        ("lower(upper(id)) || 'x' = 'ax'", [0]),
    ],
)
def test_conditions_select_rows(condition: str, rows: list[int]) -> None:
    selected = rows_where(TABLE, condition)
    assert selected.tolist() == rows and selected.dtype == np.int64


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("yaer >= 2020", "no column 'yaer' in this index.*next: did you mean year"),
        ("Foldr = 'x'", "no column 'Foldr' in this index.*expected one of id .text., .*year .integer.*folder"),
        ("thumbnail is null", "no column 'thumbnail'"),
        ("other.year = 3", "no column 'other.year'"),
        ("year >=", "cannot read this condition"),
        ("", "an empty condition"),
        (" \n", "an empty condition"),
        ("(" * 3000, "cannot read this condition"),
        ("year = 2020" + " or year = 2021" * 5000, "characters"),
        ("year", "a value, not a condition"),
        ("'true'", "a value, not a condition"),
        ("null", "a value, not a condition"),
        ("year + 1", "a value, not a condition"),
        ("year = 'new'", "cannot evaluate.*'new'"),
        ("taken > 'yesterday'", "cannot evaluate.*'yesterday'"),
        ("folder > 3", "cannot evaluate.*VARCHAR"),
        ("regexp_matches(folder, '(')", "cannot evaluate"),
        ("loud(folder)", "the function loud is unknown here"),
        ("lowr(folder) = 'x'", "next: did you mean lower"),
        ("substring(folder) = 'x'", "cannot evaluate"),
        ("folder = 'a\0b'", "a zero byte"),
    ],
)
def test_other_conditions_are_refused_in_one_line(condition: str, message: str) -> None:
    with pytest.raises(FilterError, match=message) as error:
        rows_where(TABLE, condition)
    assert "\n" not in str(error.value) and "--where" in str(error.value)


HOSTILE = [
    "1; drop table items",
    "year = 1; select 1",
    "year = 1 order by year",
    "year = 1 limit 1",
    "year = 1 group by year",
    "year = 1) or (select true",
    "true union select 2",
    "true union all select * from read_csv('{file}')",
    "exists (select * from read_text('{file}'))",
    "(select content from read_text('{file}')) is not null",
    "id in (select content from read_blob('{file}'))",
    "id in (from '{file}')",
    "read_text('{file}') is not null",
    "row_number() over () > 0",
    "count(*) > 0",
    "list_filter([1], lambda x: x > 0) is not null",
    "columns('i.*') = 'a'",
    "* is null",
    "id = $1",
    "id = ?",
    "sleep_ms(100000) is null",
    "pg_sleep(100) is null",
    "current_setting('memory_limit') is not null",
    "getvariable('x') is null",
    "len(range(100000000000)) > 0",
    "repeat(id, 1000000000) = 'x'",
    "error('x') is null",
    "write_log('x') is null",
    "query('select 1') is null",
    "getenv('HOME') is not null",
    "main.sleep_ms(1) is null",
    "set threads = 8",
    "attach '{file}'",
    "copy items to '{file}'",
    "install httpfs",
    "pragma version",
]


@pytest.mark.parametrize("condition", HOSTILE)
def test_a_condition_is_nothing_but_an_expression(condition: str, tmp_path: Path) -> None:
    file = tmp_path / "secret.csv"
    file.write_text("content\na\n")
    start = time.monotonic()
    with pytest.raises(FilterError):
        rows_where(TABLE, condition.format(file=file))
    assert time.monotonic() - start < 5
    assert file.read_text() == "content\na\n" and len(list(tmp_path.iterdir())) == 1


def test_a_condition_that_is_not_text() -> None:
    with pytest.raises(DataError, match="byte"):
        rows_where(TABLE, "folder = 'caf\udce9'")


def test_a_slow_condition_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filters, "SECONDS", 0.2)
    table = pa.table({"text": ["a" * 5000] * 200_000})
    slow = " or ".join(f"levenshtein(text, 'b{n}' || text) = -1" for n in range(20))
    start = time.monotonic()
    with pytest.raises(FilterError, match=r"takes more than 0\.2 s"):
        rows_where(table, slow)
    assert time.monotonic() - start < 30


def test_columns_that_differ_by_case() -> None:
    table = pa.table({"Year": [1, 2], "year": [2, 1]})
    assert rows_where(table, "year = 1").tolist() == [1]
    assert rows_where(table, '"Year" = 1').tolist() == [0]
    with pytest.raises(FilterError, match="differ by case only"):
        rows_where(table, 'year = 1 and "Year" = 2')


def test_types_of_columns_in_words() -> None:
    assert column_types(TABLE) == {
        "id": "text",
        "group": "integer",
        "text": "text",
        "year": "integer",
        "folder": "text",
        "taken": "time",
        "latitude": "number",
        "flash": "boolean",
        'odd "name"; --': "text",
    }


def test_random_conditions_equal_numpy() -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 50, 100_000)
    table = pa.table({"x": values, "y": rng.normal(size=len(values))})
    for low in (0, 10, 49, 60):
        wanted: Any = np.flatnonzero((values >= low) & (table["y"].to_numpy() < 0))
        assert np.array_equal(rows_where(table, f"x >= {low} and y < 0"), wanted)


def test_a_selection_is_evaluated_once() -> None:
    calls = []
    selection = Selection("year = 2020", lambda: calls.append(1) or np.array([1]))  # type: ignore[func-returns-value]
    assert not calls
    assert selection.rows.tolist() == selection.rows.tolist() == [1] and len(calls) == 1
