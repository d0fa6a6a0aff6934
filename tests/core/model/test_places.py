"""The place score: it tells who is left of whom, where attention alone cannot."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ccaco_cli.core import runtime
from ccaco_cli.core.config import FusionConfig
from ccaco_cli.core.model.cosine_matchers import Attended
from ccaco_cli.core.model.layout import LINE, Layout
from ccaco_cli.core.model.matching import build
from ccaco_cli.core.model.places import grid_positions
from ccaco_cli.core.types import LocalTokens

WIDTH, GRID = 16, Layout(1, (2, 3))


def matcher(layout: Layout = GRID, **settings: Any) -> Attended:
    torch.manual_seed(0)
    built = build(WIDTH, FusionConfig(place=True, **settings), (layout, LINE)).eval()
    assert isinstance(built, Attended)
    return built


def prepared(model: Attended, side: int, tokens: Tensor, mask: Tensor | None = None) -> LocalTokens:
    mask = torch.ones(tokens.shape[:2], dtype=torch.bool) if mask is None else mask
    return LocalTokens(model.local(side, tokens, mask), mask)


def test_positions_of_a_grid_by_hand() -> None:
    expected = [[0, 0], [-1, -1], [0, -1], [1, -1], [-1, 1], [0, 1], [1, 1]]
    assert grid_positions(GRID, 7).tolist() == expected
    assert grid_positions(Layout(0, (1, 2)), 2).tolist() == [[-1, 0], [1, 0]]
    assert grid_positions(GRID, 5).tolist() == [[0, 0], [-1, -1], [1, -1], [-1, 1], [1, 1]]  # pooled to 2 x 2
    assert not grid_positions(LINE, 4).any()


def test_it_tells_exchanged_objects_apart() -> None:
    """Two images with the same two patches, exchanged; two captions with the same words, whose states differ a little:
    the cosines are equal but for that, and the directions of the words decide."""
    model = matcher(sharpness=50.0)
    assert model.places is not None
    dog, ball, grass = torch.eye(WIDTH)[:3]
    first, last = torch.eye(WIDTH)[3:5] * 0.1  # of the first and the last object of a sentence
    left, right = 1, 3
    images = grass.repeat(2, 7, 1)
    images[0, left], images[0, right], images[1, left], images[1, right] = dog, ball, ball, dog
    captions = torch.stack([torch.stack([dog + first, ball + last]), torch.stack([ball + first, dog + last])])
    a, b = prepared(model, 0, images), prepared(model, 1, captions)
    table = model(a, b).match_logit
    assert torch.allclose(table, table.T, atol=1e-4) and torch.allclose(table[0], table[1], atol=1e-4)
    with torch.no_grad():
        model.places.direction.weight[0, 3], model.places.direction.weight[0, 4] = -1.0, 1.0  # "left of"
    table = model(a, prepared(model, 1, captions)).match_logit
    assert (table.diagonal() > table.flip(1).diagonal() + 1.0).all()


@pytest.mark.parametrize("on_gpu_path", [False, True])
@pytest.mark.parametrize("direction", ["b_to_a", "both"])
def test_all_pairs_equal_listed_pairs(monkeypatch: pytest.MonkeyPatch, direction: str, on_gpu_path: bool) -> None:
    model = matcher(direction=direction)
    assert model.places is not None
    torch.nn.init.normal_(model.places.direction.weight, std=0.05)
    monkeypatch.setattr(runtime, "must_wait", lambda tensor: on_gpu_path)
    mask = torch.arange(6)[None] < torch.tensor([6, 4, 1, 5])[:, None]
    a, b = prepared(model, 0, torch.randn(3, 7, WIDTH)), prepared(model, 1, torch.randn(4, 6, WIDTH), mask)
    assert a.tokens.shape == (3, 7, WIDTH + 2) and model.local_width == WIDTH + 2
    index = torch.cartesian_prod(torch.arange(3), torch.arange(4))
    table, listed = model(a, b).match_logit, model(a, b, index).match_logit.view(3, 4)
    assert torch.allclose(table, listed, atol=1e-4)
    padded = LocalTokens(
        torch.cat([b.tokens, torch.randn(4, 2, WIDTH + 2)], 1), torch.cat([mask, mask[:, :2] & False], 1)
    )
    padded.tokens[:, 6:] = 0.0
    assert torch.allclose(model(a, padded).match_logit, table, atol=1e-4)
    mirrored = LocalTokens(a.tokens * torch.tensor([1.0] * WIDTH + [-1.0, 1.0]), a.mask)
    assert not torch.allclose(model(mirrored, b).match_logit, table, atol=1e-3)


def test_where_there_are_no_places() -> None:
    """Words over no grid, patches over words, and attention that is not dense."""
    assert matcher(LINE).places is None
    assert matcher(direction="a_to_b").places is None
    assert matcher(attention="window").places is None
    assert matcher(LINE).local_width == WIDTH
    plain = build(WIDTH, FusionConfig(), (GRID, LINE))
    assert isinstance(plain, Attended) and plain.places is None
