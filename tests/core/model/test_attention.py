from __future__ import annotations

import pytest
import torch

from ccaco_cli.core.model.attention import Attention, masked_mean


def test_equals_torchs_own_attention() -> None:
    torch.manual_seed(0)
    ours, theirs = Attention(12, 3).eval(), torch.nn.MultiheadAttention(12, 3, batch_first=True).eval()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.q.weight, ours.k.weight, ours.v.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.q.bias, ours.k.bias, ours.v.bias]))
        theirs.out_proj.weight.copy_(ours.out.weight)
        theirs.out_proj.bias.copy_(ours.out.bias)
    x, context = torch.randn(2, 4, 12), torch.randn(2, 5, 12)
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    got, weights = ours(x, context, mask, weights=True)
    wanted, wanted_weights = theirs(x, context, context, key_padding_mask=~mask)
    assert torch.allclose(got, wanted, atol=1e-5)
    assert torch.allclose(weights, wanted_weights, atol=1e-5)
    assert ours(x, context, mask)[1] is None


def test_masked_mean() -> None:
    tokens = torch.tensor([[[1.0], [3.0], [100.0]], [[5.0], [7.0], [9.0]]])
    mask = torch.tensor([[True, True, False], [False, False, False]])
    assert masked_mean(tokens, mask).flatten().tolist() == pytest.approx([2.0, 0.0])
