"""Accuracies of single choices: among captions, among partners, and of pairs as true or false. A tie or a NaN is
wrong.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ccaco_cli.core.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


def choice_accuracy(true_scores: ArrayLike, false_scores: ArrayLike) -> NDArray[np.float64]:
    """[n] 1.0 where the true caption scores above every false one (binding: captions with swapped words); a tie or a
    NaN is wrong.

    true_scores [n]; false_scores [n, m] or [n]; chance is 1 / (m + 1)

    Raises:
        DataError: shapes that do not fit, or nothing to choose from
    """
    true, false = np.asarray(true_scores, dtype=float), np.asarray(false_scores, dtype=float)
    false = false[:, None] if false.ndim == 1 else false
    if true.ndim != 1 or false.ndim != 2 or len(true) != len(false) or not false.size:
        raise DataError(
            "true and false scores do not fit",
            where=f"{true.shape} and {false.shape}",
            expected="[n] and [n, m], n and m >= 1",
        )
    return ((true[:, None] > false).all(1) & (true < np.inf)).astype(float)


def matching_accuracy(match_logit: ArrayLike, label: ArrayLike) -> NDArray[np.float64]:
    """[n] 1.0 where the sign of the logit says whether the pair belongs together; 0 and NaN are wrong.

    match_logit [n]; label [n] bool, as many true as false, so that chance is 0.5

    Raises:
        DataError: shapes that do not fit, or unbalanced pairs
    """
    logit, same = np.asarray(match_logit, dtype=float), np.asarray(label, dtype=bool)
    if logit.ndim != 1 or logit.shape != same.shape:
        raise DataError("logits and labels do not fit", where=f"{logit.shape} and {same.shape}", expected="[n] both")
    if not len(same) or 2 * same.sum() != len(same):
        raise DataError(
            "unbalanced pairs", where=f"{same.sum()} true of {len(same)}", expected="as many true as false pairs"
        )
    return np.where(same, logit > 0, logit < 0).astype(float)


def best_threshold(true_scores: ArrayLike, false_scores: ArrayLike) -> float:
    """The threshold that separates true and false pairs with the highest accuracy; it lies halfway between two scores.

    true_scores [n], false_scores [m], both with the same total weight; scores that are not finite are left out

    Raises:
        DataError: no finite score on either side
    """
    true, false = (
        np.sort(values[np.isfinite(values)])
        for values in (np.asarray(true_scores, float), np.asarray(false_scores, float))
    )
    if not len(true) or not len(false):
        raise DataError(
            "no scores to choose a threshold by",
            where=f"{len(true)} true and {len(false)} false",
            expected="one of either",
        )
    scores = np.unique(np.concatenate([true, false]))
    cuts = np.concatenate([[scores[0] - 1], (scores[:-1] + scores[1:]) / 2, [scores[-1] + 1]])
    right = 1 - np.searchsorted(true, cuts, "right") / len(true) + np.searchsorted(false, cuts, "right") / len(false)
    return float(cuts[right.argmax()])
