"""How far apart the embeddings of two domains lie."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from ccaco_cli.core.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

PENALTIES = (0.01, 1.0, 100.0)
"""Values of C of the linear classifiers; the highest accuracy counts, as in the experiments of DANN."""


def separability(source: NDArray[Any], target: NDArray[Any], seed: int = 0) -> dict[str, float]:
    """How well a linear classifier separates two domains: trained on half of the samples of each, tested on the
    other half.

    source [n, E], target [m, E], n and m >= 4; both domains weigh alike

    Returns:
        ``domain_accuracy`` 0..1, 0.5 = not separable, and ``proxy_a_distance`` = 2 (1 - 2 error) of the same
        classifier (arXiv:1505.07818, section 5.1), 0 (or a little below, by chance) .. 2
    Raises:
        DataError: too few samples, or values that are not finite
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.svm import LinearSVC

    if min(len(source), len(target)) < 4 or not (np.isfinite(source).all() and np.isfinite(target).all()):
        raise DataError(
            "domains cannot be compared",
            where=f"{len(source)} and {len(target)} samples",
            expected="4 or more each, all finite",
        )
    x, y = np.concatenate([source, target]), np.repeat([0, 1], [len(source), len(target)])
    rng = np.random.default_rng(seed)
    order = [rng.permutation(np.flatnonzero(y == code)) for code in (0, 1)]
    train = np.concatenate([rows[: len(rows) // 2] for rows in order])
    test = np.concatenate([rows[len(rows) // 2 :] for rows in order])
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", ConvergenceWarning
        )  # separable data and a large C: the accuracy is settled long before
        fits = [LinearSVC(C=c, class_weight="balanced", random_state=seed).fit(x[train], y[train]) for c in PENALTIES]
    accuracy = max(float(balanced_accuracy_score(y[test], fit.predict(x[test]))) for fit in fits)
    return {"domain_accuracy": accuracy, "proxy_a_distance": 2 * (2 * accuracy - 1)}


def plane(z: NDArray[Any]) -> NDArray[Any]:
    """[n, E] -> [n, 2]: the two directions of largest variance (principal components), for a picture. Signs are
    settled, so it is the same for the same vectors."""
    centred = z - z.mean(0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    axes = axes[:2] * np.sign(axes[np.arange(2), np.abs(axes[:2]).argmax(1)])[:, None]
    coordinates: NDArray[Any] = centred @ axes.T
    return coordinates
