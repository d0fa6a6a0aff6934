from __future__ import annotations

import pytest
import torch

from ccaco_cli.core.model.fusion import CoAttentionBlock, SingleStream, mlp

WIDTH = 8
MASK_A = torch.tensor([[True, True, True], [True, False, False]])
MASK_B = torch.tensor([[True, True, False, False], [True, True, True, True]])


def tokens() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(2, 3, WIDTH), torch.randn(2, 4, WIDTH)


def block(residual: bool = True, direction: str = "both") -> CoAttentionBlock:
    torch.manual_seed(0)
    return CoAttentionBlock(WIDTH, 2, 0.0, residual, direction).eval()


def test_the_block_written_out() -> None:
    a, b = tokens()
    found = block()
    new_a, new_b, attention = found(a, MASK_A, b, MASK_B, weights=True)
    brought, weights = found.cross[1](found.norm_self[1](b), found.norm_other[1](a), MASK_A, weights=True)
    wanted = b + brought
    wanted = wanted + found.mlp[1](found.norm_mlp[1](wanted))
    assert torch.allclose(new_b, wanted)
    assert torch.equal(attention, weights)
    assert attention.shape == (2, 4, 3)
    assert attention[1, :, 1:].abs().max() == 0
    brought = found.cross[0](found.norm_self[0](a), found.norm_other[0](b), MASK_B)[0]
    assert torch.allclose(new_a, a + brought + found.mlp[0](found.norm_mlp[0](a + brought)))


def test_both_look_at_what_was_there_before() -> None:
    a, b = tokens()
    both = block()(a, MASK_A, b, MASK_B)
    assert torch.equal(both[0], block(direction="a_to_b")(a, MASK_A, b, MASK_B)[0])
    assert torch.equal(both[1], block(direction="b_to_a")(a, MASK_A, b, MASK_B)[1])


def test_without_residual_nothing_of_the_old_tokens_is_kept() -> None:
    a, b = tokens()
    found = block(residual=False)
    brought = found.cross[0](found.norm_self[0](a), found.norm_other[0](b), MASK_B)[0]
    assert torch.allclose(found(a, MASK_A, b, MASK_B)[0], found.mlp[0](found.norm_mlp[0](brought)))


def test_padding_is_never_seen() -> None:
    a, b = tokens()
    stream = SingleStream(WIDTH, 2, 1, 0.0).eval()
    dirty_a, dirty_b = torch.where(MASK_A[..., None], a, 30.0), torch.where(MASK_B[..., None], b, -30.0)
    for fuse in (lambda x, y: block()(x, MASK_A, y, MASK_B)[:2], lambda x, y: stream(x, MASK_A, y, MASK_B)):
        clean, dirty = fuse(a, b), fuse(dirty_a, dirty_b)
        assert torch.allclose(clean[0][MASK_A], dirty[0][MASK_A], atol=1e-5)
        assert torch.allclose(clean[1][MASK_B], dirty[1][MASK_B], atol=1e-5)


def test_the_single_stream_knows_whose_each_token_is() -> None:
    torch.manual_seed(0)
    stream = SingleStream(WIDTH, 2, 1, 0.0).eval()
    a, b = tokens()
    fused_a, fused_b = stream(a, MASK_A, b, MASK_B)
    assert fused_a.shape == a.shape
    assert fused_b.shape == b.shape
    _, swapped_a = stream(b, MASK_B, a, MASK_A)
    assert not torch.allclose(fused_a[MASK_A], swapped_a[MASK_A], atol=1e-3)
    stream.side.data[1] = stream.side.data[0]
    fused_a, swapped_a = stream(a, MASK_A, b, MASK_B)[0], stream(b, MASK_B, a, MASK_A)[1]
    assert torch.allclose(fused_a[MASK_A], swapped_a[MASK_A], atol=1e-5)


@pytest.mark.parametrize(("out", "width"), [(None, WIDTH), (1, 1)])
def test_mlp(out: int | None, width: int) -> None:
    found = mlp(WIDTH, 0.0, out)
    assert found[0].out_features == 2 * WIDTH
    assert found(torch.zeros(3, WIDTH)).shape == (3, width)
