"""Named evaluation protocols: which rows form a gallery, so that results can be compared with published ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ccaco_cli.core.errors import ConfigError, DataError
from ccaco_cli.core.evaluation.metrics import TIE_RULE, RankResult, summary
from ccaco_cli.core.evaluation.tiles import both_ranks

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from ccaco_cli.core.evaluation.metrics import Array


@dataclass(frozen=True, eq=False)
class Pool:
    """Rows of modality a (images) and of modality b (captions) that form one gallery."""

    a: NDArray[np.int64]
    b: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The result of a protocol.

    Attributes:
        names: of the two modalities
        pools: sizes of each pool, (rows of a, rows of b)
        a_to_b: per-query ranks of each pool; b_to_a the other way
        metrics: as ``metrics.summary`` names them, averaged over the pools
        pool_names: of each pool, such as languages; () = they have none
    """

    protocol: str
    names: tuple[str, str]
    pools: tuple[tuple[int, int], ...]
    a_to_b: tuple[RankResult, ...]
    b_to_a: tuple[RankResult, ...]
    metrics: dict[str, float]
    tie_rule: str = TIE_RULE
    pool_names: tuple[str, ...] = ()

    def metrics_of_pools(self) -> dict[str, dict[str, float]]:
        """Name of each pool -> its own metrics."""
        parts = zip(self.pool_names, self.a_to_b, self.b_to_a, strict=True)
        return {pool: summary(a_to_b, b_to_a, self.names) for pool, a_to_b, b_to_a in parts}

    def directions(self) -> dict[str, tuple[RankResult, ...]]:
        """``image_to_text`` and ``text_to_image`` -> per-query ranks of each pool."""
        a, b = self.names
        return {f"{a}_to_{b}": self.a_to_b, f"{b}_to_{a}": self.b_to_a}

    def as_dict(self) -> dict[str, Any]:
        """JSON types, per-query ranks included; ``from_dict`` reads them back."""
        pool_names = {"pool_names": list(self.pool_names)} if self.pool_names else {}
        return {
            "protocol": self.protocol,
            "tie_rule": self.tie_rule,
            "names": list(self.names),
            "pools": [list(sizes) for sizes in self.pools],
            **pool_names,
            "metrics": self.metrics,
            "per_query": {
                name: [result.as_dict() for result in results] for name, results in self.directions().items()
            },
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Evaluation:
        """Raises DataError: a field is missing."""
        try:
            a, b = stored["names"]
            a_to_b, b_to_a = (
                tuple(map(RankResult.from_dict, stored["per_query"][name])) for name in (f"{a}_to_{b}", f"{b}_to_{a}")
            )
            pools = tuple((int(n_a), int(n_b)) for n_a, n_b in stored["pools"])
            metrics, pool_names = dict(stored["metrics"]), tuple(stored.get("pool_names", ()))
            return cls(stored["protocol"], (a, b), pools, a_to_b, b_to_a, metrics, stored["tie_rule"], pool_names)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"unreadable evaluation ({error!r})", expected="what Evaluation.as_dict wrote") from None


def full(group_a: ArrayLike, group_b: ArrayLike) -> list[Pool]:
    """One pool of every row."""
    return [Pool(np.arange(len(np.asarray(group_a))), np.arange(len(np.asarray(group_b))))]


def coco_5k(group_a: ArrayLike, group_b: ArrayLike) -> list[Pool]:
    """Karpathy's test split of COCO: 5,000 images, the first five captions of each (25,000 of 25,010), one pool."""
    return _image_pools(group_a, group_b, "coco-5k", images=5000, folds=1)


def coco_1k(group_a: ArrayLike, group_b: ArrayLike) -> list[Pool]:
    """The same split in five folds of 1,000 images and 5,000 captions, in row order as VSE++ has it
    (arXiv:1707.05612), averaged.
    """
    return _image_pools(group_a, group_b, "coco-1k", images=5000, folds=5)


def flickr_1k(group_a: ArrayLike, group_b: ArrayLike) -> list[Pool]:
    """The test split of Flickr30k (or Flickr8k): 1,000 images, 5,000 captions, one pool."""
    return _image_pools(group_a, group_b, "flickr-1k", images=1000, folds=1)


PROTOCOLS: dict[str, Callable[[ArrayLike, ArrayLike], list[Pool]]] = {
    "full": full,
    "coco-5k": coco_5k,
    "coco-1k": coco_1k,
    "flickr-1k": flickr_1k,
}


def pools(protocol: str, group_a: ArrayLike, group_b: ArrayLike) -> list[Pool]:
    """The pools of a protocol by name.

    Args:
        group_a, group_b: [rows] ids; an image and its captions share one
    Raises:
        ConfigError: no such protocol
        DataError: rows that the protocol is not defined on
    """
    if protocol not in PROTOCOLS:
        raise ConfigError("no such protocol", where=protocol, expected=" | ".join(PROTOCOLS))
    return PROTOCOLS[protocol](group_a, group_b)


def evaluate(
    protocol: str,
    group_a: ArrayLike,
    group_b: ArrayLike,
    rank_pool: Callable[[Pool], tuple[RankResult, RankResult]],
    names: tuple[str, str] = ("image", "text"),
) -> Evaluation:
    """Ranks every pool of a protocol both ways and averages the metrics over the pools.

    Args:
        rank_pool: (pool) -> per-query ranks a to b and b to a: ``by_similarity``, or a two-stage score
    Raises:
        as ``pools``
    """
    chosen = pools(protocol, group_a, group_b)
    a_to_b, b_to_a = zip(*map(rank_pool, chosen), strict=True)
    averaged = _mean([summary(ab, ba, names) for ab, ba in zip(a_to_b, b_to_a, strict=True)])
    return Evaluation(protocol, names, tuple((len(p.a), len(p.b)) for p in chosen), a_to_b, b_to_a, averaged)


def join_pools(protocol: str, evaluations: Mapping[str, Evaluation]) -> Evaluation:
    """Joins evaluations of one pool each: metrics are means over the pools.

    Args:
        protocol: name of the result
        evaluations: name of each pool -> its evaluation
    """
    parts = list(evaluations.values())
    a_to_b, b_to_a = (tuple(getattr(part, side)[0] for part in parts) for side in ("a_to_b", "b_to_a"))
    sizes, averaged = tuple(part.pools[0] for part in parts), _mean([part.metrics for part in parts])
    return Evaluation(protocol, parts[0].names, sizes, a_to_b, b_to_a, averaged, pool_names=tuple(evaluations))


def _mean(metrics_of_each: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([metrics[name] for metrics in metrics_of_each])) for name in metrics_of_each[0]}


def single_pair_evaluation(names: tuple[str, str]) -> Evaluation:
    """The evaluation of one pair: it has every metric, so that names of metrics can be checked before any model
    exists.
    """
    one_pair = np.ones((1, 1))
    return evaluate("full", [0], [0], by_similarity(one_pair, one_pair, [0], [0]), names)


def by_similarity(
    z_a: Array, z_b: Array, group_a: ArrayLike, group_b: ArrayLike, tile_scores: int | None = None
) -> Callable[[Pool], tuple[RankResult, RankResult]]:
    """The ``rank_pool`` of two sets of unit vectors [rows, E], computed on the device of ``z_a``."""
    of_a, of_b = np.asarray(group_a), np.asarray(group_b)

    def rank_pool(pool: Pool) -> tuple[RankResult, RankResult]:
        return both_ranks(z_a[pool.a], z_b[pool.b], of_a[pool.a], of_b[pool.b], tile_scores)

    return rank_pool


def _image_pools(
    group_a: ArrayLike, group_b: ArrayLike, protocol: str, *, images: int, folds: int, captions: int = 5
) -> list[Pool]:
    ids, of_caption = np.asarray(group_a), np.asarray(group_b)
    distinct = len(np.unique(ids))
    if (len(ids), distinct) != (images, images):
        raise DataError(
            f"{len(ids)} images ({distinct} distinct)",
            where=protocol,
            expected=f"{images} distinct",
            next="evaluate with protocol full",
        )
    by_id = np.argsort(of_caption, kind="stable")
    starts = np.searchsorted(of_caption[by_id], ids)
    counts = np.searchsorted(of_caption[by_id], ids, side="right") - starts
    if counts.min() < captions:
        short = int(counts.argmin())
        raise DataError(
            f"{counts[short]} captions of image {ids[short]}",
            where=protocol,
            expected=f"{captions} or more of each ({captions * images} in all)",
            next="evaluate with protocol full",
        )
    rows = by_id[starts[:, None] + np.arange(captions)]
    return [Pool(fold, rows[fold].ravel()) for fold in np.split(np.arange(images), folds)]
