from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ccaco_cli.core.config import FusionConfig, ModelConfig, TowerConfig
from ccaco_cli.core.errors import ConfigError, DataError
from ccaco_cli.core.model import matching
from ccaco_cli.core.model.towers.tower import Tower, TowerSpec
from ccaco_cli.core.retrieval import explain
from ccaco_cli.core.retrieval.match import match_logits
from ccaco_cli.core.types import LocalTokens

WIDTH = 16
SAID = [("zebra", [2]), ("eats", [3, 4]), ("grass", [6])]


class Model(torch.nn.Module):
    """An aligner as far as explaining goes: a matcher and its config."""

    def __init__(self, kind: str = "attended", **settings: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        fusion = FusionConfig(kind=kind, heads=4, **settings)
        self.config = ModelConfig(image=TowerConfig(cache_tokens=9), fusion=fusion)
        self.matcher = matching.build(WIDTH, fusion)

    def cross(self, a: LocalTokens, b: LocalTokens, index: torch.Tensor, *, attention: bool = False) -> Any:
        return self.matcher(a, b, index, attention=attention)

    def ready(self, side: int, tokens: torch.Tensor, mask: torch.Tensor) -> LocalTokens:
        with torch.inference_mode():  # as an index gives them
            return LocalTokens(self.matcher.local(side, tokens, mask), mask)


def pair(model: Model) -> tuple[LocalTokens, LocalTokens]:
    """A picture of a class token and 3 x 4 cells, and 7 words with padding; "zebra" (2) is cell 5 and "grass" (6) is
    cell 11."""
    rng = torch.Generator().manual_seed(1)
    picture, text = torch.randn(1, 13, WIDTH, generator=rng), torch.randn(1, 9, WIDTH, generator=rng)
    picture[0, 1 + 5], picture[0, 1 + 11] = text[0, 2], text[0, 6]
    mask = torch.arange(9)[None] < 7
    return model.ready(0, F.normalize(picture, dim=-1), torch.ones(1, 13, dtype=torch.bool)), model.ready(
        1, F.normalize(text, dim=-1), mask
    )


@pytest.mark.parametrize("method", explain.METHODS)
@pytest.mark.parametrize("direction", ["b_to_a", "both", "a_to_b"])
def test_the_heat_of_a_word_is_where_its_thing_is(method: str, direction: str) -> None:
    model = Model(direction=direction, sharpness=4.0)
    explanation = explain.explain(model, *pair(model), (3, 4), SAID, method)  # type: ignore[arg-type]
    assert explanation.words == ("zebra", "eats", "grass")
    assert explanation.heat.shape == (3, 3, 4) and (explanation.heat >= 0).all()
    if (method, direction) != (
        "gradient",
        "a_to_b",
    ):  # a cell that looks at one word alone has a cosine of 1, and no slope
        assert explanation.heat[0].argmax() == 5 and explanation.heat[2].argmax() == 11


def test_the_gradient_is_that_of_the_score() -> None:
    model = Model(sharpness=5.0)
    a, b = pair(model)
    relevance = explain.relevance(model, a, b, "gradient")[0]  # type: ignore[arg-type]
    plain = explain.relevance(model, a, b, "attention")[0]  # type: ignore[arg-type]
    assert plain[:7].sum(-1).tolist() == pytest.approx([1.0] * 7, abs=1e-5)
    # written out for one word: s = kappa g cos(t, sum a v), differentiated by the weights a
    t, v, gate = F.normalize(b.tokens[0, 2], dim=0), F.normalize(a.tokens[0], dim=-1), b.tokens[0, 2].norm()
    weights = plain[2].clone().requires_grad_()
    (slope,) = torch.autograd.grad(
        model.matcher.scale().detach() * gate.clone() * F.cosine_similarity(t.clone(), weights @ v.clone(), dim=0),
        weights,
    )
    assert torch.allclose(relevance[2], (weights * slope).clamp_min(0).detach(), atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("residual", {}),
        ("coattention", {}),
        ("coattention", {"attention": "window"}),
        ("attended", {"attention": "window"}),
        ("attended", {"attention": "window", "direction": "a_to_b"}),
        ("attended", {"attention": "linear"}),
    ],
)
def test_every_matcher_with_attention_can_be_explained_both_ways(kind: str, settings: dict[str, Any]) -> None:
    model = Model(kind, **settings)
    for method in explain.METHODS:
        relevance = explain.relevance(model, *pair(model), method)  # type: ignore[arg-type]
        assert relevance.shape == (1, 9, 13) and relevance.sum() > 0


def test_what_cannot_be_explained_says_so() -> None:
    with pytest.raises(ConfigError, match=r"shows no attention: model\.fusion\.kind = 'early'"):
        explain.relevance(Model("early"), *pair(Model("early")), "attention")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no gradient at its attention"):
        explain.relevance(Model("unified"), *pair(Model("unified")), "gradient")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no gradient at its attention"):
        explain.relevance(Model("maxsim"), *pair(Model("maxsim")), "gradient")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no such way to explain: tea leaves"):
        explain.relevance(Model(), *pair(Model()), "tea leaves")  # type: ignore[arg-type]


def test_the_score_falls_faster_when_the_relevant_cells_go_and_slower_when_they_stay() -> None:
    model = Model(sharpness=20.0)
    a, b = pair(model)
    true = explain.explain(model, a, b, (3, 4), SAID).trial  # type: ignore[arg-type]
    assert true.score == pytest.approx(float(match_logits(model, a, b, torch.tensor([[0, 0]]))), abs=1e-4)  # type: ignore[arg-type]
    assert true.deletion_gain > 0.2 and true.insertion_gain > 0.2
    cells = np.arange(1, 13)
    order = np.array(sorted(cells, key=lambda place: place not in (6, 12)))  # the two cells that the words are about
    hidden, hidden_reversed = explain.hide_cells(model, a, b, order), explain.hide_cells(model, a, b, order[::-1])  # type: ignore[arg-type]
    assert hidden.deletion_gain > 0 > hidden_reversed.deletion_gain
    assert hidden_reversed.deletion.tolist() == pytest.approx(hidden.insertion.tolist(), abs=1e-5)


def test_the_last_cell_and_tokens_that_are_no_cells_stay() -> None:
    model = Model()
    a, b = pair(model)
    inputs: list[torch.Tensor] = []
    cross = model.cross
    model.cross = lambda a, b, index, **more: (inputs.append(a.mask), cross(a, b, index, **more))[1]  # type: ignore[method-assign,assignment]
    explain.hide_cells(model, a, b, np.arange(1, 13))  # type: ignore[arg-type]
    assert inputs[0][:, 0].all() and (inputs[0].sum(1) >= 2).all()


def test_without_words_a_sample_is_explained_as_a_whole() -> None:
    model = Model()
    assert explain.explain(model, *pair(model), (3, 4), []).words == ("(all)",)  # type: ignore[arg-type]
    assert explain.explain(model, *pair(model), (3, 4), SAID[:1]).heat.shape == (1, 3, 4)  # type: ignore[arg-type]


def tower(grid: tuple[int, int] | None) -> Tower:
    return Tower(
        TowerSpec("tiny", "", ""),
        "image",
        torch.nn.Identity(),
        lambda x: x,
        4,
        9,
        grid,
        False,
        "f",
        lambda folder: "tiny",
    )


def test_the_grid_is_the_towers_or_what_the_cache_left_of_it() -> None:
    assert explain.patch_grid(Model(), tower((4, 4)), 16) == (4, 4)  # type: ignore[arg-type]
    assert explain.patch_grid(Model(), tower((4, 4)), 17) == (4, 4)  # type: ignore[arg-type]
    assert explain.patch_grid(Model(), tower((4, 4)), 10) == (3, 3)  # type: ignore[arg-type]
    for grid, tokens in ((None, 5), ((4, 4), 5)):
        with pytest.raises(DataError, match="lie on no grid"):
            explain.patch_grid(Model(), tower(grid), tokens)  # type: ignore[arg-type]


def test_the_pointing_game() -> None:
    heat = np.zeros((2, 2))
    heat[0, 1] = 1  # its middle: x = 0.75, y = 0.25
    assert explain.point(heat, (0.5, 0.0, 1.0, 0.5)) == (1.0, 0.25, 1.0)
    assert explain.point(heat, (0.0, 0.3, 0.4, 1.0)) == (0.0, 0.25, 0.0)
    assert explain.point(heat, (0.8, 0.0, 1.0, 0.2)) == (0.0, 0.0, 0.0)
    assert explain.point(np.ones((2, 2)), (0.0, 0.0, 0.5, 0.5))[0] == 0.25, "a flat map knows nothing"
