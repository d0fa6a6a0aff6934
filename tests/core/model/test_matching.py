from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from ccaco_cli.core.config import FusionConfig
from ccaco_cli.core.errors import ConfigError
from ccaco_cli.core.model import matcher as matcher_module
from ccaco_cli.core.model.attention_kernels import KINDS
from ccaco_cli.core.model.matcher import Matcher
from ccaco_cli.core.model.matching import MATCHERS, build
from ccaco_cli.core.types import LocalTokens

WIDTH = 16


def encoded(rows: int, tokens: int, seed: int) -> LocalTokens:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(tokens)[None] < torch.randint(2, tokens + 1, (rows, 1), generator=generator)
    return LocalTokens(torch.randn(rows, tokens, WIDTH, generator=generator), mask)


def matcher(kind: str, **settings: object) -> Matcher:
    torch.manual_seed(0)
    return build(WIDTH, replace(FusionConfig(kind=kind, dropout=0.0), **settings)).eval()  # type: ignore[arg-type]


def local(model: Matcher, a: LocalTokens, b: LocalTokens) -> tuple[LocalTokens, LocalTokens]:
    first, second = (LocalTokens(model.local(i, x.tokens, x.mask), x.mask) for i, x in enumerate((a, b)))
    return first, second


@pytest.mark.parametrize("direction", ["b_to_a", "a_to_b", "both"])
@pytest.mark.parametrize("kind", MATCHERS)
def test_all_pairs_equal_listed_pairs(kind: str, direction: str) -> None:
    model = matcher(kind, direction=direction)
    a, b = local(model, encoded(3, 5, 0), encoded(4, 6, 1))
    index = torch.cartesian_prod(torch.arange(3), torch.arange(4))
    every, listed = model(a, b).match_logit, model(a, b, index).match_logit.view(3, 4)
    assert torch.allclose(every, listed, atol=1e-4)
    weights = [p for p in model.parameters() if p.requires_grad]
    if weights:
        ways = (
            torch.autograd.grad(x.square().sum(), weights, retain_graph=True, allow_unused=True)
            for x in (every, listed)
        )
        for first, second in zip(*ways, strict=True):
            assert (first is None) == (second is None)
            assert first is None or torch.allclose(first, second, atol=1e-3)


@pytest.mark.parametrize("attention", KINDS)
@pytest.mark.parametrize("kind", [k for k, entry in MATCHERS.items() if len(entry.kinds) > 1])  # type: ignore[attr-defined]
def test_every_kind_of_attention_lets_padding_alone_and_shows_what_it_sees(kind: str, attention: str) -> None:
    model = matcher(kind, attention=attention, window=4, spread=1, direction="both")
    a, b = local(model, encoded(3, 9, 0), encoded(3, 6, 1))
    index = torch.arange(3)[:, None].expand(3, 2)
    clean = model(a, b, index, attention=True)
    dirty = model(*(LocalTokens(torch.where(x.mask[..., None], x.tokens, 0.0), x.mask) for x in (a, b)), index)
    assert torch.allclose(clean.match_logit, dirty.match_logit, atol=1e-4)
    if kind != "early":
        assert torch.allclose(clean.attention.mean(1)[b.mask].sum(-1), torch.ones(int(b.mask.sum())), atol=1e-3)


def test_random_features_are_drawn_anew_in_training_only() -> None:
    model = matcher("unified", attention="linear", redraw=1)
    a, b, index = encoded(2, 9, 0), encoded(2, 6, 1), torch.tensor([[0, 1]])
    before = model.stream.stream.attention[0].kernel.random
    model(a, b, index)
    assert model.stream.stream.attention[0].kernel.random is before
    model.train()(a, b, index)
    assert not torch.equal(model.stream.stream.attention[0].kernel.random, before)


@pytest.mark.parametrize("attention", KINDS)
@pytest.mark.parametrize("kind", ["coattention", "unified", "early"])
def test_what_is_recomputed_is_the_same_and_less_is_kept(
    kind: str, attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matcher_module, "RECOMPUTED_TOKENS", 2 * (9 + 6))
    model = matcher(kind, attention=attention, direction="both", redraw=1).train()
    a, b = encoded(2, 9, 0), encoded(2, 6, 1)
    outputs, scores, gradients = [], [], []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        outputs[-1] += tensor.numel()
        return tensor

    for model.checkpointing in (False, True):
        torch.manual_seed(7)
        outputs.append(0)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            crossed = model(a, b, torch.tensor([[0, 0], [1, 0], [1, 1]]))
        scores.append(
            crossed.match_logit if crossed.drift is None else torch.cat([crossed.match_logit, crossed.drift[None]])
        )
        parameters = [p for p in model.parameters() if p.requires_grad]
        gradients.append(
            torch.autograd.grad(
                (scores[-1] * torch.arange(1, 1 + len(scores[-1]))).sum(), parameters, allow_unused=True
            )
        )
    assert outputs[1] < 0.2 * outputs[0]
    assert torch.allclose(*scores, atol=1e-5)
    for first, second in zip(*gradients, strict=True):
        assert (first is None) == (second is None)
        assert first is None or torch.allclose(first, second, atol=1e-5)


def test_attended_by_a_window_that_holds_all_is_the_dense_one() -> None:
    for direction in ("b_to_a", "a_to_b", "both"):
        dense, window = (
            matcher("attended", direction=direction),
            matcher("attended", attention="window", direction=direction),
        )
        a, b = local(dense, encoded(3, 5, 0), encoded(3, 6, 1))
        index = torch.arange(3)[:, None].expand(3, 2)
        dense_result, window_result = (m(a, b, index, attention=True) for m in (dense, window))
        assert torch.allclose(dense_result.match_logit, window_result.match_logit, atol=1e-4)
        assert torch.allclose(
            dense_result.attention.mean(1)[b.mask], window_result.attention.mean(1)[b.mask], atol=1e-4
        )
        assert torch.allclose(dense(a, b).match_logit, window(a, b).match_logit, atol=1e-4)


@pytest.mark.parametrize("kind", MATCHERS)
def test_padding_never_counts(kind: str) -> None:
    model = matcher(kind)
    a, b = encoded(3, 5, 0), encoded(3, 6, 1)

    def garbage(x: LocalTokens) -> LocalTokens:
        tokens = torch.cat([torch.where(x.mask[..., None], x.tokens, 100.0), torch.full((3, 2, WIDTH), -70.0)], 1)
        return LocalTokens(tokens, torch.cat([x.mask, torch.zeros(3, 2, dtype=torch.bool)], 1))

    index = torch.arange(3)[:, None].expand(3, 2)
    clean, dirty = model(*local(model, a, b), index), model(*local(model, garbage(a), garbage(b)), index)
    assert torch.allclose(clean.match_logit, dirty.match_logit, atol=1e-4)


@pytest.mark.parametrize("kind", [k for k in MATCHERS if k != "maxsim"])
def test_both_sides_and_every_parameter_matter(kind: str) -> None:
    model = matcher(kind, direction="both")
    a, b = encoded(3, 5, 0), encoded(3, 6, 1)
    a.tokens.requires_grad_()
    b.tokens.requires_grad_()
    crossed = model(*local(model, a, b), torch.arange(3)[:, None].expand(3, 2))
    crossed.match_logit.square().sum().backward()
    assert a.tokens.grad is not None
    assert b.tokens.grad is not None
    assert (a.tokens.grad[a.mask].abs().sum(-1) > 0).all()
    assert (a.tokens.grad[~a.mask] == 0).all()
    unused = [n for n, p in model.named_parameters() if p.grad is None]
    assert not unused


def test_attended_equals_the_formula_written_out() -> None:
    model = matcher("attended", direction="b_to_a", scale=20.0, sharpness=9.0)
    a, b = encoded(1, 5, 0), encoded(1, 6, 1)
    x_p, x_w = a.tokens[0][a.mask[0]], b.tokens[0][b.mask[0]]
    v, t = F.normalize(x_p, dim=-1), F.normalize(x_w, dim=-1)  # A and B start as the identity
    gate = model.gates[1](x_w).squeeze(-1).softmax(0)  # type: ignore[index]
    score = torch.tensor(0.0)
    for w in range(len(t)):
        attention = (9.0 * v @ t[w]).softmax(0)
        score = score + gate[w] * F.cosine_similarity(t[w], attention @ v, dim=0)
    got = model(*local(model, a, b), torch.tensor([[0, 0]]), attention=True)
    assert got.match_logit.item() == pytest.approx(20 * score.item(), rel=1e-4)
    assert torch.allclose(got.attention[0, 0, : len(t), : len(v)].sum(-1), torch.ones(len(t)), atol=1e-5)


def test_attended_finds_the_picture_that_holds_the_words() -> None:
    model = matcher("attended")
    words = F.normalize(torch.randn(1, 3, WIDTH, generator=torch.Generator().manual_seed(3)), dim=-1)
    other = F.normalize(torch.randn(1, 6, WIDTH, generator=torch.Generator().manual_seed(4)), dim=-1)
    pictures = torch.cat([torch.cat([other[:, :3], words], 1), other])
    a = LocalTokens(pictures, torch.ones(2, 6, dtype=torch.bool))
    b = LocalTokens(words, torch.ones(1, 3, dtype=torch.bool))
    scores = model(*local(model, a, b)).match_logit[:, 0]
    assert scores[0] > scores[1] + 5


def test_maxsim_equals_the_formula_written_out() -> None:
    model = matcher("maxsim", scale=10.0)
    a, b = encoded(1, 4, 0), encoded(1, 5, 1)
    v, t = F.normalize(a.tokens[0][a.mask[0]], dim=-1), F.normalize(b.tokens[0][b.mask[0]], dim=-1)
    table = t @ v.T
    wanted = 10 * (table.max(1).values.mean() + table.max(0).values.mean()) / 2
    assert model(*local(model, a, b)).match_logit.item() == pytest.approx(wanted.item(), rel=1e-5)
    shown = model(*local(model, a, b), torch.tensor([[0, 0]]), attention=True).attention
    assert torch.allclose(shown[0, 0][b.mask[0]][:, a.mask[0]], (10 * table).softmax(1), atol=1e-5)


def test_residual_equals_the_source_description() -> None:
    model = matcher("residual")
    a, b = encoded(1, 4, 0), encoded(1, 5, 1)
    f_v, f_t = a.tokens[0][a.mask[0]], b.tokens[0][b.mask[0]]
    to_t, to_v = (f_v @ f_t.T / WIDTH**0.5).softmax(-1) @ f_t, (f_t @ f_v.T / WIDTH**0.5).softmax(-1) @ f_v
    got = model(a, b, torch.tensor([[0, 0]]))
    assert torch.allclose(got.fused_a[0][a.mask[0]], f_v + to_t, atol=1e-5)
    assert torch.allclose(got.fused_b[0][b.mask[0]], f_t + to_v, atol=1e-5)
    wanted = to_t.square().sum(-1).mean() / WIDTH + to_v.square().sum(-1).mean() / WIDTH
    assert got.drift.item() == pytest.approx(wanted.item(), rel=1e-4)


def test_one_way_attention_leaves_the_other_side_alone() -> None:
    a, b = encoded(2, 4, 0), encoded(2, 5, 1)
    index = torch.arange(2)[:, None].expand(2, 2)
    one_way = matcher("coattention", direction="b_to_a")(a, b, index)
    assert torch.equal(one_way.fused_a, a.tokens)
    assert not torch.allclose(one_way.fused_b, b.tokens)
    other_way = matcher("coattention", direction="a_to_b")(a, b, index)
    assert torch.equal(other_way.fused_b, b.tokens)


def test_unknown_settings_are_refused() -> None:
    for settings, words in (
        ({"kind": "sum"}, "attended"),
        ({"direction": "up"}, "b_to_a"),
        ({"kind": "coattention", "heads": 3}, "divisor"),
        ({"kind": "maxsim", "attention": "window"}, "has no window attention"),
        ({"kind": "maxsim", "attention": "sparse"}, "unknown attention"),
    ):
        with pytest.raises(ConfigError, match=words):
            build(WIDTH, replace(FusionConfig(), **settings))  # type: ignore[arg-type]
