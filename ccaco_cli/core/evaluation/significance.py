"""Significance of the difference between two arms, computed from stored per-query values alone.

There are two sources of variance. *Queries*: another sample of images would give other values; the captions of an image
succeed and fail together, so images (clusters) are resampled. *Seeds*: another training run would give another model.
Each is reported by itself (``query_low .. query_high``, ``seed_sd``); ``low .. high`` covers both.

The joint interval is Student's t with the two variances added and Satterthwaite's degrees of freedom. A percentile
bootstrap that also draws seeds anew is not used: with three seeds it misses far more often than it says (the test of
this module measures both).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ccaco_cli.core.errors import ConfigError, DataError
from ccaco_cli.core.evaluation.metric_table import METRICS, rank_metric

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from ccaco_cli.core.evaluation.metrics import RankResult

BETTER, WORSE, NOT_SEPARABLE = "better", "worse", "not separable with these queries and seeds"
# BCa costs clusters^2 in SciPy; with more clusters its correction is below the noise of the bootstrap (percentiles
# then)
_BCA_CLUSTERS = 2000
_SIGNS = 2**22  # random signs held at once


@dataclass(frozen=True, eq=False)
class PerQuery:
    """One metric of one run, summed per cluster. The metric is the sum over M parts of (sum of values) / (number of
    queries).

    Attributes:
        cluster: [C], ascending ids of the groups of the queries
        total: [C, M] float64, sum of the values of each cluster's queries
        count: [C, M] int64, how many queries that is
    """

    cluster: NDArray[Any]
    total: NDArray[np.float64]
    count: NDArray[np.int64]
    higher_is_better: bool = True

    @classmethod
    def of(cls, value: ArrayLike, cluster: ArrayLike, higher_is_better: bool = True) -> PerQuery:
        """A metric that is a plain mean over queries.

        value [Q] finite; cluster [Q] ids

        Raises:
            DataError: lengths differ, no queries, or a value is not finite
        """
        values, ids = np.asarray(value, dtype=np.float64), np.asarray(cluster)
        if values.ndim != 1 or values.shape != ids.shape or not len(values):
            raise DataError(
                "values and clusters do not fit", where=f"{values.shape} and {ids.shape}", expected="[Q] both, Q >= 1"
            )
        if not np.isfinite(values).all():
            raise DataError("per-query values are not finite", where=f"{(~np.isfinite(values)).sum()} of {len(values)}")
        names, row, count = np.unique(ids, return_inverse=True, return_counts=True)
        total = np.bincount(row, values).astype(np.float64)
        return cls(names, total[:, None], count[:, None].astype(np.int64), higher_is_better)

    @classmethod
    def joined(cls, parts: Sequence[PerQuery]) -> PerQuery:
        """The sum of several metrics over the same groups (R-sum: both directions of the same images)."""
        names = np.unique(np.concatenate([part.cluster for part in parts]))
        width = sum(part.total.shape[1] for part in parts)
        total, count, column = np.zeros((len(names), width)), np.zeros((len(names), width), dtype=np.int64), 0
        for part in parts:
            where = np.searchsorted(names, part.cluster), slice(column, column + part.total.shape[1])
            total[where], count[where] = part.total, part.count
            column = where[1].stop
        return cls(names, total, count, all(part.higher_is_better for part in parts))

    @property
    def mean(self) -> float:
        """The metric itself."""
        return float((self.total.sum(0) / self.count.sum(0)).sum())


@dataclass(frozen=True)
class Estimate:
    """A metric with its intervals.

    Attributes:
        value: the mean over seeds
        low, high: interval over queries and seeds; over queries alone when there is one seed
        query_low, query_high: interval over queries, for these trained models (bootstrap of clusters; BCa up to
            2,000)
        query_se: standard error that goes with it
        seed_sd: spread between seeds on these queries (sample standard deviation); NaN with one seed
    """

    value: float
    low: float
    high: float
    query_low: float
    query_high: float
    query_se: float
    seed_sd: float
    seeds: int
    clusters: int
    confidence: float

    @property
    def covers(self) -> str:
        """What ``low .. high`` covers, in words for the table."""
        return "queries and seeds" if self.seeds > 1 else "queries only: one seed"


@dataclass(frozen=True)
class Comparison(Estimate):
    """A difference, other minus reference, in the metric's own unit; intervals as in ``Estimate``.

    Attributes:
        p: two-sided, paired randomisation over clusters (differences averaged over seeds)
        p_holm: corrected for the number of arms; equals p for a single comparison
        effect: mean cluster difference over its standard deviation between clusters (Cohen's d_z); 0 without any
            difference
    """

    p: float = 1.0
    p_holm: float = 1.0
    effect: float = 0.0
    higher_is_better: bool = True

    @property
    def verdict(self) -> str:
        return verdict(self)


def per_query(metric: str, results: Mapping[str, RankResult | Sequence[RankResult]]) -> PerQuery:
    """The per-cluster values of a metric by its name in the tables.

    Args:
        metric: ``text_to_image_R@1``, ``_mAP``, ``_MRR``, ``_mean_rank`` of a direction, or ``R-sum`` (0..600, of both
            directions).
        results: direction -> ranks, or the ranks of each pool (``Evaluation.directions()``).
    Raises:
        ConfigError: no such metric of these directions, or one that is not a mean over queries, such as a median.
    """
    pools = {name: list(ranks) if isinstance(ranks, Sequence) else [ranks] for name, ranks in results.items()}
    entry = METRICS.get(metric)
    if entry is not None and entry.sum_of:
        return PerQuery.joined([_of_pools(ranks, entry.sum_of, 100.0) for ranks in pools.values()])
    for direction, ranks in pools.items():
        if metric.startswith(f"{direction}_"):
            return _of_pools(ranks, (metric.removeprefix(f"{direction}_"),), 1.0)
    raise ConfigError(
        "no such metric", where=metric, expected=" | ".join([f"{name}_R@1" for name in pools] + ["R-sum"])
    )


def estimate(runs: Sequence[PerQuery], *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0) -> Estimate:
    """Estimates the metric of one arm with its intervals.

    Args:
        runs: one per training seed, all on the same queries
        seed: of the resampling; the same call gives the same numbers
    Raises:
        DataError: no runs, fewer than two clusters, or runs on different queries
    """
    _same_queries(runs)
    total, count = np.stack([run.total for run in runs]), runs[0].count
    n_seeds, n_clusters = len(runs), len(count)
    each = np.array([run.mean for run in runs])
    value = float(each.mean())
    query_low, query_high, query_se = _over_queries(total.mean(0), count, confidence, resamples, seed)
    seed_sd = float(each.std(ddof=1)) if n_seeds > 1 else float("nan")
    by_query, by_seed = query_se**2, seed_sd**2 / n_seeds if n_seeds > 1 else 0.0
    both = by_query + by_seed
    if n_seeds == 1 or both == 0:
        low, high = query_low, query_high
    else:
        from scipy import stats  # slow to import, and a single run does not need it

        freedom = both**2 / (by_query**2 / (n_clusters - 1) + by_seed**2 / (n_seeds - 1))
        half = float(stats.t.ppf((1 + confidence) / 2, freedom)) * both**0.5
        low, high = value - half, value + half
    return Estimate(value, low, high, query_low, query_high, query_se, seed_sd, n_seeds, n_clusters, confidence)


def compare(
    reference: Sequence[PerQuery],
    other: Sequence[PerQuery],
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    permutations: int = 9999,
    seed: int = 0,
) -> Comparison:
    """Other minus reference, paired by query and by seed (run i of both was trained with seed i, on the same data
    order).

    Args:
        reference, other: one per training seed
    Raises:
        DataError: other queries, another number of seeds, or fewer than two clusters
    """
    if len(reference) != len(other):
        raise DataError(
            "the arms have different numbers of seeds",
            where=f"{len(reference)} and {len(other)}",
            expected="runs paired by seed",
            next="train the missing seeds, or compare the seeds that both have",
        )
    _same_queries([*reference, *other])
    differences = [replace(ref, total=new.total - ref.total) for ref, new in zip(reference, other, strict=True)]
    change = estimate(differences, confidence=confidence, resamples=resamples, seed=seed)
    count = reference[0].count
    share = (np.mean([d.total for d in differences], axis=0) / count.sum(0)).sum(1)  # [C], adds up to the difference
    spread = float(share.std(ddof=1))
    p = _sign_flips(share, permutations, seed)
    effect = float(share.mean()) / spread if spread else float(np.sign(share.mean()) * np.inf if share.any() else 0.0)
    return Comparison(**vars(change), p=p, p_holm=p, effect=effect, higher_is_better=reference[0].higher_is_better)


def corrected(comparisons: Mapping[str, Comparison]) -> dict[str, Comparison]:
    """The same comparisons with p corrected by Holm over all of them."""
    p_holm = holm([comparison.p for comparison in comparisons.values()])
    return {
        name: replace(comparison, p_holm=float(p))
        for (name, comparison), p in zip(comparisons.items(), p_holm, strict=True)
    }


def holm(p: ArrayLike) -> NDArray[np.float64]:
    """Corrects p-values [n] by Holm's step-down method (1979), which controls the family-wise error rate.

    SciPy has no such function: its ``false_discovery_control`` controls another error rate.
    """
    values = np.asarray(p, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    stepped = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    corrected: NDArray[np.float64] = np.empty_like(values)
    corrected[order] = np.minimum(stepped, 1.0)
    return corrected


def verdict(comparison: Comparison, alpha: float | None = None) -> str:
    """``better``, ``worse`` or ``not separable with these queries and seeds``.

    Separable needs both: a corrected p of at most alpha (default 1 - confidence), and an interval over queries and
    seeds without 0. With one seed the verdict is about these two trained models, not about the methods
    (``Comparison.covers``).
    """
    limit = 1 - comparison.confidence if alpha is None else alpha
    if comparison.p_holm > limit or comparison.low <= 0 <= comparison.high:
        return NOT_SEPARABLE
    return BETTER if (comparison.value > 0) == comparison.higher_is_better else WORSE


def _of_pools(pools: Sequence[RankResult], names: Sequence[str], scale: float) -> PerQuery:
    """The mean over pools of a sum of metrics."""
    if len({len(pool.rank) for pool in pools}) > 1:  # a mean over all queries would weight pools by their size
        return PerQuery.joined([_of_pools([pool], names, scale / len(pools)) for pool in pools])
    value = np.concatenate([scale * np.sum([pool.per_query(name) for name in names], axis=0) for pool in pools])
    metrics = [rank_metric(name) for name in names]
    higher_is_better = all(metric.higher_is_better for metric in metrics if metric)
    return PerQuery.of(value, np.concatenate([pool.query_group for pool in pools]), higher_is_better)


def _same_queries(runs: Sequence[PerQuery]) -> None:
    if not runs or len(runs[0].cluster) < 2:
        raise DataError(
            "too little to estimate from", where=f"{len(runs)} runs", expected="one run or more, on two groups or more"
        )
    for run in runs[1:]:
        if not (np.array_equal(run.cluster, runs[0].cluster) and np.array_equal(run.count, runs[0].count)):
            raise DataError(
                "the runs answered different queries",
                where=f"{runs[0].count.sum()} queries on {len(runs[0].cluster)} groups, "
                f"and {run.count.sum()} on {len(run.cluster)}",
                expected="one split and protocol",
                next="evaluate them again on the same data set",
            )


def _over_queries(
    total: NDArray[np.float64], count: NDArray[np.int64], confidence: float, resamples: int, seed: int
) -> tuple[float, float, float]:
    """Interval and standard error over resampled clusters, [C, M] both."""
    value = float((total.sum(0) / count.sum(0)).sum())
    rate = total / np.maximum(count, 1)
    if (rate == rate[:1]).all() and (count > 0).all():  # no variance to resample; BCa would divide by zero
        return value, value, 0.0
    parts = total.shape[1]

    def statistic(*columns: NDArray[Any], axis: int) -> NDArray[np.float64]:
        sums = [column.sum(axis) for column in columns]
        return np.asarray(sum(t / n for t, n in zip(sums[:parts], sums[parts:], strict=True)))

    from scipy import stats

    interval = stats.bootstrap(
        (*total.T, *count.T),
        statistic,
        paired=True,
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, _SIGNS // len(total)),
        confidence_level=confidence,
        method="BCa" if len(total) <= _BCA_CLUSTERS else "percentile",
        rng=np.random.default_rng(seed),
    )
    return (
        float(interval.confidence_interval.low),
        float(interval.confidence_interval.high),
        float(interval.standard_error),
    )


def _sign_flips(share: NDArray[np.float64], permutations: int, seed: int) -> float:
    """Two-sided p of sum(share) under the hypothesis that the sign of each cluster's difference is random.

    The same test as ``scipy.stats.permutation_test(permutation_type="samples")``, in a twentieth of its time; an
    ablation runs hundreds.
    """
    moved = share[share != 0]  # a cluster without a difference has no sign to flip
    if not len(moved):
        return 1.0
    rng = np.random.default_rng(seed)
    observed = abs(moved.sum()) * (1 - 1e-9)  # sums that are equal but for rounding count as reached
    reached, left, step = 0, permutations, max(1, _SIGNS // len(moved))
    while left:
        n = min(left, step)
        flip = rng.integers(0, 2, size=(n, len(moved)), dtype=np.int8).astype(np.float64)
        reached += int((abs(moved.sum() - 2 * (flip @ moved)) >= observed).sum())
        left -= n
    return (reached + 1) / (permutations + 1)
