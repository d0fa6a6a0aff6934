"""The table of metrics: how each is computed, its unit, which direction is better, and which tables show it.

A new metric is one entry of ``METRICS``: it is then computed, stored in results, accepted by ``--metric``, tested and
shown. Needs no torch.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from itertools import permutations
from typing import TYPE_CHECKING, Any

import numpy as np

from ccaco_cli.core.errors import ConfigError
from ccaco_cli.core.modalities import MODALITIES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ccaco_cli.core.evaluation.metrics import RankResult

_DIRECTION = re.compile(r"[a-z]+_to_[a-z]+_")


class Unit(StrEnum):
    """What the values of a metric are: fractions are 0..1 in files and percent in tables; sums add up percents; ranks
    start at 1.
    """

    FRACTION = "fraction"
    PERCENT_SUM = "percent_sum"
    RANK = "rank"


class Shown(StrEnum):
    """Where a metric is shown."""

    NARROW = "narrow"
    """Tables of 80 columns."""
    RUNS = "runs"
    ARMS = "arms"
    RETRIEVAL = "retrieval"
    MATCHING = "matching"
    COMPARE = "compare"


@dataclass(frozen=True)
class Metric:
    """One metric, or several whose names fit one pattern.

    Attributes:
        unit: what its values are.
        shown: the tables that show it; CSV and JSON hold all metrics.
        higher_is_better: False for ranks.
        values: for a metric of one retrieval direction: ranks of the queries -> [Q] one value per query.
        aggregate: how the values of the queries become the metric. Only means are tested for significance.
        sum_of: for a metric of both directions: metrics of one direction, which are added up in percent.
        stored: False for a metric that is computed only where it is named, such as ``R@3``.

    A metric without ``values`` and ``sum_of`` is the mean of outcomes (0 or 1) that scoring stores per item.
    """

    unit: Unit
    shown: frozenset[Shown] = frozenset()
    higher_is_better: bool = True
    values: Callable[[RankResult], NDArray[np.float64]] | None = None
    aggregate: Callable[..., Any] = np.mean
    sum_of: tuple[str, ...] = ()
    stored: bool = True

    @property
    def testable(self) -> bool:
        """True when the metric is a mean over queries."""
        return self.values is not None and self.aggregate is np.mean


def _recall(k: int) -> Callable[[RankResult], NDArray[np.float64]]:
    return lambda ranks: ranks.hits(k)


LANGUAGE_AGREEMENT = "language_agreement"
"""Share of pairs of captions that say the same in two languages and have the same first answer."""
_EVERYWHERE = frozenset({Shown.NARROW, Shown.RUNS, Shown.ARMS, Shown.RETRIEVAL, Shown.COMPARE})
_ACCURACY = frozenset({Shown.ARMS, Shown.MATCHING})

METRICS: dict[str, Metric] = {
    # of one direction, stored as image_to_text_R@1 and text_to_image_R@1
    "R@1": Metric(Unit.FRACTION, _EVERYWHERE, values=_recall(1)),
    "R@5": Metric(Unit.FRACTION, _EVERYWHERE, values=_recall(5)),
    "R@10": Metric(Unit.FRACTION, _EVERYWHERE, values=_recall(10)),
    "mAP": Metric(Unit.FRACTION, _EVERYWHERE - {Shown.NARROW}, values=lambda ranks: ranks.ap),
    "median_rank": Metric(Unit.RANK, higher_is_better=False, values=lambda ranks: ranks.rank, aggregate=np.median),
    "mean_rank": Metric(Unit.RANK, frozenset({Shown.COMPARE}), higher_is_better=False, values=lambda ranks: ranks.rank),
    "MRR": Metric(
        Unit.FRACTION,
        values=lambda ranks: np.where(ranks.tied_positives > 0, 1.0 / ranks.rank, 0.0),
        stored=False,
    ),
    # of both directions
    "R-sum": Metric(Unit.PERCENT_SUM, _EVERYWHERE, sum_of=("R@1", "R@5", "R@10")),
    # of single choices
    "matching_accuracy": Metric(Unit.FRACTION, _ACCURACY | {Shown.RUNS, Shown.COMPARE}),
    "binding_accuracy": Metric(Unit.FRACTION, _ACCURACY | {Shown.RUNS, Shown.COMPARE}),
    "binding_*_accuracy": Metric(Unit.FRACTION, _ACCURACY | {Shown.RUNS, Shown.COMPARE}),  # by what is swapped
    "choice_*/*_accuracy": Metric(Unit.FRACTION),  # of one relation or pair of attributes of many
    "choice*_accuracy": Metric(Unit.FRACTION, _ACCURACY | {Shown.RUNS, Shown.COMPARE}),
    "matching_binary_accuracy": Metric(Unit.FRACTION, _ACCURACY),
    "matching_*_way_accuracy": Metric(Unit.FRACTION, _ACCURACY),
    "twin_accuracy": Metric(Unit.FRACTION, _ACCURACY),
    LANGUAGE_AGREEMENT: Metric(Unit.FRACTION, _ACCURACY | {Shown.RUNS, Shown.COMPARE}),
    "*accuracy": Metric(Unit.FRACTION, _ACCURACY | {Shown.RUNS}),
    "accuracy/*": Metric(Unit.FRACTION),
}
"""Name or pattern of names -> the metric; the first pattern that fits a name counts."""


def rank_metric(name: str) -> Metric | None:
    """The metric of one direction by its name without the direction: ``R@1``, ``mAP`` ...; None where there is none."""
    if re.fullmatch(r"R@[1-9]\d{0,8}", name) and name not in METRICS:
        return Metric(Unit.FRACTION, values=_recall(int(name[2:])), stored=False)
    metric = METRICS.get(name)
    return metric if metric and metric.values else None


def find_metric(stored_name: str) -> Metric | None:
    """The metric of a stored name such as ``text_to_image_R@1`` or ``matching_5_way_accuracy``; None for other columns
    of a table.
    """
    name, directions = _DIRECTION.subn("", stored_name, 1)
    if directions:
        return rank_metric(name)
    if stored_name in METRICS:
        metric = METRICS[stored_name]
        return None if metric.values else metric
    fitting = (metric for pattern, metric in METRICS.items() if "*" in pattern and fnmatchcase(stored_name, pattern))
    return next(fitting, None)


def metric_of_items(name: str) -> str:
    """The metric that is the mean of the outcomes that scoring stores under a name."""
    return name if name in METRICS else f"{name}_accuracy"


def check_metric(name: str) -> None:
    """Checks a name that a user wrote: a stored name, such as ``text_to_image_R@1`` or ``R-sum``.

    Raises:
        ConfigError: there is no such metric; suggests the nearest names.
    """
    if find_metric(name) is not None:
        return
    directions = [f"{a}_to_{b}_" for a, b in permutations(MODALITIES, 2)]
    stored = [d + known for d in directions for known, metric in METRICS.items() if metric.values]
    stored += [known for known, metric in METRICS.items() if not metric.values and "*" not in known]
    by_lower_case = {known.lower(): known for known in stored}
    near = [by_lower_case[match] for match in difflib.get_close_matches(name.lower(), by_lower_case, 2, 0.5)]
    if rank_metric(name):  # without its direction
        near = [f"text_to_image_{name}", f"image_to_text_{name}"]
    raise ConfigError(
        "no such metric",
        where=name,
        expected="R-sum, text_to_image_R@1, image_to_text_mAP ...",
        next=f"--metric {' or '.join(near or ['R-sum'])}",
    )


def is_fraction(stored_name: str) -> bool:
    """True for metrics that are fractions in files and percent in tables."""
    metric = find_metric(stored_name)
    return metric is not None and metric.unit is Unit.FRACTION


def is_shown(stored_name: str, table: Shown) -> bool:
    """True for metrics that a table shows; False for columns that are no metrics."""
    metric = find_metric(stored_name)
    return metric is not None and table in metric.shown
