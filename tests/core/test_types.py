from __future__ import annotations

import pytest
import torch

from ccaco_cli.core.types import Crossed, Embedding, EncodedSamples, Features, LocalTokens, PairBatch, move, no_progress


def features() -> Features:
    return Features(
        torch.arange(12.0).view(3, 2, 2),
        torch.tensor([[True, True], [True, False], [True, True]]),
        torch.arange(6.0).view(3, 2),
    )


def test_indexing_takes_the_same_rows_of_every_tensor() -> None:
    selected = features()[torch.tensor([2, 0])]
    assert selected.tokens[:, 0, 0].tolist() == [8.0, 0.0]
    assert selected.pooled[:, 0].tolist() == [4.0, 0.0]
    assert features()[1:2].mask.tolist() == [[True, False]]


def test_fields_that_are_not_there_stay_so() -> None:
    doubled = Crossed(torch.arange(3.0)).map(lambda t: t + 1)
    assert doubled.match_logit.tolist() == [1.0, 2.0, 3.0]
    assert doubled.attention is None


def test_a_batch_moves_whatever_its_sides_are() -> None:
    rows = torch.arange(3)
    batch = PairBatch(features(), {"ids": rows}, rows, rows, rows).to("meta")
    assert {
        t.device.type for t in (batch.a.tokens, batch.a.mask, batch.b["ids"], batch.rows, batch.group, batch.domain)
    } == {"meta"}
    assert move({"x": rows}, "meta")["x"].is_meta


def test_encoded_samples_are_indexed_with_their_tokens_where_they_have_any() -> None:
    z, tokens = torch.arange(6.0).view(3, 2), torch.arange(12.0).view(3, 2, 2)
    samples = EncodedSamples(Embedding(z, 2 * z), LocalTokens(tokens, torch.ones(3, 2, dtype=torch.bool)))
    chosen = samples[torch.tensor([2, 0])]
    assert len(chosen) == 2
    assert chosen.z.tolist() == [[4.0, 5.0], [0.0, 1.0]]
    assert chosen.embedding.pooled.tolist() == [[8.0, 10.0], [0.0, 2.0]]
    assert torch.equal(chosen.local_tokens.tokens, tokens[[2, 0]])
    vectors = EncodedSamples(Embedding(z, z))
    assert vectors[1:].tokens is None
    with pytest.raises(RuntimeError, match="without tokens"):
        _ = vectors.local_tokens


def test_silence() -> None:
    assert no_progress(1, None, {}) is None
