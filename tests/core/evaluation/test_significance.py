from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from ccaco_cli.core.errors import ConfigError, DataError
from ccaco_cli.core.evaluation import significance
from ccaco_cli.core.evaluation.metrics import ranks, summary
from ccaco_cli.core.evaluation.significance import (
    BETTER,
    NOT_SEPARABLE,
    WORSE,
    PerQuery,
    compare,
    corrected,
    estimate,
    holm,
    per_query,
)


def runs(rate, seeds=3, clusters=200, each=5, noise=0.0, seed=0) -> list[PerQuery]:
    """Hits of several seeds on the same pictures: easy and hard pictures are so for every seed; ``noise`` = spread
    between seeds.
    """
    rng = np.random.default_rng(seed)
    ease = np.random.default_rng(99).standard_normal(clusters) * 0.15
    cluster = np.arange(clusters).repeat(each)
    per_run = []
    for _ in range(seeds):
        chance = np.clip(rate + ease + rng.standard_normal() * noise, 0, 1).repeat(each)
        per_run.append(PerQuery.of((rng.random(clusters * each) < chance).astype(float), cluster))
    return per_run


def test_per_query_values_are_summed_by_cluster():
    per_query = PerQuery.of([1, 0, 1, 1], ["b", "a", "b", "a"])
    assert (
        per_query.cluster.tolist() == ["a", "b"]
        and per_query.total.tolist() == [[1], [2]]
        and per_query.count.tolist() == [[2], [2]]
    )
    assert per_query.mean == 0.75
    with pytest.raises(DataError, match="not finite: 1 of 2"):
        PerQuery.of([1, float("nan")], [0, 1])
    with pytest.raises(DataError, match="do not fit"):
        PerQuery.of([1, 2], [0])


def test_metrics_by_name_equal_the_summary():
    rng = np.random.default_rng(0)
    image, text = np.arange(40), np.arange(40).repeat(3)
    scores = rng.standard_normal((40, 120)) + 2 * (image[:, None] == text)
    to_text, to_image = ranks(lambda rows: scores[rows], image, text), ranks(lambda rows: scores.T[rows], text, image)
    results, figures = {"image_to_text": to_text, "text_to_image": to_image}, summary(to_text, to_image)
    for name in ("text_to_image_R@5", "image_to_text_mAP", "text_to_image_mean_rank", "R-sum"):
        assert per_query(name, results).mean == pytest.approx(figures[name])
    assert per_query("R-sum", results).total.shape == (40, 2)
    assert not per_query("text_to_image_mean_rank", results).higher_is_better
    folds = [
        ranks(lambda rows: scores[:20, :60][rows], image[:20], text[:60]),
        ranks(lambda rows: scores[20:, 60:][rows], image[20:], text[60:]),
    ]
    assert per_query("image_to_text_R@1", {"image_to_text": folds}).mean == pytest.approx(
        np.mean([f.hits(1).mean() for f in folds])
    )
    for name in ("audio_to_text_R@1", "text_to_image_median_rank"):
        with pytest.raises(ConfigError):
            per_query(name, results)


def test_query_interval_equals_scipy_on_cluster_means():
    (run,) = runs(0.4, seeds=1, clusters=40)
    estimated = estimate([run], seed=3)
    share = run.total[:, 0] / run.count[:, 0]
    ref = stats.bootstrap((share,), np.mean, n_resamples=2000, method="BCa", rng=np.random.default_rng(3))
    assert (estimated.query_low, estimated.query_high) == pytest.approx(tuple(ref.confidence_interval))
    assert (estimated.low, estimated.high) == (
        estimated.query_low,
        estimated.query_high,
    ) and estimated.covers == "queries only: one seed"
    assert np.isnan(estimated.seed_sd) and estimated.query_se == pytest.approx(share.std(ddof=1) / 40**0.5, rel=0.1)


def test_captions_of_a_picture_are_not_independent():
    same = np.random.default_rng(1).integers(0, 2, 60).repeat(5)  # all five succeed or fail together
    clustered = estimate([PerQuery.of(same, np.arange(60).repeat(5))])
    naive = estimate([PerQuery.of(same, np.arange(300))])
    assert clustered.query_se == pytest.approx(naive.query_se * 5**0.5, rel=0.1)


def test_clusters_of_unequal_size_weigh_by_their_queries():
    estimated = estimate([PerQuery.of([1] * 9 + [0], [0] * 9 + [1])])
    assert estimated.value == pytest.approx(0.9)


def test_seed_spread_widens_the_joint_interval_only():
    quiet, loud = estimate(runs(0.5)), estimate(runs(0.5, noise=0.1))
    assert loud.seed_sd > 3 * quiet.seed_sd
    assert loud.query_se == pytest.approx(quiet.query_se, rel=0.35)
    assert loud.high - loud.low > 3 * (loud.query_high - loud.query_low)
    assert loud.covers == "queries and seeds" and loud.low < loud.value < loud.high


def test_the_joint_interval_by_hand():
    estimated = estimate([PerQuery.of([0, 1, 1, 1 + shift], np.arange(4)) for shift in (-0.4, 0.0, 0.4)])
    assert (estimated.value, estimated.seed_sd) == pytest.approx((0.75, 0.1))
    by_seed, both = 0.01 / 3, estimated.query_se**2 + 0.01 / 3
    freedom = both**2 / (estimated.query_se**4 / 3 + by_seed**2 / 2)
    assert estimated.high - estimated.value == pytest.approx(stats.t.ppf(0.975, freedom) * both**0.5)


def test_coverage_of_the_joint_interval_and_of_the_rejected_hierarchical_bootstrap():
    rng = np.random.default_rng(7)
    joint = drawn_anew = 0
    for trial in range(trials := 200):
        ease, skill = rng.standard_normal(60) * 0.3, rng.standard_normal(3) * 0.1
        values = ease + skill[:, None] + rng.standard_normal((3, 60)) * 0.1  # the true mean is 0
        estimated = estimate([PerQuery.of(v, np.arange(60)) for v in values], resamples=200, seed=trial)
        joint += estimated.low <= 0 <= estimated.high
        weight = rng.multinomial(60, [1 / 60] * 60, 200) / 60
        means = np.einsum("rsc,rc->r", values[rng.integers(0, 3, (200, 3))] / 3, weight)
        low, high = np.quantile(means, [0.025, 0.975])
        drawn_anew += low <= 0 <= high
    assert 0.91 <= joint / trials <= 1.0
    assert drawn_anew / trials < 0.91


def test_no_difference_means_p_1_and_no_false_claims():
    same = runs(0.5)
    comparison = compare(same, same)
    assert (comparison.value, comparison.low, comparison.high, comparison.p, comparison.effect) == (
        0,
        0,
        0,
        1,
        0,
    ) and comparison.verdict == NOT_SEPARABLE
    claims = [
        compare(runs(0.5, seed=2 * i), runs(0.5, seed=2 * i + 1), resamples=200, permutations=499).verdict
        for i in range(40)
    ]
    assert sum(v != NOT_SEPARABLE for v in claims) <= 5


def test_p_values_under_the_null_are_uniform():
    rng = np.random.default_rng(11)
    p = [significance._sign_flips(rng.standard_normal(30), 199, seed) for seed in range(300)]
    assert stats.kstest(p, "uniform").pvalue > 0.01


def test_p_equals_scipys_permutation_test():
    rng = np.random.default_rng(5)
    exact_share = rng.integers(-2, 4, 12) / 5
    for share in (exact_share, rng.standard_normal(80) + 0.15):
        ref = stats.permutation_test(
            (share,), np.sum, permutation_type="samples", vectorized=False, n_resamples=9999, rng=1
        )
        assert significance._sign_flips(share, 20000, 0) == pytest.approx(ref.pvalue, abs=0.015)


def test_verdicts():
    low, high = runs(0.3, seed=1), runs(0.45, seed=2)
    better, worse = compare(low, high), compare(high, low)
    assert better.verdict == BETTER and worse.verdict == WORSE
    assert (
        better.value == pytest.approx(-worse.value)
        and better.effect == pytest.approx(-worse.effect)
        and better.effect > 0.3
    )
    assert better.value == pytest.approx(np.mean([r.mean for r in high]) - np.mean([r.mean for r in low]))
    flipped = compare(*([PerQuery(r.cluster, r.total, r.count, False) for r in arm] for arm in (low, high)))
    assert flipped.verdict == WORSE


def test_a_difference_that_seeds_do_not_agree_on_is_not_separable():
    queries = np.arange(300)
    reference = [PerQuery.of(np.full(300, 0.5), queries)] * 3
    jitter = np.random.default_rng(0).standard_normal(300) * 0.01
    other = [PerQuery.of(0.5 + shift + jitter, queries) for shift in (-0.05, 0.02, 0.12)]
    comparison = compare(reference, other)
    assert comparison.p < 0.001 and comparison.query_low > 0  # on these models beyond doubt
    assert comparison.verdict == NOT_SEPARABLE  # on other seeds anybody's guess
    assert compare(reference[:1], other[2:]).verdict == BETTER and compare(reference[:1], other[2:]).covers.endswith(
        "one seed"
    )


def test_seeds_are_paired():
    swing = [0.2, 0.5, 0.7]  # seeds differ by far more than the arms do
    rng = np.random.default_rng(3)
    noise = rng.standard_normal((2, 3, 100)) * 0.02
    arms = [
        [PerQuery.of(s + arm * 0.03 + noise[arm, i], np.arange(100)) for i, s in enumerate(swing)] for arm in (0, 1)
    ]
    assert estimate(arms[0]).seed_sd > 0.2 and compare(*arms).seed_sd < 0.01 and compare(*arms).verdict == BETTER


def test_r_sum_adds_both_directions_of_a_picture():
    rng = np.random.default_rng(4)
    images = np.arange(50)
    hits = [(rng.integers(0, 2, 50).astype(float), rng.integers(0, 2, 250).astype(float)) for _ in range(2)]
    ref, new = ([PerQuery.joined([PerQuery.of(a, images), PerQuery.of(b, images.repeat(5))])] for a, b in hits)
    comparison = compare(ref, new)
    share = (hits[1][0] - hits[0][0]) + (hits[1][1] - hits[0][1]).reshape(50, 5).mean(1)  # of each picture, over 50
    assert comparison.value == pytest.approx(share.mean())
    assert comparison.query_se == pytest.approx(share.std(ddof=1) / 50**0.5, rel=0.1)
    assert comparison.effect == pytest.approx(share.mean() / share.std(ddof=1))


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]).tolist() == [1, 1] and holm([0.2]).tolist() == [0.2] and holm([]).size == 0


def test_arms_are_corrected_together():
    reference = runs(0.4, seed=1)
    arms = {"up": runs(0.55, seed=2), "same": runs(0.4, seed=3), "down": runs(0.25, seed=4)}
    comparisons = corrected({name: compare(reference, arm, permutations=999) for name, arm in arms.items()})
    assert [comparison.verdict for comparison in comparisons.values()] == [BETTER, NOT_SEPARABLE, WORSE]
    assert comparisons["up"].p == 0.001 and comparisons["up"].p_holm == pytest.approx(0.003)
    up = compare(reference, arms["up"], permutations=999, resamples=50)
    one_of_many = corrected({str(i): up for i in range(60)})
    assert one_of_many["0"].p_holm == pytest.approx(0.06) and one_of_many["0"].verdict == NOT_SEPARABLE


def test_the_same_call_gives_the_same_numbers():
    a, b = runs(0.4, seed=1), runs(0.45, seed=2)
    assert compare(a, b, seed=5) == compare(a, b, seed=5)
    assert compare(a, b, seed=5).query_low != compare(a, b, seed=6).query_low


def test_bad_input_is_named():
    a = runs(0.4)
    with pytest.raises(DataError, match=r"3 and 2.*paired by seed"):
        compare(a, a[:2])
    with pytest.raises(DataError, match="different queries"):
        compare(a, runs(0.4, clusters=199))
    with pytest.raises(DataError, match="different queries"):
        compare(a, runs(0.4, each=4))
    with pytest.raises(DataError, match="two groups or more"):
        estimate([PerQuery.of([1, 0], [0, 0])])
    with pytest.raises(DataError, match="0 runs"):
        estimate([])
