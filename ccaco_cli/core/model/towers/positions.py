"""Learned positions for more tokens than a tower was trained with, by a named rule."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ccaco_cli.core.errors import TowerError
from ccaco_cli.core.model.towers.tower import PositionRule, Tower
from ccaco_cli.core.model.towers.weights import fingerprint

UNCHANGED = 20
"""First positions that ``stretch`` keeps: short captions trained them well (arXiv:2403.15378, sec. 3.1)."""


def interpolate(table: Tensor, count: int) -> Tensor:
    """[n, W] -> [count, W], linear interpolation over the whole length."""
    return F.interpolate(table.T[None], size=count, mode="linear", align_corners=True)[0].T


def stretch(table: Tensor, count: int) -> Tensor:
    """Leaves the first 20 rows and interpolates the others (knowledge-preserved stretching, Long-CLIP,
    arXiv:2403.15378, eq. 3)."""
    unchanged = min(UNCHANGED, len(table) // 2)
    return torch.cat([table[:unchanged], interpolate(table[unchanged:], count - unchanged)])


def repeat(table: Tensor, count: int) -> Tensor:
    """Repeats the table, so that neighbours stay neighbours (Longformer, arXiv:2004.05150, sec. 5)."""
    return table.repeat(-(-count // len(table)), 1)[:count]


RULES: dict[str, PositionRule] = {"stretch": stretch, "interpolate": interpolate, "repeat": repeat}


def extend_context(tower: Tower, count: int, rule: str) -> Tower:
    """Extends a text tower to ``count`` tokens.

    Raises:
        TowerError: an unknown rule, or a tower that declares no ``extend_context``.
    """
    if rule not in RULES:
        raise TowerError("unknown rule for positions", where=f"positions = {rule!r}", expected=" | ".join(RULES))
    if tower.extend_context is None or tower.tokenizer is None:
        raise TowerError(
            f"this tower takes at most {tower.tokens} tokens",
            where=tower.spec,
            expected="a shorter --context-length",
        )
    with torch.no_grad():
        tower.extend_context(count, RULES[rule])
    tokenizer = tower.tokenizer.with_context_length(count)
    return replace(
        tower,
        preprocess=tokenizer,
        tokenizer=tokenizer,
        tokens=count,
        fingerprint=fingerprint(tower.module, tower.fingerprint, count),
    )


POSITION_TABLES = ("position_embeddings", "position_embedding", "wpe")
"""Names of the learned position tables of transformers encoders."""


def learned_positions(body: nn.Module) -> int | None:
    """Returns the most tokens that the learned position tables of an encoder allow, or None without such a table."""
    tables = [getattr(parent, name, None) for parent in body.modules() for name in POSITION_TABLES]
    return min(
        (len(table.weight) - _offset(table) for table in tables if isinstance(table, nn.Embedding)), default=None
    )


def extend_embeddings(body: nn.Module, count: int, rule: PositionRule) -> None:
    """Extends every learned position table of a transformers encoder; other kinds (rotary ...) need nothing.

    The rows up to the one of the padding token stay as they are (RoBERTa numbers its positions from there).
    """
    for parent in list(body.modules()):
        for name in POSITION_TABLES:
            table = getattr(parent, name, None)
            if isinstance(table, nn.Embedding):
                _extend_table(parent, name, table, count, rule)


def _offset(table: nn.Embedding) -> int:
    """The first row of a position: RoBERTa numbers its positions from the row behind the padding token."""
    return 0 if table.padding_idx is None else table.padding_idx + 1


def _extend_table(parent: nn.Module, name: str, table: nn.Embedding, count: int, rule: PositionRule) -> None:
    """Replaces one table and the buffers of its length, where the model has them."""
    offset = _offset(table)
    weight = torch.cat([table.weight[:offset], rule(table.weight[offset:], count)])
    longer = nn.Embedding(len(weight), weight.shape[1], table.padding_idx, _weight=weight)
    setattr(parent, name, longer.requires_grad_(table.weight.requires_grad))
    buffers = {
        "position_ids": torch.arange(len(weight)),
        "token_type_ids": torch.zeros(len(weight), dtype=torch.long),
    }
    for buffer in filter(lambda key: getattr(parent, key, None) is not None, buffers):
        parent.register_buffer(buffer, buffers[buffer][None], persistent=False)
