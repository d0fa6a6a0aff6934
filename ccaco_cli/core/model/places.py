"""Where the patches lie that words attend to: the part of a match score that tells who is left of whom."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ccaco_cli.core.model.layout import Layout

GAIN = 60.0
"""Multiplies the direction of a word: one step of the optimiser then changes this score as much as the cosines."""


class Places(nn.Module):
    """Gives each patch its position, and each word the direction in which its patches should lie.

    A word attends to the patches of its object, whatever the role of the object in the sentence. So a caption and the
    same caption with exchanged roles attend to the same vectors, and only the positions of these patches can tell them
    apart. The direction of a word is read from its state, which depends on the sentence: for "a dog left of a ball"
    that of "dog" points to the left and that of "ball" to the right. The geometry is not learned, so each side has a
    gradient before the other has learned anything.
    """

    size = 2
    """Numbers of a place: x and y."""

    def __init__(self, width: int):
        super().__init__()
        self.direction = nn.Linear(width, self.size, bias=False)
        nn.init.zeros_(self.direction.weight)
        # positions are stored as small as the entries of the unit vectors beside them, which share one scale in int8
        self.unit = width**-0.5
        self.gain = GAIN / self.unit

    def local(self, side: int, unit: Tensor, grid: Layout) -> Tensor:
        """Positions of patches (``side`` 0) or directions of words (1): unit [R, N, D] -> [R, N, 2]."""
        if side == 1:
            directions: Tensor = self.direction(unit)
            return directions
        positions = (grid_positions(grid, unit.shape[1], unit.device) * self.unit).to(unit.dtype)
        expanded: Tensor = positions.expand(unit.shape[0], -1, -1)
        return expanded

    def score(self, positions: Tensor, directions: Tensor, gate: Tensor) -> Tensor:
        """gain * sum_w g_w c_w . (p_w - p): p_w is the position and c_w the direction of a word, p the mean over words.

        Args:
            positions: [..., L, 2], mean position of the patches that each word attends to.
            directions: [..., L, 2] of the words.
            gate: [..., L], weights of the words, sum 1; zero for padding.
        Returns:
            [...].
        """
        weights = gate.unsqueeze(-1)
        relative = positions - (positions * weights).sum(-2, keepdim=True)
        score: Tensor = self.gain * (relative * directions * weights).sum((-2, -1))
        return score

    def score_words(self, positions: Tensor, directions: Tensor, of_sample: Tensor) -> Tensor:
        """``score`` of T words of Q texts side by side, without padding, for K images.

        Args:
            positions: [K, T, 2].
            directions: [T, 2].
            of_sample: [T, Q], the gate of each word in the column of its text; zero elsewhere.
        Returns:
            [K, Q].
        """
        absolute = (positions * directions).sum(-1) @ of_sample
        mean = torch.einsum("ktx,tq->kqx", positions, of_sample)
        scores: Tensor = self.gain * (absolute - (mean * (of_sample.T @ directions)).sum(-1))
        return scores


def grid_positions(layout: Layout, count: int, device: torch.device | None = None) -> Tensor:
    """Positions of ``count`` tokens: [count, 2] float32, x and y from -1 to 1; zero for special tokens."""
    segment = layout.segment(count)
    positions = torch.zeros(count, 2, device=device)
    if segment.grid is not None:
        y, x = (torch.linspace(-1, 1, side, device=device) if side > 1 else None for side in segment.grid)
        height, width = segment.grid
        cells = positions[segment.special :].view(height, width, 2)
        if x is not None:
            cells[..., 0] = x
        if y is not None:
            cells[..., 1] = y[:, None]
    return positions
