"""Divides a stored result by a property of its queries: one result for each value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np

from ccaco_cli.core.errors import DataError
from ccaco_cli.core.evaluation.metric_table import metric_of_items
from ccaco_cli.core.evaluation.metrics import RankResult, summary
from ccaco_cli.core.scoring.results import Result

LANGUAGE = "language"
"""The property whose values are the languages of the captions, each of which has a pool of its own."""
_RANK_COLUMNS = [column.name for column in fields(RankResult) if column.name != "gallery"]


def strata_names(result: Result) -> set[str]:
    """The properties by which the queries of a result can be divided."""
    return {*result.strata, *((LANGUAGE,) if result.evaluation.pool_names else ())}


def strata(result: Result, name: str) -> dict[Any, Result]:
    """Divides a result by a stratum: value -> the queries of that value, ranked in the full gallery; pools are joined.

    A text query has the value of its image (of the first one, where several share a group). A choice has the value of
    its image too.

    Raises:
        DataError: no such stratum, or not one value per row.
    """
    if name == LANGUAGE and result.evaluation.pool_names:
        return _by_pool_name(result)
    a_to_b, b_to_a = _joined(result.evaluation.a_to_b), _joined(result.evaluation.b_to_a)
    all_values = list(result.strata.get(name, ()))
    pools = len(result.evaluation.pool_names) or 1  # every language ranks all rows
    # choices are made on all rows, also where only the first are ranked
    ranked = len(a_to_b.rank) // pools if result.pool.startswith("first-") else len(all_values)
    values = all_values[:ranked] * pools
    if len(values) != len(a_to_b.rank):
        known = " | ".join(result.strata) or "none in these results"
        raise DataError(
            f"{len(values)} values of {name} for {len(a_to_b.rank)} rows",
            where=result.run.path,
            expected=f"strata: {known}",
        )
    value_of_group = dict(zip(a_to_b.query_group.tolist()[::-1], values[::-1], strict=True))
    values_of_b = [value_of_group.get(group) for group in b_to_a.query_group.tolist()]
    parts = {}
    for value in sorted(set(values), key=lambda v: (type(v).__name__, v)):
        ranks_a = _select(a_to_b, [v == value for v in values])
        ranks_b = _select(b_to_a, [v == value for v in values_of_b])
        items = _select_items(result, all_values, value)
        metrics = summary(ranks_a, ranks_b, result.evaluation.names)
        metrics |= {
            metric_of_items(item): float(np.mean(outcomes))
            for item, outcomes in items.items()
            if not item.endswith("_row") and len(outcomes)
        }
        evaluation = replace(result.evaluation, a_to_b=(ranks_a,), b_to_a=(ranks_b,), metrics=metrics)
        parts[value] = replace(result, evaluation=evaluation, metrics=metrics, items=items)
    return parts


def _by_pool_name(result: Result) -> dict[Any, Result]:
    """The result on the captions of each language: single choices are not divided."""
    evaluation, parts = result.evaluation, {}
    for number, (name, metrics) in enumerate(evaluation.metrics_of_pools().items()):
        pool = slice(number, number + 1)
        part = replace(evaluation, a_to_b=evaluation.a_to_b[pool], b_to_a=evaluation.b_to_a[pool], metrics=metrics)
        part = replace(part, pools=evaluation.pools[pool], pool_names=(name,))
        parts[name] = replace(result, evaluation=part, metrics=metrics, items={})
    return parts


def _select_items(result: Result, values: Sequence[Any], value: Any) -> dict[str, Any]:
    """The outcomes, and the rows, of the choices whose image has this value of a stratum."""
    selected: dict[str, Any] = {}
    for name, rows in result.items.items():
        if name.endswith("_row") and max(rows, default=0) < len(values):
            keep = np.array([values[row] == value for row in rows], bool)
            outcomes = np.asarray(result.items[name.removesuffix("_row")])
            selected |= {name.removesuffix("_row"): outcomes[keep].tolist(), name: np.asarray(rows)[keep].tolist()}
    return selected


def _joined(pools: Sequence[RankResult]) -> RankResult:
    columns = {name: np.concatenate([getattr(ranks, name) for ranks in pools]) for name in _RANK_COLUMNS}
    return RankResult(**columns, gallery=pools[0].gallery)


def _select(ranks: RankResult, keep: Sequence[bool]) -> RankResult:
    selected = {name: getattr(ranks, name)[np.asarray(keep, bool)] for name in _RANK_COLUMNS}
    return RankResult(**selected, gallery=ranks.gallery)
