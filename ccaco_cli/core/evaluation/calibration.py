"""Probabilities of being a true pair from scores, and how reliable they are. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from ccaco_cli.core.errors import DataError
from ccaco_cli.core.evaluation.choice_metrics import best_threshold

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

BINS = 10
MAX_ITERATIONS = 100
EVEN = 0.5
"""The share of true pairs for which a calibration is fitted."""


@dataclass(frozen=True)
class Calibration:
    """``probability = sigmoid(slope * score + offset)`` where half of the pairs are true.

    Attributes:
        threshold: the probability that separated true pairs from others with the highest accuracy where it was fitted.
        pairs: number of true pairs on which it was fitted, beside as many others.
        split: where these pairs come from.
    """

    slope: float
    offset: float
    threshold: float
    pairs: int
    split: str = ""

    def probability(self, score: ArrayLike, prior: float = EVEN) -> NDArray[np.float64]:
        """The probability, 0..1, of each score; NaN for a score that is not finite.

        Args:
            prior: share of true pairs among those that are scored, 0 < prior < 1 (Bayes' rule moves the offset).
        """
        scores = np.asarray(score, float)
        logit = self.slope * np.where(np.isfinite(scores), scores, np.nan) + self.offset + np.log(prior / (1 - prior))
        return _sigmoid(logit)

    def as_dict(self) -> dict[str, Any]:
        """For manifests."""
        return asdict(self)

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> Calibration:
        """What ``as_dict`` gave."""
        return cls(**facts)


def fit(true_scores: ArrayLike, false_scores: ArrayLike, split: str = "") -> Calibration:
    """Logistic calibration by maximum likelihood with Platt's targets, which keep the slope finite where the scores
    separate all pairs (Platt 1999; Newton's method as in Lin, Lin and Weng 2007). The slope is never negative.

    Args:
        true_scores: [n] scores of true pairs. false_scores: [m] scores of others; both sides have the same total
            weight. Scores that are not finite are left out.
        split: stored with the result.
    Raises:
        DataError: no finite score on one side.
    """
    true, false = (x[np.isfinite(x)] for x in (np.asarray(true_scores, float), np.asarray(false_scores, float)))
    if not len(true) or not len(false):
        raise DataError(
            "no scores to calibrate by",
            where=f"{len(true)} true and {len(false)} other pairs",
            expected="finite scores of both",
        )
    scores = np.concatenate([true, false])
    centre, spread = scores.mean(), scores.std() or 1.0
    x = np.stack([(scores - centre) / spread, np.ones(len(scores))], 1)
    is_true = np.arange(len(scores)) < len(true)
    target = np.where(is_true, (len(true) + 1) / (len(true) + 2), 1 / (len(false) + 2))
    weight = np.where(is_true, 0.5 / len(true), 0.5 / len(false))

    def loss(parameters: NDArray[np.float64]) -> float:
        logit = x @ parameters
        return float(weight @ (np.logaddexp(0.0, logit) - target * logit))

    parameters = np.zeros(2)
    for _ in range(MAX_ITERATIONS):
        p = _sigmoid(x @ parameters)
        gradient = x.T @ (weight * (p - target))
        curvature = (x * (weight * p * (1 - p))[:, None]).T @ x + 1e-12 * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        size = 1.0
        while loss(parameters - size * step) > loss(parameters) and size > 1e-6:
            size /= 2
        parameters = parameters - size * step
        if np.abs(gradient).max() < 1e-10:
            break
    if parameters[0] < 0:  # higher scores of false pairs tell nothing: every pair has the prior
        parameters = np.zeros(2)
    slope = float(parameters[0] / spread)
    offset = float(parameters[1] - slope * centre)
    fitted = Calibration(slope, offset, EVEN, len(true), split)
    threshold = best_threshold(fitted.probability(true), fitted.probability(false))
    return Calibration(slope, offset, float(np.clip(threshold, 0.0, 1.0)), len(true), split)


@dataclass(frozen=True)
class ReliabilityBin:
    """The pairs whose probability lies in one interval.

    Attributes:
        low, high: of the interval; a probability of ``high`` belongs to the next one.
        predicted: mean probability. observed: share of true pairs. Both are None in an empty bin.
        n: number of pairs.
    """

    low: float
    high: float
    predicted: float | None
    observed: float | None
    n: int


@dataclass(frozen=True)
class Reliability:
    """How far probabilities agree with what is observed.

    Attributes:
        ece: expected calibration error, 0..1: mean over pairs of \\|predicted - observed\\| of their bin.
        brier: mean squared difference of probability and truth, 0..1 (0.25 = always 1/2).
        threshold: probability from which a pair counts as true, chosen with the calibration.
        accuracy: share of pairs on the right side of it.
        bins: ``BINS`` intervals of equal width.
    """

    ece: float
    brier: float
    threshold: float
    accuracy: float
    bins: tuple[ReliabilityBin, ...]

    def as_dict(self) -> dict[str, Any]:
        """For result files."""
        return asdict(self)

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> Reliability:
        """What ``as_dict`` gave. Raises KeyError for a field that an older result lacks."""
        bins = tuple(
            ReliabilityBin(**{field.name: part[field.name] for field in fields(ReliabilityBin)})
            for part in facts["bins"]
        )
        return cls(facts["ece"], facts["brier"], facts["threshold"], facts["accuracy"], bins)


def reliability(probability: ArrayLike, is_true: ArrayLike, threshold: float = EVEN) -> Reliability:
    """Measures probabilities against the truth.

    Args:
        probability: [n] 0..1; those that are not finite are left out.
        is_true: [n] bool.
        threshold: probability from which a pair counts as true.
    Raises:
        DataError: no finite probability.
    """
    p, truth = np.asarray(probability, float), np.asarray(is_true, bool)
    p, truth = p[np.isfinite(p)], truth[np.isfinite(p)]
    if not len(p):
        raise DataError("no probabilities to measure", expected="at least one pair with a finite score")
    place = np.minimum((p * BINS).astype(int), BINS - 1)
    bins, error = [], 0.0
    for number in range(BINS):
        members = place == number
        n = int(members.sum())
        predicted, observed = (float(x[members].mean()) if n else None for x in (p, truth))
        if predicted is not None and observed is not None:
            error += n / len(p) * abs(predicted - observed)
        bins.append(ReliabilityBin(number / BINS, (number + 1) / BINS, predicted, observed, n))
    accuracy = float(((p >= threshold) == truth).mean())
    return Reliability(error, float(((p - truth) ** 2).mean()), threshold, accuracy, tuple(bins))


def _sigmoid(logit: NDArray[np.float64]) -> NDArray[np.float64]:
    probability: NDArray[np.float64] = 0.5 * (1 + np.tanh(0.5 * logit))
    return probability
