"""Conditions on the columns of items, in SQL's expression language: ``year >= 2020 and folder like '%/beach/%'``.

DuckDB evaluates them in memory. A condition is an expression over the columns, and nothing else: DuckDB parses it, and
every node of its syntax tree must be of a kind, and every function of a name, that is listed here. Therefore a
condition from outside (the search page) cannot read files, run statements or wait; time and memory are limited too.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ccaco_cli.core.errors import FilterError, nearest
from ccaco_cli.core.text_input import check_utf8

Array = np.ndarray[Any, Any]
MAX_CHARACTERS = 10_000
SECONDS = 10.0
"""After this time a condition is refused."""
_SETTINGS: dict[str, Any] = {
    "enable_external_access": "false",  # no files, no network
    "allow_community_extensions": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "temp_directory": "",
    "memory_limit": "1GB",
    "threads": "1",
    "lock_configuration": "true",
}
_NODES = frozenset(
    ("BETWEEN", "CASE", "CAST", "COLLATE", "COLUMN_REF", "COMPARISON")
    + ("CONJUNCTION", "CONSTANT", "FUNCTION", "OPERATOR", "TYPE")
)
"""Kinds of nodes of a condition. Subqueries, windows, stars, lambdas and parameters are not among them."""
FUNCTIONS = {
    "operators": "+ - * / // % ** ^ || & | ~~ !~~ ~~* !~~* ~~~ ^@ like_escape not_like_escape ilike_escape "
    "not_ilike_escape",
    "text": "lower upper lcase ucase length len char_length trim ltrim rtrim left right substring substr contains "
    "starts_with ends_with prefix suffix position strpos instr concat split_part strip_accents regexp_matches "
    "regexp_full_match regexp_extract levenshtein jaro_winkler_similarity",
    "numbers": "abs round floor ceil ceiling trunc sign sqrt power pow exp ln log log10 log2 sin cos tan asin acos "
    "atan atan2 radians degrees pi mod greatest least isnan isfinite isinf",
    "time": "year month day hour minute second quarter week isodow dayofweek dayofyear dayname monthname date_part "
    "datepart date_trunc datetrunc date_diff datediff strftime strptime try_strptime make_date make_timestamp age "
    "epoch last_day now today to_years to_months to_weeks to_days to_hours to_minutes to_seconds",
    "choice": "nullif if",
}
"""Group -> names of the functions that a condition may use, as DuckDB's parser names them."""
_ALLOWED = frozenset(" ".join(FUNCTIONS.values()).split())
_CLOCK = frozenset(("current_date", "current_timestamp", "localtimestamp"))
_FROM = "select 1 from items where\n"


def rows_where(table: pa.Table, expression: str) -> Array:
    """Finds the rows that satisfy a condition. A row for which it is NULL does not.

    Args:
        table: the items of one side. Lists of texts are compared as one text, joined by " | ".
        expression: of SQL, with a boolean value; a name is that of a column, in any case, and may stand in double
            quotes.
    Returns:
        Row numbers, int64, ascending.
    Raises:
        DataError: the condition is not UTF-8 text.
        FilterError: it does not parse, is not boolean, names an unknown column, uses something else than
            columns, constants and the ``FUNCTIONS``, or takes too much time or memory.
    """
    import duckdb

    check_utf8(expression, "--where")
    types = column_types(table)
    with _refusals(duckdb, expression, types):
        connection = duckdb.connect(":memory:", config=_SETTINGS)
        try:
            tree = _syntax_tree(connection, expression, types)
            names = _columns(tree, expression, types)
            connection.register("items", _referenced(table, names))
            timer = threading.Timer(SECONDS, connection.interrupt)
            timer.start()
            try:
                selected = connection.execute(f"select (\n{expression}\n) as selected from items").fetchnumpy()
            finally:
                timer.cancel()
        finally:
            connection.close()
    values = np.ma.filled(selected["selected"], False) if selected["selected"].dtype == bool else None
    if values is None:
        raise _error("this is a value, not a condition", expression, "a comparison, such as year >= 2020")
    return np.flatnonzero(values)


def column_types(table: pa.Table) -> dict[str, str]:
    """Column -> its type in words (text, integer, number, boolean, time), for the columns that a condition can use."""
    names = {field.name: _type(field.type) for field in table.schema}
    return {name: type_name for name, type_name in names.items() if type_name}


@dataclass(frozen=True)
class Selection:
    """The items that a search may return.

    Attributes:
        expression: the condition.
        evaluate: () -> their row numbers, ascending; called when they are first needed.
    """

    expression: str
    evaluate: Callable[[], Array]

    @cached_property
    def rows(self) -> Array:
        """Row numbers [m] int64, ascending.

        Raises:
            FilterError: as ``rows_where``.
        """
        return self.evaluate()


class _refusals:
    """Turns DuckDB's errors within a block into ``FilterError``."""

    def __init__(self, duckdb: Any, expression: str, types: Mapping[str, str]):
        self.duckdb, self.expression, self.types = duckdb, expression, types

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if not isinstance(error, self.duckdb.Error):
            return
        if isinstance(error, self.duckdb.InterruptException):
            problem, expected = f"this condition takes more than {SECONDS:g} s", "a simpler one"
        else:
            message = str(error).splitlines()[0]
            problem = f"cannot evaluate this condition ({re.sub(r'^[A-Z][A-Za-z ]* Error: ', '', message)})"
            expected = f"an SQL expression over the columns {_listing(self.types)}"
        raise _error(problem, self.expression, expected) from None


def _error(problem: str, expression: str, expected: str, next: str | None = None) -> FilterError:
    return FilterError(problem, where=f"--where {expression!r}", expected=expected, next=next)


def _listing(types: Mapping[str, str]) -> str:
    return ", ".join(f"{name} ({type_name})" for name, type_name in types.items())


def _type(type_: pa.DataType) -> str:
    checks = {
        "boolean": pa.types.is_boolean,
        "integer": pa.types.is_integer,
        "number": pa.types.is_floating,
        "time": pa.types.is_temporal,
        "text": lambda t: pa.types.is_string(t.value_type if pa.types.is_list(t) else t),
    }
    return next((name for name, check in checks.items() if check(type_)), "")


def _syntax_tree(connection: Any, expression: str, types: Mapping[str, str]) -> Any:
    """The parsed condition; it must be all of the statement that it stands in."""
    expected = f"an SQL expression over the columns {_listing(types)}"
    if not expression.strip() or len(expression) > MAX_CHARACTERS:
        problem = "an empty condition" if not expression.strip() else f"a condition of {len(expression):,} characters"
        raise _error(problem, expression[:80], f"{expected}, at most {MAX_CHARACTERS:,} characters")
    if "\0" in expression:  # a parser may stop there
        raise _error("a zero byte in a condition", expression, expected)

    def parse(condition: str) -> tuple[Any, Any]:
        text = connection.execute("select json_serialize_sql(?::varchar)", [_FROM + condition]).fetchall()[0][0]
        answer = json.loads(text)
        if answer["error"]:
            raise _error(f"cannot read this condition ({answer['error_message']})", expression, expected)
        statements = answer["statements"]
        return statements[0]["node"].pop("where_clause", None), statements

    tree, statements = parse(expression)
    if statements != parse("true")[1]:
        raise _error("this is more than a condition", expression, expected)
    return tree


def _columns(tree: Any, expression: str, types: Mapping[str, str]) -> dict[str, str]:
    """Name in the condition -> column; checks every node of the tree."""
    by_case = {name.lower(): name for name in reversed(list(types))}
    columns: dict[str, str] = {}
    for node in _nodes(tree):
        kind = node["class"]
        if kind not in _NODES:
            problem = f"a condition cannot hold this: {kind.lower().replace('_', ' ')}"
            raise _error(problem, expression, "columns, constants, operators and functions")
        if kind == "FUNCTION" and node["function_name"].lower() not in _ALLOWED:
            function = node["function_name"]
            problem = f"the function {function} is unknown here"
            named = " ".join(names for group, names in FUNCTIONS.items() if group != "operators")
            raise _error(problem, expression, f"one of {named}", nearest(function, named.split()))
        if kind != "COLUMN_REF":
            continue
        *prefix, name = node["column_names"]
        column = name if name in types else by_case.get(name.lower())
        if column is None or prefix not in ([], ["items"]):
            if not prefix and name.lower() in _CLOCK:
                continue
            full = ".".join(node["column_names"])
            hint = nearest(full, types) or nearest(full.lower(), types)
            raise _error(f"no column {full!r} in this index", expression, f"one of {_listing(types)}", hint)
        if columns.setdefault(name.lower(), column) != column:
            raise _error(
                f"the columns {column!r} and {columns[name.lower()]!r} differ by case only, which SQL ignores",
                expression,
                "one of them",
            )
    return columns


def _nodes(tree: Any) -> Iterator[Any]:
    stack = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, dict):
            if "class" in node:
                yield node
            stack += node.values()
        elif isinstance(node, list):
            stack += node


def _referenced(table: pa.Table, names: Mapping[str, str]) -> pa.Table:
    """The columns of a condition, under the names that it uses."""
    arrays = {name: _plain(table[column]) for name, column in names.items()}
    return pa.table(arrays) if arrays else pa.table({"": pa.nulls(len(table), pa.int8())})


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.binary_join(column, " | ") if pa.types.is_list(column.type) else column
