"""Why a pair matches: the relevance of each image cell for each word, and tests of that relevance.

``hide_cells`` tests a heat map with the matcher: without the most relevant cells the score must fall faster than
    without
random cells. ``point`` tests it with the image, where it is known which object is where.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ccaco_cli.core.errors import ConfigError, DataError
from ccaco_cli.core.model.aligner import Aligner
from ccaco_cli.core.model.token_pooling import pooled_grid
from ccaco_cli.core.model.towers.tower import Tower
from ccaco_cli.core.retrieval.match import match_logits
from ccaco_cli.core.types import LocalTokens
from ccaco_cli.core.words import content_words, detect_language

Array = NDArray[Any]
KEPT_SHARES = tuple(k / 10 for k in range(1, 10))
"""Shares of the cells that are left at each step of a deletion test."""
RANDOM_ORDERS = 5


def content_word_spans(tower: Tower, text: str, language: str = "") -> list[tuple[str, list[int]]]:
    """The words of a text that name something, in order, with the positions of their tokens.

    Args:
        language: as ``content_words`` takes it.
    Returns:
        [] for a tower without a tokenizer, or with one that does not report the characters of its tokens.
    """
    if tower.tokenizer is None:
        return []
    tokens = tower.tokenizer.token_spans(text)
    words = content_words(tokens.text, language or detect_language(text))
    spans = [
        (word.text, [at for at, start, end in tokens.spans if start < word.end and end > word.start]) for word in words
    ]
    return [(word, positions) for word, positions in spans if positions]


def patch_grid(aligner: Aligner, tower: Tower, tokens: int, max_tokens: int = 0) -> tuple[int, int]:
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
    """Attention weights, mean over heads: [M, H, N_b, N_a] -> [M, N_b, N_a]; rows sum to 1."""
    return attention.mean(1)


def by_gradient(attention: Tensor, logit: Tensor) -> Tensor:
    """Attention times its gradient, positive part, mean over heads (Chefer et al., arXiv:2103.15679, eq. 5).

    Raises:
        ConfigError: the score does not depend on this attention.
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
    """Relevance of each token of a for each token of b, where row i of a and of b is one pair.

    Args:
        a, b: tokens of M samples each, on the CPU.
        method: an entry of ``METHODS``.
    Returns:
        [M, N_b, N_a] float32 >= 0, on the CPU.
    Raises:
        ConfigError: no such method, or a matcher without attention of b over a.
    """
    if method not in METHODS:
        raise ConfigError("no such way to explain", where=method, expected=" | ".join(METHODS))
    device = next(aligner.parameters()).device
    aligner.eval()
    with torch.enable_grad():
        # copies, because tokens may come from inference mode, and gradients must flow even where no parameter
        # is trained
        copy_a, copy_b = (
            x.map(lambda t: t.to(device).float().clone().requires_grad_() if t.is_floating_point() else t.to(device))
            for x in (a, b)
        )
        rows = torch.arange(len(copy_a.mask), device=device)
        crossed = aligner.cross(copy_a, copy_b, torch.stack([rows, rows], 1), attention=True)
        if crossed.attention is None:
            kind = aligner.config.fusion
            raise ConfigError(
                "this matcher shows no attention",
                where=f"model.fusion.kind = {kind.kind!r}, direction = {kind.direction!r}",
                expected="attended, maxsim, residual, unified, or coattention that looks both ways or b_to_a",
            )
        token_relevance = METHODS[method](crossed.attention, crossed.match_logit)
    return token_relevance.detach().float().cpu()


def attended_cosines(aligner: Aligner, a: LocalTokens, b: LocalTokens) -> Tensor:
    """How well each token of b is matched by what it attends to in a (as in SCAN, arXiv:1803.08024, eq. 5).

    Args:
        a, b: tokens of M samples each, on the CPU; row i of both is one pair.
    Returns:
        [M, N_b] float32, cosine of each token with the mean of a's tokens, weighted by its attention; of padding
        without meaning.
    Raises:
        ConfigError: as ``relevance``.
    """
    weights = relevance(aligner, a, b, "attention")
    unit_a, unit_b = (F.normalize(x.tokens[..., : aligner.matcher.width].float(), dim=-1) for x in (a, b))
    return F.cosine_similarity(unit_b, weights @ unit_a, dim=-1)


def word_cosines(cosines: Tensor, words: Sequence[tuple[str, Sequence[int]]]) -> list[tuple[str, float]]:
    """The words of one text with the mean of their tokens' ``attended_cosines`` ([N_b])."""
    return [(word, float(cosines[positions].mean())) for word, positions in words]


@dataclass(frozen=True, eq=False)
class Trial:
    """Match scores of one pair as cells of a are hidden from the matcher: their tokens are masked, not their pixels.

    Attributes:
        score: with all cells.
        kept_shares: [S] shares of the cells that are left.
        deletion: [S] scores when the most relevant cells are removed first.
        insertion: [S] scores when the most relevant cells are added first.
        random: [S] mean scores over random orders.
    """

    score: float
    kept_shares: Array
    deletion: Array
    insertion: Array
    random: Array

    @property
    def deletion_gain(self) -> float:
        """Mean score with random cells minus that of ``deletion``, in units of the match score; above 0 = faithful."""
        return float((self.random - self.deletion).mean())

    @property
    def insertion_gain(self) -> float:
        """Mean score of ``insertion`` minus that with random cells; above 0 = faithful."""
        return float((self.insertion - self.random).mean())


def hide_cells(aligner: Aligner, a: LocalTokens, b: LocalTokens, order: Array, seed: int = 0) -> Trial:
    """Deletion and insertion (Petsiuk et al., arXiv:1806.07421) on the cells of one sample.

    Args:
        a, b: tokens of one sample each.
        order: [C] positions of the cells among a's tokens, most relevant first; tokens that are no cells are not
            masked.
    """
    rng, count = np.random.default_rng(seed), len(order)
    orders = [order[::-1], order, *(rng.permutation(order) for _ in range(RANDOM_ORDERS))]
    sizes = np.unique([min(count, max(1, round(share * count))) for share in KEPT_SHARES])
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

    Attributes:
        words: content words of b, in order; one entry, "(all)", where there are none.
        heat: [W, h, w] float32 >= 0, relevance of each cell for each word.
        trial: scores without the relevant cells, which show whether the match depends on them.
    """

    method: str
    words: tuple[str, ...]
    heat: Array
    trial: Trial

    def facts(self) -> dict[str, Any]:
        """The numbers as JSON types."""
        trial = self.trial
        return {
            "method": self.method,
            "match": trial.score,
            "words": [{"word": word, "heat": heat.tolist()} for word, heat in zip(self.words, self.heat, strict=True)],
            "kept": trial.kept_shares.tolist(),
            "deletion": trial.deletion.tolist(),
            "insertion": trial.insertion.tolist(),
            "random": trial.random.tolist(),
            "deletion_gain": trial.deletion_gain,
            "insertion_gain": trial.insertion_gain,
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

    Args:
        a, b: tokens of one sample each, padding allowed; the last of a's real tokens are the cells of ``grid``.
        words: of b, with the positions of their tokens. Without any, b is explained as a whole.
        method: an entry of ``METHODS``.
    """
    tokens_a = torch.nonzero(a.mask[0]).flatten().numpy()
    tokens_b = torch.nonzero(b.mask[0]).flatten().numpy()
    cells = tokens_a[len(tokens_a) - grid[0] * grid[1] :]
    token_relevance = relevance(aligner, a, b, method)[0].numpy()
    spans = words or [("(all)", tokens_b.tolist())]
    heat = np.stack([token_relevance[positions][:, cells].mean(0) for _, positions in spans])
    order = cells[np.argsort(-token_relevance[tokens_b][:, cells].sum(0), kind="stable")]
    trial = hide_cells(aligner, a, b, order)
    return Explanation(method, tuple(word for word, _ in spans), heat.reshape(-1, *grid), trial)


def point(heat: Array, box: Sequence[float]) -> tuple[float, float, float]:
    """The pointing game (Zhang et al., arXiv:1608.00507), without tolerance: is the centre of the hottest cell in the
    box?

    Args:
        heat: [h, w].
        box: (x0, y0, x1, y1) as shares of the sides of the image, y down.
    Returns:
        Hit of the heat map, expected hit of a random cell, hit of the centre of the image; 0..1. Cells of equal heat
        share the hit.
    """
    height, width = heat.shape
    y, x = np.meshgrid((np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width, indexing="ij")
    inside = (x >= box[0]) & (x <= box[2]) & (y >= box[1]) & (y <= box[3])
    middle = box[0] <= 0.5 <= box[2] and box[1] <= 0.5 <= box[3]
    return float(inside[heat == heat.max()].mean()), float(inside.mean()), float(middle)
