from __future__ import annotations

import pytest
import torch

from ccaco_cli.core.config import FusionConfig
from ccaco_cli.core.model.attention_kernels import KINDS
from ccaco_cli.core.model.fusion import CoAttentionBlock, SingleStream, mlp, positions
from ccaco_cli.core.model.layout import Segment

WIDTH = 8
MASK_A = torch.tensor([[True, True, True], [True, False, False]])
MASK_B = torch.tensor([[True, True, False, False], [True, True, True, True]])


def tokens() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(2, 3, WIDTH), torch.randn(2, 4, WIDTH)


def block(residual: bool = True, direction: str = "both") -> CoAttentionBlock:
    torch.manual_seed(0)
    return CoAttentionBlock(WIDTH, FusionConfig(heads=2, dropout=0.0, residual=residual, direction=direction)).eval()


def single_stream(kind: str = "dense") -> SingleStream:
    return SingleStream(WIDTH, FusionConfig(heads=2, dropout=0.0, attention=kind, window=1, spread=1)).eval()


def test_the_block_written_out() -> None:
    a, b = tokens()
    fused = block()
    new_a, new_b, attention = fused(a, MASK_A, b, MASK_B, weights=True)
    attn_out, weights = fused.cross[1](fused.norm_query[1](b), fused.norm_context[1](a), MASK_A, weights=True)
    wanted = b + attn_out
    wanted = wanted + fused.mlp[1](fused.norm_mlp[1](wanted))
    assert torch.allclose(new_b, wanted)
    assert torch.equal(attention, weights)
    assert attention.shape == (2, 2, 4, 3)
    assert attention[1, ..., 1:].abs().max() == 0
    attn_out = fused.cross[0](fused.norm_query[0](a), fused.norm_context[0](b), MASK_B)[0]
    assert torch.allclose(new_a, a + attn_out + fused.mlp[0](fused.norm_mlp[0](a + attn_out)))


def test_both_look_at_what_was_there_before() -> None:
    a, b = tokens()
    both = block()(a, MASK_A, b, MASK_B)
    assert torch.equal(both[0], block(direction="a_to_b")(a, MASK_A, b, MASK_B)[0])
    assert torch.equal(both[1], block(direction="b_to_a")(a, MASK_A, b, MASK_B)[1])


def test_without_residual_nothing_of_the_old_tokens_is_kept() -> None:
    a, b = tokens()
    fused = block(residual=False)
    attn_out = fused.cross[0](fused.norm_query[0](a), fused.norm_context[0](b), MASK_B)[0]
    assert torch.allclose(fused(a, MASK_A, b, MASK_B)[0], fused.mlp[0](fused.norm_mlp[0](attn_out)))


def test_padding_is_never_seen() -> None:
    a, b = tokens()
    stream = single_stream()
    dirty_a, dirty_b = torch.where(MASK_A[..., None], a, 30.0), torch.where(MASK_B[..., None], b, -30.0)
    for fuse in (lambda x, y: block()(x, MASK_A, y, MASK_B)[:2], lambda x, y: stream(x, MASK_A, y, MASK_B)[:2]):
        clean, dirty = fuse(a, b), fuse(dirty_a, dirty_b)
        assert torch.allclose(clean[0][MASK_A], dirty[0][MASK_A], atol=1e-5)
        assert torch.allclose(clean[1][MASK_B], dirty[1][MASK_B], atol=1e-5)


def test_the_single_stream_knows_whose_each_token_is() -> None:
    torch.manual_seed(0)
    stream = single_stream()
    a, b = tokens()
    fused_a, fused_b, _ = stream(a, MASK_A, b, MASK_B)
    assert fused_a.shape == a.shape
    assert fused_b.shape == b.shape
    _, swapped_a, _ = stream(b, MASK_B, a, MASK_A)
    assert not torch.allclose(fused_a[MASK_A], swapped_a[MASK_A], atol=1e-3)
    stream.modality.data[1] = stream.modality.data[0]
    fused_a, swapped_a = stream(a, MASK_A, b, MASK_B)[0], stream(b, MASK_B, a, MASK_A)[1]
    assert torch.allclose(fused_a[MASK_A], swapped_a[MASK_A], atol=1e-5)


@pytest.mark.parametrize(("out", "width"), [(None, WIDTH), (1, 1)])
def test_mlp(out: int | None, width: int) -> None:
    layers = mlp(WIDTH, 0.0, out)
    assert layers[0].out_features == 2 * WIDTH
    assert layers(torch.zeros(3, WIDTH)).shape == (3, width)


@pytest.mark.parametrize("kind", KINDS)
def test_the_single_stream_takes_every_kind_and_knows_where_patches_lie(kind: str) -> None:
    torch.manual_seed(0)
    stream = single_stream(kind)
    a, b = torch.randn(2, 5, WIDTH), torch.randn(2, 4, WIDTH)
    every = torch.ones(2, 5, dtype=torch.bool)
    on_grid = (Segment(5, 1, (2, 2)),), (Segment(4),)
    _, fused_b, weights = stream(a, every, b, MASK_B, layout=on_grid, weights=True)
    assert fused_b.shape == b.shape
    assert torch.allclose(weights.mean(1)[MASK_B].sum(-1), torch.ones(int(MASK_B.sum())), atol=1e-4)
    on_a_line = stream(a, every, b, MASK_B)[1]
    assert not torch.allclose(fused_b[MASK_B], on_a_line[MASK_B], atol=1e-5)


def test_positions_of_a_grid_tell_row_and_column_and_those_of_a_line_the_place() -> None:
    encoded = positions(Segment(13, 1, (3, 4)), 8)
    assert encoded.shape == (13, 8)
    assert encoded[0].abs().max() == 0, "a special token lies nowhere"
    cells = encoded[1:].view(3, 4, 8)
    assert torch.equal(cells[1, :, :4], cells[1, :1, :4].expand(4, 4)), "half tells the row"
    assert torch.equal(cells[:, 2, 4:], cells[:1, 2, 4:].expand(3, 4)), "half tells the column"
    assert len({tuple(row.tolist()) for row in cells.flatten(0, 1)}) == 12
    line = positions(Segment(5), 8)
    assert line[3, 0] == pytest.approx(torch.tensor(3.0).sin().item())
    assert len({tuple(row.tolist()) for row in line}) == 5
    assert positions(Segment(12, 0, (3, 4)), 6).shape == (12, 6)
