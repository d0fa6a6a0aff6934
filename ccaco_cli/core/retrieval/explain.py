"""Why a pair matches: which words met which cells of the picture, and whether the score rests on what is shown.

A heat map is a claim about the matcher. It is held against the matcher itself (``trial``: the most relevant cells go first, and the score
must fall faster than with cells at random), and where it is known what lies where, against the picture (``point``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ccaco_cli.core.errors import ConfigError, DataError
from ccaco_cli.core.model.aligner import Aligner
from ccaco_cli.core.model.token_pooling import pooled_grid
from ccaco_cli.core.model.towers.tower import Tower
from ccaco_cli.core.retrieval.match import match_logits
from ccaco_cli.core.types import LocalTokens

Array = NDArray[Any]
KEPT = tuple(k / 10 for k in range(1, 10))
"""Shares of the cells that are left at each step of a trial."""
RANDOM_ORDERS = 5
_LITTLE = """
a an the this that these those some any each every no of in on at by for from to into onto with without and or but nor so as if than
then there here is are was were be been being am do does did has have had it its he him his she her they them their we us our you your i
me my who whom whose which what while where when during about near up down out off over under above below behind between through across
around along against next beside inside underneath
"""
FUNCTION_WORDS = frozenset(_LITTLE.split())
"""Words that name nothing that could be pointed at."""


def spoken(tower: Tower, text: str) -> list[tuple[str, list[int]]]:
    """The words of a text and the positions of their tokens; [] for a tower without a tokenizer."""
    return [] if tower.tokenizer is None else tower.tokenizer.word_spans(text)


def content(words: Sequence[tuple[str, Sequence[int]]]) -> list[tuple[str, list[int]]]:
    """Words (``spoken``) that name something."""
    return [
        (word, list(at)) for word, at in words if word.lower() not in FUNCTION_WORDS and any(c.isalnum() for c in word)
    ]


def cells(aligner: Aligner, tower: Tower, tokens: int, max_tokens: int = 0) -> tuple[int, int]:
    """(height, width) of the patch grid that the last of a sample's tokens lie on.

    Args:
        tokens: of the sample; a token cache and an index hold smaller grids than the tower gives.
        max_tokens: to which an index pooled the grid; 0 = it did not.
    Raises:
        DataError: this tower has no grid.
    """
    if tower.grid:
        cached = pooled_grid(tower.grid, aligner.config.tower(tower.modality).cache_tokens)
        stored = [pooled_grid(grid, max_tokens) for grid in (cached, tower.grid) if max_tokens]
        for grid in (tower.grid, cached, *stored):
            if grid[0] * grid[1] <= tokens:
                return grid
    raise DataError(
        "this tower's tokens lie on no grid, so nothing can be pointed at",
        where=tower.spec,
        expected="an image or audio tower with patches",
    )


def by_attention(attention: Tensor, logit: Tensor) -> Tensor:
    """How much each token looks at each other one, mean over heads: [M, H, N_b, N_a] -> [M, N_b, N_a]; rows sum to 1."""
    return attention.mean(1)


def by_gradient(attention: Tensor, logit: Tensor) -> Tensor:
    """Attention times its gradient, positive part, mean over heads (Chefer et al., arXiv:2103.15679, eq. 5): what raised the score.

    Raises ConfigError: the score does not go through this attention
    """
    (slope,) = torch.autograd.grad(logit.sum(), attention, allow_unused=True)
    if slope is None:
        raise ConfigError(
            "this matcher's score has no gradient at its attention",
            where="--explain-method gradient",
            expected="--explain-method attention",
        )
    return (attention * slope).clamp_min(0).mean(1)


METHODS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"attention": by_attention, "gradient": by_gradient}
"""Name -> (attention [M, H, N_b, N_a], match_logit [M]) -> relevance [M, N_b, N_a]."""


def relevance(aligner: Aligner, a: LocalTokens, b: LocalTokens, method: str) -> Tensor:
    """How much each token of b has to do with each token of a, where row i of a and of b is one pair.

    a, b     tokens of M samples each, on the CPU
    Returns  [M, N_b, N_a] float32 >= 0, on the CPU
    Raises   ConfigError: no such method, or a matcher without attention of b over a
    """
    if method not in METHODS:
        raise ConfigError("no such way to explain", where=method, expected=" | ".join(METHODS))
    device = next(aligner.parameters()).device
    aligner.eval()
    with torch.enable_grad():
        # copies: samples may have been made in inference mode, and gradients must flow even where no parameter learns
        one, other = (
            x.map(lambda t: t.to(device).float().clone().requires_grad_() if t.is_floating_point() else t.to(device))
            for x in (a, b)
        )
        rows = torch.arange(len(one.mask), device=device)
        crossed = aligner.cross(one, other, torch.stack([rows, rows], 1), attention=True)
        if crossed.attention is None:
            kind = aligner.config.fusion
            raise ConfigError(
                "this matcher shows no attention",
                where=f"model.fusion.kind = {kind.kind!r}, direction = {kind.direction!r}",
                expected="attended, maxsim, residual, unified, or coattention that looks both ways or b_to_a",
            )
        found = METHODS[method](crossed.attention, crossed.match_logit)
    return found.detach().float().cpu()


@dataclass(frozen=True, eq=False)
class Trial:
    """What one pair's match score does as cells of a are hidden from the matcher (its tokens are masked, not its pixels).

    kept       [S] shares of the cells that are left
    deletion   [S] scores when the most relevant went first; insertion [S] when they came first; random [S] mean over random orders
    """

    score: float
    kept: Array
    deletion: Array
    insertion: Array
    random: Array

    @property
    def deletion_gain(self) -> float:
        """How much deeper the score falls than with random cells, mean over the steps, in units of the match score; above 0 = faithful."""
        return float((self.random - self.deletion).mean())

    @property
    def insertion_gain(self) -> float:
        """How much faster it rises than with random cells; above 0 = faithful."""
        return float((self.insertion - self.random).mean())


def trial(aligner: Aligner, a: LocalTokens, b: LocalTokens, order: Array, seed: int = 0) -> Trial:
    """Deletion and insertion (Petsiuk et al., arXiv:1806.07421) on the cells of one sample.

    a, b   tokens of one sample each
    order  [C] places of the cells among a's tokens, most relevant first; tokens that are no cells stay
    """
    rng, count = np.random.default_rng(seed), len(order)
    orders = [order[::-1], order, *(rng.permutation(order) for _ in range(RANDOM_ORDERS))]
    sizes = np.unique([min(count, max(1, round(share * count))) for share in KEPT])
    masks = a.mask.expand(1 + len(orders) * len(sizes), -1).clone()
    variants = [(row, size) for row in orders for size in sizes]
    for mask, (row, size) in zip(masks[1:], variants, strict=True):
        mask[torch.from_numpy(row[size:].copy())] = False
    variants_of_a = LocalTokens(a.tokens.expand(len(masks), -1, -1), masks)
    index = torch.stack([torch.arange(len(masks)), torch.zeros(len(masks), dtype=torch.long)], 1)
    scores = match_logits(aligner, variants_of_a, b, index).double().numpy()
    lines = scores[1:].reshape(len(orders), len(sizes))
    return Trial(float(scores[0]), sizes / count, lines[0], lines[1], lines[2:].mean(0))


@dataclass(frozen=True, eq=False)
class Explanation:
    """Why one pair matches.

    words   content words of b, in order (one entry, the whole sample, where b is no text)
    heat    [W, h, w] float32 >= 0, relevance of each cell for each word
    trial   whether the score rests on the relevant cells
    """

    method: str
    words: tuple[str, ...]
    heat: Array
    trial: Trial

    def facts(self) -> dict[str, Any]:
        """The numbers as JSON types."""
        found = self.trial
        return {
            "method": self.method,
            "match": found.score,
            "words": [{"word": word, "heat": heat.tolist()} for word, heat in zip(self.words, self.heat, strict=True)],
            "kept": found.kept.tolist(),
            "deletion": found.deletion.tolist(),
            "insertion": found.insertion.tolist(),
            "random": found.random.tolist(),
            "deletion_gain": found.deletion_gain,
            "insertion_gain": found.insertion_gain,
        }


def explain(
    aligner: Aligner,
    a: LocalTokens,
    b: LocalTokens,
    grid: tuple[int, int],
    words: Sequence[tuple[str, Sequence[int]]],
    method: str = "attention",
) -> Explanation:
    """Explains one pair.

    a, b   tokens of one sample each, padding allowed; the last cells of a's real tokens lie on ``grid``
    words  of b, with the places of their tokens; function words are left out. None at all = b is explained as a whole
    """
    real = torch.nonzero(a.mask[0]).flatten().numpy()
    where = real[len(real) - grid[0] * grid[1] :]
    found = relevance(aligner, a, b, method)[0].numpy()
    spoken = torch.nonzero(b.mask[0]).flatten().numpy()
    said = content(words) or [("(all)", spoken.tolist())]
    heat = np.stack([found[at][:, where].mean(0) for _, at in said])
    order = where[np.argsort(-found[spoken][:, where].sum(0), kind="stable")]
    return Explanation(method, tuple(word for word, _ in said), heat.reshape(-1, *grid), trial(aligner, a, b, order))


def point(heat: Array, box: Sequence[float]) -> tuple[float, float, float]:
    """The pointing game (Zhang et al., arXiv:1608.00507), without tolerance: does the middle of the hottest cell lie in the box?

    heat [h, w]; box (x0, y0, x1, y1), shares of the picture's sides, y down
    Returns (hit of the heat map, hit expected of a random cell, hit of the picture's middle), 0..1; equal heat shares the hit
    """
    height, width = heat.shape
    y, x = np.meshgrid((np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width, indexing="ij")
    inside = (x >= box[0]) & (x <= box[2]) & (y >= box[1]) & (y <= box[3])
    middle = box[0] <= 0.5 <= box[2] and box[1] <= 0.5 <= box[3]
    return float(inside[heat == heat.max()].mean()), float(inside.mean()), float(middle)
