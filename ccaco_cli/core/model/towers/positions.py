"""Learned positions for more tokens than a tower was trained with: by a named rule, instead of cutting what is longer in silence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ccaco_cli.core.errors import TowerError
from ccaco_cli.core.model.towers.tower import Tower
from ccaco_cli.core.model.towers.weights import fingerprint

KEPT = 20
"""First positions that ``stretch`` leaves as they are: those that short captions have trained well (arXiv:2403.15378, sec. 3.1)."""


def interpolate(table: Tensor, count: int) -> Tensor:
    """[n, W] -> [count, W], linearly over the whole length."""
    return F.interpolate(table.T[None], size=count, mode="linear", align_corners=True)[0].T


def stretch(table: Tensor, count: int) -> Tensor:
    """The first 20 stay, the others are interpolated (knowledge-preserved stretching, Long-CLIP, arXiv:2403.15378, eq. 3)."""
    kept = min(KEPT, len(table) // 2)
    return torch.cat([table[:kept], interpolate(table[kept:], count - kept)])


def repeat(table: Tensor, count: int) -> Tensor:
    """Copies, one behind the other, so that what is near stays near (Longformer, arXiv:2004.05150, sec. 5)."""
    return table.repeat(-(-count // len(table)), 1)[:count]


RULES: dict[str, Callable[[Tensor, int], Tensor]] = {"stretch": stretch, "interpolate": interpolate, "repeat": repeat}


def lengthen(tower: Tower, count: int, rule: str) -> Tower:
    """A text tower that takes ``count`` tokens. Raises TowerError: an unknown rule, or a tower that cannot be lengthened."""
    if rule not in RULES:
        raise TowerError("unknown rule for positions", where=f"positions = {rule!r}", expected=" | ".join(RULES))
    module: Any = tower.module
    if not hasattr(module, "lengthen"):
        raise TowerError(
            f"this tower takes {tower.tokens} tokens, and no more",
            where=tower.spec,
            expected="a shorter --context-length",
        )
    with torch.no_grad():
        module.lengthen(count, RULES[rule])
    preprocess = replace(tower.preprocess, context_length=count)  # type: ignore[type-var]
    return replace(
        tower, preprocess=preprocess, tokens=count, fingerprint=fingerprint(module, tower.fingerprint, count)
    )


def lengthen_embeddings(body: nn.Module, count: int, rule: Callable[[Tensor, int], Tensor]) -> None:
    """Lengthens every learned position table of a transformers encoder; one that has none (rotary, relative) needs nothing.

    Rows up to the padding's (RoBERTa numbers its positions from there) stay as they are.
    """
    for parent in list(body.modules()):
        for name in ("position_embeddings", "position_embedding"):
            table = getattr(parent, name, None)
            if isinstance(table, nn.Embedding):
                offset = 0 if table.padding_idx is None else table.padding_idx + 1
                weight = torch.cat([table.weight[:offset], rule(table.weight[offset:], count)])
                longer = nn.Embedding(len(weight), weight.shape[1], table.padding_idx, _weight=weight)
                setattr(parent, name, longer.requires_grad_(table.weight.requires_grad))
                room = {
                    "position_ids": torch.arange(len(weight)),
                    "token_type_ids": torch.zeros(len(weight), dtype=torch.long),
                }
                for buffer in filter(lambda b: getattr(parent, b, None) is not None, room):
                    parent.register_buffer(buffer, room[buffer][None], persistent=False)
