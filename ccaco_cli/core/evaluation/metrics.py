"""Retrieval, choice and classification metrics, counted per query so that every table can be rebuilt and compared
without a model.

One tie rule everywhere (``TIE_RULE``). Retrieval metrics are *expected* values when equal scores are put in random
order: a constant encoder scores exactly chance, for recall, rank and average precision alike. A score of NaN or +inf is
invalid and counts against the query: a positive with such a score is never a hit, and a negative ranks ahead of
everything.
-inf is valid (a candidate that was not scored). In choices and matching a tie or a NaN is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from ccaco_cli.core.errors import ConfigError, DataError
from ccaco_cli.core.evaluation.metric_table import METRICS, rank_metric

if TYPE_CHECKING:
    import torch
    from numpy.typing import ArrayLike, NDArray

    Array = NDArray[Any] | torch.Tensor

TIE_RULE = "expected over random order of equal scores; NaN or +inf: a positive is never a hit, a negative stands ahead"
RECALLS = tuple(int(name.removeprefix("R@")) for name in METRICS["R-sum"].sum_of)
"""k of the recalls that make up R-sum."""
_TILE_SCORES = 2**22  # scores held at once: 16 MiB in float32, of which a block makes about four copies


@dataclass(frozen=True, eq=False)
class RankResult:
    """The ranks of Q queries in one direction; every field but ``gallery`` has one value per query.

    Attributes:
        rank: [Q] float64, expected rank (from 1) of the first positive: ``above + 1 + tied_negatives / (tied_positives
            + 1)``; the last place of the gallery when no positive has a valid score
        above: [Q] int64, negatives ahead of the best positive
        tied_negatives: [Q] int64, negatives whose score equals the best positive's
        tied_positives: [Q] int64, positives with that score, itself counted; 0 = never a hit
        ap: [Q] float64, expected average precision over all positives
        n_positives: [Q] int64
        query_group: [Q], the group of each query, which is its cluster in a significance test
        gallery: number of rows that each query ranks
    """

    rank: NDArray[np.float64]
    above: NDArray[np.int64]
    tied_negatives: NDArray[np.int64]
    tied_positives: NDArray[np.int64]
    ap: NDArray[np.float64]
    n_positives: NDArray[np.int64]
    query_group: NDArray[Any]
    gallery: int

    def hits(self, k: int) -> NDArray[np.float64]:
        """[Q] probability in 0..1 that any positive is among the first k, with equal scores in random order."""
        places = np.clip(k - self.above, 0, None)  # places among the first k that the tied group fills
        miss = np.ones(len(self.rank))
        for i in range(min(k, self.gallery)):  # C(t, j) / C(t + m, j), one place at a time
            left = np.clip(self.tied_negatives - i, 0, None)
            here = left / np.maximum(left + self.tied_positives, 1)
            miss = np.where(i < places, miss * here, miss)
        return np.where(self.tied_positives > 0, 1.0 - miss, 0.0)

    def per_query(self, name: str) -> NDArray[np.float64]:
        """[Q] the values whose mean over queries is the metric: ``R@k``, ``mAP``, ``MRR`` (of the expected rank),
        ``mean_rank`` ...

        Raises:
            ConfigError: no metric of this name is a mean over queries.
        """
        metric = rank_metric(name)
        if metric is None or metric.values is None or not metric.testable:
            known = ", ".join(name for name, known in METRICS.items() if known.testable)
            raise ConfigError("no such per-query metric", where=name, expected=f"R@k, {known}")
        return metric.values(self)

    def as_dict(self) -> dict[str, Any]:
        """JSON types; ``from_dict`` reads them back without loss."""
        return {
            f.name: getattr(self, f.name) if f.name == "gallery" else getattr(self, f.name).tolist()
            for f in fields(self)
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> RankResult:
        """Raises DataError: a field is missing, or the fields differ in length."""
        try:
            row = {f.name: np.asarray(stored[f.name]) for f in fields(cls) if f.name != "gallery"}
            result = cls(**row, gallery=int(stored["gallery"]))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"unreadable per-query ranks ({error!r})", expected=", ".join(f.name for f in fields(cls))
            ) from None
        lengths = {np.shape(getattr(result, f.name)) for f in fields(cls) if f.name != "gallery"}
        if lengths != {(len(result.rank),)}:
            raise DataError(
                "the fields of the per-query ranks differ in length",
                where=sorted(lengths),
                expected="one value a query",
            )
        return result


def ranks(
    score_block: Callable[[slice], Array], query_group: ArrayLike, gallery_group: ArrayLike, block: int | None = None
) -> RankResult:
    """Ranks a gallery for every query, one block of queries at a time; the full Q x G matrix never exists.

    Args:
        score_block: rows of queries -> [q, G] scores, higher = better; NumPy, or torch on any device (counted there)
        query_group: [Q] and gallery_group [G]: rows of equal group are each other's positives
        block: queries at a time; None = what a tile of 4 million scores allows
    Returns:
        RankResult; average precision under ties after McSherry & Najork, ECIR 2008, section 3
    Raises:
        DataError: no queries, a query without a positive in the gallery, or a block of the wrong shape
    """
    import torch

    query, gallery = _ids(query_group), _ids(gallery_group)
    places, n_positives = positives(query, gallery)
    step = block or max(1, _TILE_SCORES // len(gallery))
    blocks: list[list[torch.Tensor]] = []
    for start in range(0, len(query), step):
        rows = slice(start, min(start + step, len(query)))
        tile = torch.as_tensor(score_block(rows)).detach()
        if tile.shape != (rows.stop - rows.start, len(gallery)):
            raise DataError(
                "a block of scores has the wrong shape",
                where=tuple(tile.shape),
                expected=f"{(rows.stop - rows.start, len(gallery))}",
            )
        # nan_to_num copies: the caller's scores stay as they are
        tile = (tile if tile.dtype in (torch.float32, torch.float64) else tile.float()).nan_to_num(
            torch.inf, torch.inf, -torch.inf
        )
        score = tile.gather(
            1, torch.from_numpy(places[rows]).to(tile.device)
        )  # a second product could round otherwise, and break a tie
        blocks.append([score.cpu(), *(part.cpu() for part in above_and_tied(tile, tile.shape[1], score))])
    score, above, tied = (torch.cat(part) for part in zip(*blocks, strict=True))
    return ranks_from_counts(score, n_positives, above, tied, query, len(gallery))


def positives(query: ArrayLike, gallery: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The columns of each query's positives in the gallery.

    query [Q], gallery [G] ids

    Returns:
        [Q, P] columns, where P is the largest number of positives of a query and the padding is arbitrary; and [Q] the
        number of positives of each query
    Raises:
        DataError: no queries, or a query without a positive in the gallery
    """
    query, gallery = _ids(query), _ids(gallery)
    if not len(query):
        raise DataError("nothing to evaluate: no queries", expected="at least one query")
    order = np.argsort(gallery, kind="stable")
    first, last = (np.searchsorted(gallery[order], query, side=side) for side in ("left", "right"))
    count = (last - first).astype(np.int64)
    if not count.all():
        lost = query[count == 0]
        raise DataError(
            f"{len(lost)} queries have no positive in the gallery",
            where=f"group {lost[0]}",
            expected="every query's group in the gallery",
        )
    column = np.arange(count.max())
    return order[np.where(column < count[:, None], first[:, None] + column, 0)], count


def similarity_ranks(
    z_query: Array, z_gallery: Array, query_group: ArrayLike, gallery_group: ArrayLike, block: int | None = None
) -> RankResult:
    """``ranks`` by the dot product of unit vectors, on the device of ``z_query``.

    z_query [Q, E], z_gallery [G, E] float of any width. Products are taken in float64 and rounded to float32: a float32
    product gives equal vectors unequal scores in different corners of the matrix, and a constant encoder would no
    longer score chance.
    """
    import torch

    query = torch.as_tensor(z_query).detach()
    wide = torch.float32 if query.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
    query = query.to(wide)
    gallery = torch.as_tensor(z_gallery).detach().to(query.device, wide)
    return ranks(lambda rows: (query[rows] @ gallery.T).float(), query_group, gallery_group, block)


def retrieval_metrics(result: RankResult, prefix: str) -> dict[str, float]:
    """The metrics of one direction by open_clip's names: ``PREFIX_R@1``, ``_R@5``, ``_R@10``, ``_mAP`` (fractions
    0..1), ``_median_rank``, ``_mean_rank`` (from 1), and what else ``METRICS`` holds."""
    return {
        f"{prefix}_{name}": float(metric.aggregate(metric.values(result)))
        for name, metric in METRICS.items()
        if metric.values is not None and metric.stored
    }


def summary(a_to_b: RankResult, b_to_a: RankResult, names: tuple[str, str] = ("image", "text")) -> dict[str, float]:
    """``retrieval_metrics`` of both directions and ``R-sum``, the sum of their six recalls in percent (0..600)."""
    a, b = names
    directions = (f"{a}_to_{b}", f"{b}_to_{a}")
    both = retrieval_metrics(a_to_b, directions[0]) | retrieval_metrics(b_to_a, directions[1])
    return both | {
        name: 100 * sum(both[f"{direction}_{part}"] for direction in directions for part in metric.sum_of)
        for name, metric in METRICS.items()
        if metric.sum_of
    }


def zero_shot(
    z: Array, class_z: Array, label: ArrayLike, classes: Sequence[str]
) -> tuple[RankResult, dict[str, float]]:
    """Zero-shot classification: each sample retrieves its class among C prompts (ties by the rule above; chance is
    exactly k / C).

    z [n, E]; class_z [C, E], one prompt vector a class; label [n], the class name of each sample; classes, C names

    Returns:
        per-sample ranks, and ``accuracy``, ``accuracy@5``, ``mean_class_accuracy`` and ``accuracy/NAME`` of each class
        met, 0..1
    Raises:
        DataError: a label that is no class
    """
    result = similarity_ranks(z, class_z, label, np.asarray(classes))
    met, row = np.unique(result.query_group, return_inverse=True)
    hit = result.hits(1)
    share = np.bincount(row, hit) / np.bincount(row)
    named = {
        "accuracy": float(hit.mean()),
        "accuracy@5": float(result.hits(5).mean()),
        "mean_class_accuracy": float(share.mean()),
    }
    return result, named | {f"accuracy/{name}": float(value) for name, value in zip(met, share, strict=True)}


def _ids(group: ArrayLike | torch.Tensor) -> NDArray[Any]:
    ids = group.cpu().numpy() if hasattr(group, "cpu") else np.asarray(group)
    if ids.ndim != 1:
        raise DataError("groups must be a row of ids", where=f"shape {ids.shape}", expected="one dimension")
    return ids


def ranks_from_counts(
    score: torch.Tensor,
    n_positives: NDArray[np.int64],
    above: torch.Tensor,
    tied: torch.Tensor,
    query_group: NDArray[Any],
    gallery: int,
) -> RankResult:
    """Ranks and average precision from counts.

    Args:
        score: [Q, P] of every positive, NaN read as +inf; what lies behind a query's ``n_positives`` is padding
        above, tied: [Q, P] how many of the whole gallery score above that positive and equal to it (NaN read as +inf),
            itself counted
    """
    import torch

    n = torch.from_numpy(n_positives)[:, None]
    real = torch.arange(score.shape[1]) < n
    valid = real & (score < torch.inf)
    n_valid = valid.sum(1, keepdim=True)
    value = torch.where(valid, score, -torch.inf)
    above_valid, tied_valid = above_and_tied(torch.where(valid, score, torch.inf), n_valid, value)
    # invalid negatives rank ahead of all, as +inf does; invalid positives rank last, so they are subtracted again
    above_negatives, tied_negatives = above - (n - n_valid) - above_valid, tied - tied_valid
    best = torch.where(valid, score.double().clamp_min(-1e300), -torch.inf).argmax(
        1, keepdim=True
    )  # a valid -inf ranks before an invalid score
    some = (n_valid[:, 0] > 0).numpy()
    of_best = [part.gather(1, best)[:, 0].numpy() for part in (above_negatives, tied_negatives, tied_valid)]
    ahead = np.where(some, of_best[0], gallery - n_positives)
    tied_negative, tied_positive = (np.where(some, part, 0) for part in of_best[1:])
    harmonic = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, gallery + 1))])
    counts = (above_negatives + above_valid, tied_negatives + tied_valid, above_valid, tied_valid, valid)
    ap = _precision(harmonic, *(part.numpy() for part in counts)).sum(1) / n_positives
    rank = np.where(tied_positive > 0, ahead + 1.0 + tied_negative / (tied_positive + 1.0), float(gallery))
    return RankResult(rank, ahead, tied_negative, tied_positive, ap, n_positives, query_group, gallery)


def above_and_tied(
    row: torch.Tensor, total: torch.Tensor | int, value: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """How many of the first ``total`` of each row, in ascending order, are greater than and equal to each value; both
    [q, P].
    """
    import torch

    # NumPy's vectorised sort of rows is about 14 times as fast as torch's on a CPU
    ascending = torch.from_numpy(np.sort(row.numpy(), axis=1)) if row.device.type == "cpu" else row.sort(dim=1).values
    ascending, value = ascending.contiguous(), value.contiguous()
    upto = torch.searchsorted(ascending, value, right=True)
    return total - upto, upto - torch.searchsorted(ascending, value)


def _precision(
    harmonic: NDArray[np.float64],
    above: NDArray[Any],
    tied: NDArray[Any],
    above_positives: NDArray[Any],
    tied_positives: NDArray[Any],
    valid: NDArray[Any],
) -> NDArray[np.float64]:
    """[q, P] expected precision at each positive: the mean over the n places i of its tied group
    of (R + 1 + (i - 1)(r - 1) / (n - 1)) / (N + i).

    N, R items and positives above; n, r items and positives tied. 0 for a positive without a valid score.
    """
    n = np.maximum(tied, 1)
    total = np.where(valid, above + n, 1)
    start = total - np.where(valid, n, 1)
    inverse = np.where(n == 1, 1.0 / (start + 1.0), harmonic[total] - harmonic[start])  # sum of 1 / (N + i)
    rising = np.where(n == 1, 0.0, n - (start + 1.0) * inverse)  # sum of (i - 1) / (N + i)
    expected = ((above_positives + 1) * inverse + (tied_positives - 1) / np.maximum(n - 1, 1) * rising) / n
    return np.where(valid, expected, 0.0)
