from __future__ import annotations

import torch

from ccaco_cli.core.losses.pairing import all_pairs, hard_negative_pairs, sample_hard_negatives, true_pairs


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_siblings_are_never_negatives() -> None:
    group = torch.tensor([0, 0, 1, 1, 2])
    for seed in range(50):
        picked = sample_hard_negatives(torch.rand(5, 5), group, 2, generator(seed))
        assert (group[picked] != group[:, None]).all()


def test_negatives_are_distinct_and_hard_ones_come_often() -> None:
    similarity = torch.zeros(6, 6)
    similarity[0, 3] = 0.5  # exp(10 * 0.5) = 148 times as likely as each of the other four
    group, hits = torch.arange(6), 0
    for seed in range(200):
        picked = sample_hard_negatives(similarity, group, 2, generator(seed))
        assert all(len(set(row.tolist())) == 2 for row in picked)
        hits += 3 in picked[0].tolist()
    assert hits > 190
    assert (
        sum(3 in sample_hard_negatives(torch.zeros(6, 6), group, 1, generator(s))[0].tolist() for s in range(200)) < 80
    )


def test_too_few_negatives_are_repeated_and_none_is_reported() -> None:
    assert sample_hard_negatives(torch.zeros(2, 2), torch.arange(2), 3, generator()).tolist() == [[1, 1, 1], [0, 0, 0]]
    assert sample_hard_negatives(torch.zeros(2, 2), torch.zeros(2, dtype=torch.long), 2, generator()).tolist() == [
        [-1, -1],
        [-1, -1],
    ]


def test_pairs_with_hard_negatives() -> None:
    group = torch.tensor([0, 1, 2, 2])
    pairs = hard_negative_pairs(torch.rand(4, 6), torch.rand(4, 6), group, 4, 2, generator())
    assert pairs.index is not None
    assert pairs.label is not None
    a, b = pairs.rows[pairs.index].unbind(1)
    assert pairs.label.tolist() == [True, False, False] * 8
    assert ((group[a] == group[b]) == pairs.label).all()
    assert (a[pairs.label] == b[pairs.label]).all()  # a true pair is a row with itself
    first, second = a[:12].view(4, 3), b[12:].view(4, 3)
    assert (first == first[:, :1]).all()  # the first half asks from side a
    assert (second == second[:, :1]).all()  # the second from side b


def test_sub_batches() -> None:
    rows = all_pairs(torch.rand(8, 3), torch.rand(8, 3), torch.arange(8), 5, 1, generator()).rows
    assert len(set(rows.tolist())) == 5
    complete = true_pairs(torch.rand(8, 3), torch.rand(8, 3), torch.arange(8), 0, 1)
    assert complete.rows.tolist() == list(range(8))
    assert complete.index is not None
    assert (complete.index[:, 0] == complete.index[:, 1]).all()


def test_queries_of_a_sub_batch_find_negatives_in_the_whole_batch() -> None:
    z = torch.nn.functional.normalize(torch.randn(40, 8, generator=generator()), dim=-1)
    pairs = hard_negative_pairs(z, z.roll(1, 0), torch.arange(40), 4, 2, generator())
    assert pairs.index is not None
    assert len(pairs.index) == 2 * 4 * 3
    assert len(pairs.rows) > 8
    alone = sample_hard_negatives(z[:3] @ z.T, torch.arange(40) // 2, 1, generator(), torch.arange(3) // 2)
    assert alone.shape == (3, 1)
    assert (alone[:, 0] // 2 != torch.arange(3) // 2).all()
