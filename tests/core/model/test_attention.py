from __future__ import annotations

import pytest
import torch

from ccaco_cli.core.config import FusionConfig
from ccaco_cli.core.errors import ConfigError
from ccaco_cli.core.model import attention_kernels
from ccaco_cli.core.model.attention import Attention, line_layouts, masked_mean
from ccaco_cli.core.model.attention_kernels import (
    KINDS,
    flex_window_attention,
    orthogonal_features,
    positive_features,
    sliced_window_attention,
)
from ccaco_cli.core.model.layout import Layout, Segment, SequenceLayout, attention_plan

GRID, LINE = (Segment(31, 1, (5, 6)),), (Segment(23),)
"""A class token and 5 x 6 patches; 23 words."""
CASES = {
    "words over patches": (LINE, GRID),
    "patches over words": (GRID, LINE),
    "patches": (GRID, GRID),
    "words": (LINE, LINE),
    "one grid over another": (GRID, (Segment(16, 0, (8, 2)),)),
    "stream": (GRID + LINE, GRID + LINE),
}


def build(kind: str, **settings: object) -> Attention:
    torch.manual_seed(0)
    return Attention(12, FusionConfig(heads=3, dropout=0.0, attention=kind, **settings))  # type: ignore[arg-type]


def count(layout: SequenceLayout) -> int:
    return sum(part.count for part in layout)


def tokens(
    layout: tuple[SequenceLayout, SequenceLayout], width: int = 12
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    x, context = (torch.randn(2, count(part), width) for part in layout)
    mask = torch.ones(context.shape[:2], dtype=torch.bool)
    mask[1, -3:] = False
    return x, context, mask


def test_equals_torchs_own_attention() -> None:
    torch.manual_seed(0)
    ours, reference = build("dense").eval(), torch.nn.MultiheadAttention(12, 3, batch_first=True).eval()
    with torch.no_grad():
        reference.in_proj_weight.copy_(torch.cat([ours.q.weight, ours.k.weight, ours.v.weight]))
        reference.in_proj_bias.copy_(torch.cat([ours.q.bias, ours.k.bias, ours.v.bias]))
        reference.out_proj.weight.copy_(ours.out.weight)
        reference.out_proj.bias.copy_(ours.out.bias)
    x, context = torch.randn(2, 4, 12), torch.randn(2, 5, 12)
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    got, weights = ours(x, context, mask, weights=True)
    wanted, wanted_weights = reference(x, context, context, key_padding_mask=~mask)
    assert torch.allclose(got, wanted, atol=1e-5)
    assert weights is not None and torch.allclose(weights.mean(1), wanted_weights, atol=1e-5)
    fast, none = ours(x, context, mask)
    assert none is None and torch.allclose(fast, got, atol=1e-5)


def test_masked_mean() -> None:
    tokens = torch.tensor([[[1.0], [3.0], [100.0]], [[5.0], [7.0], [9.0]]])
    mask = torch.tensor([[True, True, False], [False, False, False]])
    assert masked_mean(tokens, mask).flatten().tolist() == pytest.approx([2.0, 0.0])


def visible_by_hand(layout: tuple[SequenceLayout, SequenceLayout], side: int, spread: int) -> torch.Tensor:
    """The windows written out token by token, from the words of ``plan``'s docstring."""

    def place(layout: SequenceLayout) -> list[tuple[int, int, int, int, int]]:
        """(segment, block row, block column, block rows, block columns) of each token; block -1 = special."""
        per_token = []
        for number, part in enumerate(layout):
            per_token += [(number, -1, -1, 0, 0)] * part.special
            for i in range(part.count - part.special):
                if part.grid:
                    height, width = part.grid
                    per_token.append(
                        (number, i // width // side, i % width // side, -(-height // side), -(-width // side))
                    )
                else:
                    per_token.append((number, 0, i // side**2, 1, -(-part.count // side**2)))
        return per_token

    def is_global(layout: SequenceLayout) -> list[bool]:
        per_token = []
        for part in layout:
            cells = part.count - part.special
            if part.grid:
                n = max(1, int(spread**0.5))
                rows, columns = ({i * size // min(n, size) for i in range(min(n, size))} for size in part.grid)
                chosen = {r * part.grid[1] + c for r in rows for c in columns}
            else:
                n = min(max(1, spread), cells)
                chosen = {i * cells // n for i in range(n)}
            per_token += [True] * part.special + [i in chosen for i in range(cells)]
        return per_token

    def along(b: int, n: int, other: int, m: int) -> bool:
        return b * m // n - 1 <= other < -(-(b + 1) * m // n) + 1

    visible = torch.zeros(count(layout[0]), count(layout[1]), dtype=torch.bool)
    for i, (position, free) in enumerate(zip(place(layout[0]), is_global(layout[0]), strict=True)):
        for j, (other, shown) in enumerate(zip(place(layout[1]), is_global(layout[1]), strict=True)):
            _, row, column, rows, columns = position
            _, other_row, other_column, other_rows, other_columns = other
            if free or shown:
                visible[i, j] = True
            elif rows == 1 or other_rows == 1:
                here, there = row * columns + column, other_row * other_columns + other_column
                visible[i, j] = along(here, rows * columns, there, other_rows * other_columns)
            else:
                visible[i, j] = along(row, rows, other_row, other_rows) and along(
                    column, columns, other_column, other_columns
                )
    return visible


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("window", "spread"), [(4, 1), (5, 4), (9, 0), (64, 16), (1_000_000, 16)])
def test_windows_are_those_of_the_definition(name: str, window: int, spread: int) -> None:
    layout = CASES[name]
    plan = attention_plan(*layout, window, spread, "cpu")
    mask = plan.mask(count(layout[1]))
    assert plan.key_blocks.shape[1] <= 64, "a block holds no more than the longest segment"
    assert torch.equal(mask, visible_by_hand(layout, int(window**0.5), spread))
    assert mask.any(0).all(), "every key is in somebody's window"
    assert window == 9 or mask.all() == (window >= 64)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("at_once", [1 << 24, 1])
def test_the_window_kind_is_dense_attention_under_its_mask(
    name: str, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_kernels, "GATHERED_VALUES", at_once)
    layout = CASES[name]
    attention = build("window", window=4, spread=1)
    x, context, mask = tokens(layout)
    x.requires_grad_()
    context.requires_grad_()
    pattern = attention_plan(*layout, 4, 1, "cpu").mask(context.shape[1])
    got = attention(x, context, mask, layout=layout)[0]
    shown, weights = attention(x, context, mask, layout=layout, weights=True)
    q, k, v = (
        f(t).unflatten(-1, (3, -1)).transpose(1, 2)
        for f, t in ((attention.q, x), (attention.k, context), (attention.v, context))
    )
    allowed = pattern & mask[:, None, None, :]
    table = (q @ k.transpose(-1, -2) / 2).masked_fill(~allowed, -torch.inf).softmax(-1)
    wanted = attention.out((table @ v).transpose(1, 2).flatten(2))
    assert torch.allclose(got, wanted, atol=1e-5)
    assert torch.allclose(shown, wanted, atol=1e-5)
    assert torch.allclose(weights, table, atol=1e-5)
    inputs = (x, context, attention.q.weight, attention.v.bias)
    shadow = torch.randn(got.shape)
    for ours, reference in zip(
        torch.autograd.grad(got, inputs, shadow), torch.autograd.grad(wanted, inputs, shadow), strict=True
    ):
        assert torch.allclose(ours, reference, atol=1e-4)


@pytest.mark.parametrize("name", ["words over patches", "stream"])
def test_flex_attention_sees_the_same_windows(name: str) -> None:
    layout = CASES[name]
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, count(part), 2, 16) for part in (layout[0], layout[1], layout[1]))
    mask = tokens(layout)[2]
    plan = attention_plan(*layout, 4, 1, "cpu")
    assert torch.allclose(
        flex_window_attention(q, k, v, mask, 0.3, plan),
        sliced_window_attention(q, k, v, mask, 0.3, 0.0, plan),
        atol=1e-5,
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_flex_attention_on_a_gpu_equals_the_slices() -> None:
    layout = CASES["stream"]
    x, context, mask = (t.cuda() for t in tokens(layout, 96))
    attention = Attention(96, FusionConfig(heads=3, dropout=0.0, attention="window", window=16, spread=1)).cuda()
    shadow = torch.randn(x.shape, device="cuda")
    on_gpu = attention(x, context, mask, layout=layout)[0]
    slow = attention.cpu()(x.cpu(), context.cpu(), mask.cpu(), layout=layout)[0]
    assert torch.allclose(on_gpu.cpu(), slow, atol=1e-3)
    assert all(
        g.isfinite().all()
        for g in torch.autograd.grad((on_gpu * shadow).sum(), attention.cuda().parameters(), allow_unused=True)
        if g is not None
    )


def test_kinds_share_their_parameters() -> None:
    parameters = {kind: dict(build(kind).named_parameters()) for kind in KINDS}
    assert parameters["dense"].keys() == parameters["window"].keys() == parameters["linear"].keys()
    dense, window = build("dense").eval(), build("window", window=64).eval()
    window.load_state_dict(dense.state_dict(), strict=False)
    x, context, mask = tokens((LINE, GRID))
    assert torch.allclose(dense(x, context, mask)[0], window(x, context, mask)[0], atol=1e-5), (
        "a window that holds all is dense"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_holds_masks_dropout_mixed_precision_and_self_attention(kind: str) -> None:
    attention = build(kind, window=4, spread=1, redraw=0)
    x, context, mask = tokens((LINE, LINE))
    clean = attention(x, context, mask, layout=(LINE, LINE))[0]
    dirty = attention(x, torch.where(mask[..., None], context, 50.0), mask, layout=(LINE, LINE))[0]
    assert torch.allclose(clean, dirty, atol=1e-4), "padding is never seen"
    assert torch.allclose(attention(x, x, mask)[0], attention(x, x, mask, layout=line_layouts(x, x))[0])
    attention.dropout = 0.3
    assert torch.equal(attention.eval()(x, context, mask)[0], clean), "nothing is dropped outside training"
    attention.train()
    some = torch.stack([attention(x, context, mask)[0] for _ in range(400)])
    assert not torch.allclose(some[0], some[1])
    assert torch.allclose(some.mean(0), clean, atol=0.15), "and the mean stays where it is"
    with torch.autocast("cpu", torch.bfloat16):
        half = attention.eval()(x, context, mask)[0]
    assert half.dtype == torch.bfloat16
    assert torch.allclose(half.float(), clean, atol=0.05)


def test_positive_random_features_are_unbiased_and_their_error_falls_with_their_number() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(2, 6, 8).mul(0.5)
    wanted = (x * y).sum(-1).exp()
    errors = {}
    for features in (16, 256):
        draws = []
        for _ in range(2000):
            random = orthogonal_features(features, 8)
            draws.append((positive_features(x, random) + positive_features(y, random)).exp().mean(-1))
        mean_of_draws = torch.stack(draws)
        error = mean_of_draws.std(0) / len(mean_of_draws) ** 0.5
        assert ((mean_of_draws.mean(0) - wanted).abs() < 4 * error).all()
        errors[features] = float(((mean_of_draws - wanted).square().mean(0).sqrt() / wanted).mean())
    assert errors[256] == pytest.approx(errors[16] / 4, rel=0.25), "16 times the features, a quarter of the error"


def test_orthogonal_features_are_orthogonal_in_runs_and_as_long_as_gaussian_ones() -> None:
    torch.manual_seed(0)
    features = orthogonal_features(20, 8)
    table = features[:8] @ features[:8].T
    assert torch.allclose(table, table.diag().diag(), atol=1e-4)
    assert features.shape == (20, 8)
    blocks = torch.stack([orthogonal_features(8, 8) for _ in range(500)])
    assert blocks.mean((0, 1)).abs().max() < 0.08
    assert float(blocks.square().sum(-1).mean()) == pytest.approx(8, rel=0.05)


def test_the_linear_kind_comes_near_dense_attention() -> None:
    x, context, mask = tokens((LINE, GRID))
    dense = build("dense").eval()
    errors = []
    for features in (8, 4096):
        linear = build("linear", features=features).eval()
        linear.load_state_dict(dense.state_dict(), strict=False)
        got = linear(x, context, mask)[0]
        shown, weights = linear(x, context, mask, weights=True)
        assert torch.allclose(shown, got, atol=1e-4)
        errors.append(float((got - dense(x, context, mask)[0]).norm()))
        assert torch.allclose(weights.sum(-1), torch.ones(2, 3, 23), atol=1e-4)
        v = linear.v(context).unflatten(-1, (3, -1))
        assert weights[1, ..., -3:].abs().max() == 0 and v.isfinite().all()
    assert errors[1] < errors[0] / 5


def test_linear_attention_some_samples_at_a_time_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    attention = build("linear").eval()
    x, context, mask = (torch.cat([t] * 3) for t in tokens((LINE, GRID)))
    context = context + torch.arange(6.0)[:, None, None] / 10
    output = attention(x, context, mask)[0]
    calls = []
    monkeypatch.setattr(attention_kernels, "CPU_FEATURES", 4 * 256 * 3 * (23 + 31))
    monkeypatch.setattr(
        attention_kernels, "positive_features", lambda x, random: calls.append(len(x)) or positive_features(x, random)
    )
    with torch.inference_mode():
        assert torch.allclose(attention(x, context, mask)[0], output, atol=1e-6)
        assert calls == [4, 4, 2, 2]
        assert attention(x[:0], context[:0], mask[:0])[0].shape == (0, *output.shape[1:])


def test_random_features_are_drawn_anew_when_requested_and_live_in_the_checkpoint() -> None:
    attention = build("linear", redraw=1)
    x, context, mask = tokens((LINE, GRID))
    before = attention.kernel.random
    out = attention.train()(x, context, mask)[0]
    assert attention.kernel.random is before
    attention.kernel.refresh()
    assert not torch.equal(attention.kernel.random, before)
    out.sum().backward()  # the features of the call are still there for it
    assert torch.equal(attention.state_dict()["kernel.random"], attention.kernel.random)
    never = build("linear", redraw=0).train()
    features = never.kernel.random
    never.kernel.refresh()
    assert never.kernel.random is features


def test_linear_attention_stands_large_and_equal_keys() -> None:
    attention = build("linear").eval()
    x, context, mask = tokens((LINE, GRID))
    assert attention(1e3 * x, 1e3 * context, mask)[0].isfinite().all()


def test_a_plan_made_while_encoding_serves_training() -> None:
    attention = build("window", window=9, spread=2)
    layout = ((Segment(17),), (Segment(19),))
    x, context = torch.randn(1, 17, 12), torch.randn(1, 19, 12)
    mask = torch.ones(1, 19, dtype=torch.bool)
    with torch.inference_mode():
        attention(x, context, mask, layout=layout)
    attention(x, context, mask, layout=layout)[0].sum().backward()
    assert attention.k.weight.grad is not None


def test_layouts_follow_what_a_cache_leaves_of_a_grid() -> None:
    vit = Layout(1, (14, 14))
    assert vit.segment(197) == Segment(197, 1, (14, 14))
    assert vit.segment(50) == Segment(50, 1, (7, 7))
    assert vit.segment(20) == Segment(20), "no grid fits: a line"
    assert Layout(0, (4, 9)).segment(36) == Segment(36, 0, (4, 9))


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"attention": "sparse"}, "dense | window | linear")],
)
def test_unknown_kinds_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words.replace("|", r"\|")):
        Attention(12, FusionConfig(heads=3, **settings))  # type: ignore[arg-type]
