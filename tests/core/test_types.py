from __future__ import annotations

import torch

from ccaco_cli.core.types import Crossed, Features, PairBatch, move, no_progress


def features() -> Features:
    return Features(
        torch.arange(12.0).view(3, 2, 2),
        torch.tensor([[True, True], [True, False], [True, True]]),
        torch.arange(6.0).view(3, 2),
    )


def test_indexing_takes_the_same_rows_of_every_tensor() -> None:
    found = features()[torch.tensor([2, 0])]
    assert found.tokens[:, 0, 0].tolist() == [8.0, 0.0]
    assert found.pooled[:, 0].tolist() == [4.0, 0.0]
    assert features()[1:2].mask.tolist() == [[True, False]]


def test_fields_that_are_not_there_stay_so() -> None:
    found = Crossed(torch.arange(3.0)).map(lambda t: t + 1)
    assert found.match_logit.tolist() == [1.0, 2.0, 3.0]
    assert found.attention is None


def test_a_batch_moves_whatever_its_sides_are() -> None:
    rows = torch.arange(3)
    batch = PairBatch(features(), {"ids": rows}, rows, rows, rows).to("meta")
    assert {
        t.device.type for t in (batch.a.tokens, batch.a.mask, batch.b["ids"], batch.rows, batch.group, batch.domain)
    } == {"meta"}
    assert move({"x": rows}, "meta")["x"].is_meta


def test_silence() -> None:
    assert no_progress(1, None, {}) is None
