from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from ccaco_cli.core.errors import ConfigError, DataError
from ccaco_cli.core.evaluation import choice_metrics, metrics
from ccaco_cli.core.evaluation.metrics import RankResult

NAN, INF = float("nan"), float("inf")


def rank_matrix(scores, query_group, gallery_group, block=None) -> RankResult:
    table = np.asarray(scores, dtype=np.float32)
    return metrics.ranks(lambda rows: table[rows], query_group, gallery_group, block)


def unit(rng: np.random.Generator, n: int, width: int) -> np.ndarray:
    z = rng.standard_normal((n, width))
    return (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)


def by_every_order(scores, positive) -> tuple[list[float], float, float]:
    """Hit rate at every k, mean rank of the first positive and mean AP over all orders that the scores allow."""
    n = len(scores)
    hits, first, ap, orders = np.zeros(n), [], [], 0
    for order in itertools.permutations(range(n)):
        if any(scores[a] < scores[b] for a, b in itertools.pairwise(order)):
            continue
        orders += 1
        relevance = np.array([positive[i] for i in order])
        places = np.flatnonzero(relevance) + 1
        hits += np.arange(1, n + 1) >= places[0]
        first.append(places[0])
        ap.append(np.mean(np.arange(1, len(places) + 1) / places))
    return list(hits / orders), float(np.mean(first)), float(np.mean(ap))


def test_two_by_two_by_hand():
    result = rank_matrix([[0.9, 0.1], [0.8, 0.2]], [7, 8], [7, 8])
    assert result.rank.tolist() == [1, 2]
    assert result.ap.tolist() == [1, 0.5]
    assert result.hits(1).tolist() == [1, 0] and result.hits(2).tolist() == [1, 1]
    assert result.query_group.tolist() == [7, 8] and result.gallery == 2


def test_three_by_three_with_ties_and_nan_by_hand():
    result = rank_matrix(
        [
            [0.5, 0.5, 0.1],  # the positive shares the first place with one negative
            [NAN, 0.9, 0.1],  # a NaN negative stands ahead of the positive
            [0.1, 0.2, NAN],  # the positive itself is NaN
        ],
        [0, 1, 2],
        [0, 1, 2],
    )
    assert result.rank.tolist() == [1.5, 2, 3]
    assert result.hits(1).tolist() == [0.5, 0, 0]
    assert result.hits(2).tolist() == [1, 1, 0]
    assert result.hits(3).tolist() == [1, 1, 0]  # never a hit, not even where every row is among the first k
    assert result.ap.tolist() == [0.75, 0.5, 0]
    assert result.per_query("MRR").tolist() == [1 / 1.5, 0.5, 0]


def test_infinities():
    result = rank_matrix([[INF, 0.5, 0.1], [INF, 0.9, 0.1], [-INF, -INF, -INF]], [0, 1, 2], [0, 1, 2])
    assert result.hits(1) == pytest.approx([0, 0, 1 / 3])
    assert result.rank.tolist() == [3, 2, 2]


def test_a_sound_positive_counts_beside_a_sick_one():
    result = rank_matrix([[NAN, 0.5, 0.9, 0.1]], [0], [0, 0, 1, 1])
    assert result.rank.tolist() == [2] and result.n_positives.tolist() == [2]
    assert result.ap.tolist() == [0.25]  # (1/2 + 0) / 2
    behind = rank_matrix([[NAN, -INF, -INF, 0.1]], [0], [0, 0, 1, 1])  # the sick one ties with nothing, -inf or not
    assert behind.rank.tolist() == [2.5] and behind.hits(2).tolist() == [0.5]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=6).filter(
        lambda rows: any(p for _, p in rows)
    )
)
def test_ties_equal_the_mean_over_every_order(rows):
    scores, positive = [float(s) for s, _ in rows], [p for _, p in rows]
    result = rank_matrix([scores], [1], np.array(positive, dtype=int))
    hits, rank, ap = by_every_order(scores, positive)
    assert [result.hits(k)[0] for k in range(1, len(rows) + 1)] == pytest.approx(hits)
    assert result.rank[0] == pytest.approx(rank)
    assert result.ap[0] == pytest.approx(ap)


@pytest.mark.parametrize("block", [None, 1, 7, 1000])
def test_equal_to_torchmetrics_and_sklearn_on_ordinary_scores(block):
    from torchmetrics.retrieval import RetrievalHitRate, RetrievalMAP, RetrievalMRR  # here: its import takes seconds

    rng = np.random.default_rng(0)
    groups = rng.permutation(np.repeat(np.arange(12), rng.integers(1, 9, 12)))
    query = rng.choice(groups, 30)
    scores = rng.random(
        (30, len(groups)), dtype=np.float32
    )  # above 0: torchmetrics drops a positive that scores 0 or less
    result = rank_matrix(scores, query, groups, block)
    relevant = query[:, None] == groups
    flat = torch.from_numpy(scores).flatten(), torch.from_numpy(relevant).flatten()
    index = torch.arange(30).repeat_interleave(len(groups))
    assert result.ap.mean() == pytest.approx(float(RetrievalMAP()(*flat, indexes=index)), abs=1e-6)
    assert result.per_query("MRR").mean() == pytest.approx(float(RetrievalMRR()(*flat, indexes=index)), abs=1e-6)
    for k in (1, 5, 10):
        assert result.hits(k).mean() == pytest.approx(float(RetrievalHitRate(top_k=k)(*flat, indexes=index)), abs=1e-6)
    assert result.ap == pytest.approx([average_precision_score(r, s) for r, s in zip(relevant, scores, strict=True)])
    assert result.n_positives.tolist() == relevant.sum(1).tolist()


RANX = """
import json, sys
import numpy as np
from ranx import metrics
query, gallery, scores = (np.asarray(part) for part in json.load(sys.stdin))
qrels = [np.array([[i, 1] for i in np.flatnonzero(gallery == q)]) for q in query]
run = [np.array([[i, row[i]] for i in np.argsort(-row)]) for row in scores]
hit_rates = [metrics.hit_rate(qrels, run, k) for k in (1, 5, 10)]
found = [metrics.average_precision(qrels, run), metrics.reciprocal_rank(qrels, run), *hit_rates]
print(json.dumps([list(map(float, values)) for values in found]))
"""


def test_equal_to_ranx():
    pytest.importorskip("ranx", reason="ranx is not installed")
    rng = np.random.default_rng(1)
    groups, query, scores = np.repeat(np.arange(8), 5), np.arange(8), rng.standard_normal((8, 40))
    result = rank_matrix(scores, query, groups)
    # In a process of its own without numba's compiler: compiling takes most of a minute.
    done = subprocess.run(
        [sys.executable, "-c", RANX],
        input=json.dumps([query.tolist(), groups.tolist(), scores.tolist()]),
        env=os.environ | {"NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    ours = [result.ap, result.per_query("MRR"), *(result.hits(k) for k in (1, 5, 10))]
    assert np.stack(ours) == pytest.approx(np.array(json.loads(done.stdout)))


@pytest.mark.parametrize("width", [48, 300])
def test_a_constant_encoder_scores_exactly_chance(width):
    z = unit(np.random.default_rng(2), 1, width)
    image, text = np.arange(103), np.repeat(np.arange(103), 5)
    to_image = metrics.similarity_ranks(z.repeat(515, 0), z.repeat(103, 0), text, image)
    to_text = metrics.similarity_ranks(z.repeat(103, 0), z.repeat(515, 0), image, text)
    for k in (1, 5, 10):
        assert to_image.hits(k) == pytest.approx(np.full(515, k / 103))
    assert to_text.hits(1) == pytest.approx(np.full(103, 1 / 103))
    assert to_text.hits(2) == pytest.approx(np.full(103, 1 - (510 * 509) / (515 * 514)))
    assert to_image.rank == pytest.approx(np.full(515, 52.0))
    assert to_text.rank == pytest.approx(np.full(103, 516 / 6))  # the first of 5 among 515
    assert to_image.ap == pytest.approx(np.full(515, sum(1 / i for i in range(1, 104)) / 103))


def test_a_nan_encoder_never_hits():
    rng = np.random.default_rng(3)
    groups = np.arange(20)
    for query, gallery in ((np.full((20, 8), NAN), unit(rng, 20, 8)), (unit(rng, 20, 8), np.full((20, 8), NAN))):
        result = metrics.similarity_ranks(query, gallery, groups, groups)
        assert not result.hits(20).any() and not result.ap.any() and not result.per_query("MRR").any()
        assert (result.rank == 20).all()
    half = unit(rng, 20, 8)
    half[::2] = NAN  # a sick half of the gallery cannot help the sound half either
    assert not metrics.similarity_ranks(unit(rng, 20, 8), half, groups, groups).hits(10).any()


def test_row_order_does_not_matter():
    rng = np.random.default_rng(4)
    scores = rng.integers(0, 6, (15, 40)).astype(float)
    scores[rng.random(scores.shape) < 0.05] = NAN
    query, gallery = rng.integers(0, 5, 15), np.arange(40) % 5
    q, g = rng.permutation(15), rng.permutation(40)
    ranks, permuted_ranks = (
        rank_matrix(scores, query, gallery),
        rank_matrix(scores[q][:, g], query[q], gallery[g], block=4),
    )
    for name in ("R@1", "R@5", "mAP", "MRR", "mean_rank"):
        assert permuted_ranks.per_query(name) == pytest.approx(ranks.per_query(name)[q])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_recall_grows_with_k_and_a_better_positive_never_hurts(seed):
    rng = np.random.default_rng(seed)
    scores, group = rng.integers(0, 4, (6, 9)).astype(float), np.arange(9) // 2
    query = rng.integers(0, 5, 6)
    result = rank_matrix(scores, query, group)
    recalls = np.stack([result.hits(k) for k in range(1, 10)])
    assert (np.diff(recalls, axis=0) >= -1e-12).all() and (recalls[-1] == 1).all() and (recalls >= 0).all()
    scores[np.arange(6), 2 * query] += 1.5
    raised = rank_matrix(scores, query, group)
    assert (raised.rank <= result.rank + 1e-12).all() and (raised.ap >= result.ap - 1e-12).all()


def test_several_captions_any_of_them_hits():
    result = rank_matrix([[0.1, 0.9, 0.5, 0.6]], ["dog"], ["dog", "dog", "cat", "cat"])
    assert result.hits(1).tolist() == [1] and result.ap.tolist() == [(1 + 2 / 4) / 2]


def test_no_full_matrix_and_the_scores_are_left_alone():
    table = torch.full((50, 30), 0.5)
    table[0, 1] = NAN
    before, blocks = table.clone(), []

    def score(rows: slice) -> torch.Tensor:
        blocks.append(rows.stop - rows.start)
        return table[rows]

    metrics.ranks(score, np.arange(50) % 30, np.arange(30), block=8)
    assert blocks == [8] * 6 + [2]
    assert torch.equal(table.nan_to_num(9), before.nan_to_num(9))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_float_width_of_scores(dtype):
    table = torch.tensor([[3, 1, 2], [1, 1, 0], [0, 1, 2]], dtype=dtype)
    assert metrics.ranks(lambda rows: table[rows], [0, 1, 2], [0, 1, 2]).rank.tolist() == [1, 1.5, 1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_counts_the_same():
    rng = np.random.default_rng(5)
    image, text, groups = unit(rng, 60, 16), unit(rng, 300, 16), np.arange(60)
    image[7], text[11] = NAN, text[12]
    cpu = metrics.similarity_ranks(text, image, groups.repeat(5), groups)
    gpu = metrics.similarity_ranks(
        torch.from_numpy(text).cuda(), torch.from_numpy(image).cuda(), groups.repeat(5), groups, block=64
    )
    assert gpu.as_dict() == cpu.as_dict()


def test_stored_ranks_rebuild_every_metric():
    rng = np.random.default_rng(6)
    result = rank_matrix(rng.integers(0, 9, (20, 30)), np.arange(20) % 6, np.arange(30) % 6)
    back = RankResult.from_dict(json.loads(json.dumps(result.as_dict())))
    assert metrics.retrieval_metrics(back, "a_to_b") == metrics.retrieval_metrics(result, "a_to_b")
    with pytest.raises(DataError, match="'ap'"):
        RankResult.from_dict({k: v for k, v in result.as_dict().items() if k != "ap"})
    with pytest.raises(DataError, match="differ in length"):
        RankResult.from_dict(result.as_dict() | {"ap": [0.5]})


def test_summary_names_and_r_sum():
    perfect = rank_matrix(np.eye(4), np.arange(4), np.arange(4))
    worst = rank_matrix(1 - np.eye(4), np.arange(4), np.arange(4))
    summary = metrics.summary(perfect, worst)
    assert summary == {
        "image_to_text_R@1": 1, "image_to_text_R@5": 1, "image_to_text_R@10": 1,
        "image_to_text_mAP": 1, "image_to_text_median_rank": 1, "image_to_text_mean_rank": 1,
        "text_to_image_R@1": 0, "text_to_image_R@5": 1, "text_to_image_R@10": 1,
        "text_to_image_mAP": 0.25, "text_to_image_median_rank": 4, "text_to_image_mean_rank": 4,
        "R-sum": 500,
    }  # fmt: skip
    assert "video_to_audio_R@1" in metrics.summary(perfect, worst, ("video", "audio"))


def test_bad_input_is_named():
    with pytest.raises(DataError, match=r"2 queries have no positive.*group 5"):
        rank_matrix(np.zeros((3, 2)), [5, 0, 6], [0, 1])
    with pytest.raises(DataError, match="no queries"):
        rank_matrix(np.zeros((0, 2)), [], [0, 1])
    with pytest.raises(DataError, match="wrong shape"):
        rank_matrix(np.zeros((2, 3)), [0, 1], [0, 1])
    with pytest.raises(DataError, match="one dimension"):
        rank_matrix(np.zeros((2, 2)), [[0], [1]], [0, 1])
    with pytest.raises(ConfigError, match="R@0"):
        rank_matrix(np.eye(2), [0, 1], [0, 1]).per_query("R@0")


def test_choice_ties_and_nan_are_wrong():
    assert choice_metrics.choice_accuracy([0.9, 0.5, 0.5, NAN, 0.5, INF], [0.1, 0.5, 0.6, 0.1, NAN, 0]).tolist() == [
        1,
        0,
        0,
        0,
        0,
        0,
    ]
    assert choice_metrics.choice_accuracy([0.9, 0.9], [[0.1, 0.2], [0.1, 0.95]]).tolist() == [1, 0]
    for true, false in (([1.0], [[]]), ([1.0, 2.0], [0.0]), ([], [])):
        with pytest.raises(DataError, match="do not fit"):
            choice_metrics.choice_accuracy(true, false)


def test_best_threshold():
    assert choice_metrics.best_threshold([3.0, 4.0, 5.0], [0.0, 1.0, 2.0]) == 2.5
    assert choice_metrics.best_threshold([2.0, 4.0, NAN], [1.0, 3.0, 3.5, 0.0]) in (1.5, 3.75)
    assert choice_metrics.best_threshold([1.0], [1.0]) in (0.0, 2.0)  # a constant opinion
    for true, false in (([NAN], [1.0]), ([], [1.0])):
        with pytest.raises(DataError, match="no scores"):
            choice_metrics.best_threshold(true, false)


def test_matching_accuracy():
    assert choice_metrics.matching_accuracy([2.0, -1.0, 0.0, -3.0, 1.0, NAN], [1, 1, 1, 0, 0, 0]).tolist() == [
        1,
        0,
        0,
        1,
        0,
        0,
    ]
    assert (
        choice_metrics.matching_accuracy(np.ones(10), np.arange(10) % 2).mean() == 0.5
    )  # a constant opinion scores chance
    with pytest.raises(DataError, match="2 true of 3"):
        choice_metrics.matching_accuracy([1.0, 1.0, 1.0], [1, 1, 0])


def test_zero_shot():
    prompts, names = np.eye(3, dtype=np.float32), ["cat", "dog", "owl"]
    z = prompts[[0, 0, 1, 0]]
    result, per_class = metrics.zero_shot(z, prompts, ["cat", "cat", "dog", "dog"], names)
    assert result.hits(1).tolist() == [1, 1, 1, 0]
    assert per_class == {
        "accuracy": 0.75,
        "accuracy@5": 1.0,
        "mean_class_accuracy": 0.75,
        "accuracy/cat": 1.0,
        "accuracy/dog": 0.5,
    }
    constant, figures = metrics.zero_shot(np.ones((4, 3)), np.ones((3, 3)), ["cat", "cat", "dog", "owl"], names)
    assert figures["accuracy"] == pytest.approx(1 / 3) and constant.rank == pytest.approx(np.full(4, 2.0))
    with pytest.raises(DataError, match="group emu"):
        metrics.zero_shot(z, prompts, ["cat", "cat", "emu", "dog"], names)
