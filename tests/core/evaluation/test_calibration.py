from __future__ import annotations

import numpy as np
import pytest
from sklearn.calibration import _SigmoidCalibration
from sklearn.metrics import brier_score_loss

from ccaco_cli.core.errors import DataError
from ccaco_cli.core.evaluation.calibration import Calibration, Reliability, fit, reliability


def draw(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(1.0, 1.0, n), rng.normal(-1.0, 1.0, n)


def test_it_is_the_sigmoid_calibration_of_a_public_library() -> None:
    true, false = draw(2000)
    ours = fit(true, false)
    peer = _SigmoidCalibration().fit(np.concatenate([true, false]), np.repeat([1, 0], 2000))
    assert (-ours.slope, -ours.offset) == pytest.approx((peer.a_, peer.b_), abs=1e-4)
    # the logit of two unit normals at +1 and -1 is 2 x
    assert (ours.slope, ours.offset) == pytest.approx((2.0, 0.0), abs=0.15)


@pytest.mark.parametrize("scale, shift", [(1e-3, 0.2), (100.0, -5e3), (1.0, 0.0)])
def test_units_of_the_score_do_not_matter(scale: float, shift: float) -> None:
    true, false = draw(300)
    plain, moved = fit(true, false), fit(scale * true + shift, scale * false + shift)
    assert moved.probability(scale * true + shift) == pytest.approx(plain.probability(true), abs=1e-6)


@pytest.mark.parametrize("true, false", [([1.0, 2.0], [-1.0, 0.0]), ([1.0], [0.0]), ([3.0] * 5, [3.0] * 5)])
def test_separable_few_and_equal_scores_stay_finite(true: list[float], false: list[float]) -> None:
    fitted = fit(true, false)
    p = fitted.probability([*true, *false])
    assert np.isfinite(p).all() and ((p > 0) & (p < 1)).all()
    if true == false:
        assert p == pytest.approx(0.5)


def test_a_score_that_is_higher_for_false_pairs_tells_nothing() -> None:
    true, false = draw(200)
    assert fit(false, true).probability([-3.0, 3.0], prior=0.2) == pytest.approx(0.2)


def test_the_prior_is_bayes_rule() -> None:
    fitted = fit(*draw(500))
    even = fitted.probability([0.3])[0]
    odds = even / (1 - even) * 0.1 / 0.9
    assert fitted.probability([0.3], prior=0.1)[0] == pytest.approx(odds / (1 + odds))


def test_scores_that_are_not_finite_have_no_probability_and_no_influence() -> None:
    true, false = draw(50)
    with_holes = fit([*true, np.nan, np.inf], [*false, -np.inf])
    assert with_holes == fit(true, false)
    assert np.isnan(with_holes.probability([np.nan, np.inf, -np.inf])).all()
    with pytest.raises(DataError, match="no scores to calibrate by"):
        fit([np.nan], [1.0])


def test_both_sides_have_the_same_weight() -> None:
    true, false = draw(200)
    assert fit(true, np.tile(false, 3)).slope == pytest.approx(fit(true, false).slope, rel=0.02)


def test_reliability_by_hand() -> None:
    measured = reliability([0.05, 0.15, 0.15, 0.95, 1.0, np.nan], [False, True, False, True, True, True])
    # bins: 0.05 -> 0; 0.15 -> 0.5; 0.975 -> 1
    assert measured.ece == pytest.approx((1 * 0.05 + 2 * 0.35 + 2 * 0.025) / 5)
    assert measured.brier == pytest.approx(brier_score_loss([0, 1, 0, 1, 1], [0.05, 0.15, 0.15, 0.95, 1.0]))
    assert [part.n for part in measured.bins] == [1, 2, 0, 0, 0, 0, 0, 0, 0, 2]
    assert measured.bins[2].predicted is None and measured.bins[9].predicted == pytest.approx(0.975)
    assert (measured.threshold, measured.accuracy) == (0.5, pytest.approx(4 / 5))
    assert Reliability.from_dict(measured.as_dict()) == measured
    with pytest.raises(DataError, match="no probabilities"):
        reliability([np.nan], [True])


def test_a_calibration_is_reliable_on_new_pairs_and_an_overconfident_one_is_not() -> None:
    fitted = fit(*draw(3000))
    true, false = draw(3000, seed=1)
    scores, label = np.concatenate([true, false]), np.repeat([True, False], 3000)
    assert reliability(fitted.probability(scores), label).ece < 0.02
    sure = Calibration(5 * fitted.slope, fitted.offset, 0.5, 1)
    assert reliability(sure.probability(scores), label).ece > 0.05
    assert Calibration.from_dict(fitted.as_dict()) == fitted
