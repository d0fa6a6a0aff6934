"""Checks that every family of towers passes."""

from __future__ import annotations

from typing import Any

import torch

from ccaco_cli.core.model.towers.precision import ReducedPrecision
from ccaco_cli.core.model.towers.tower import Tower


def check_reduced_precision(tower: Tower, inputs: dict[str, Any]) -> None:
    """In bf16 a tower gives the same tokens up to 1e-3 of cosine, as float32, and its own weights do not change."""
    before = {name: tensor.clone() for name, tensor in tower.module.state_dict().items()}
    with torch.no_grad():
        full = tower.module.eval()(inputs)
        reduced = ReducedPrecision(tower.module, torch.bfloat16).eval()(inputs)
    assert reduced.tokens.dtype == reduced.pooled.dtype == torch.float32
    assert torch.equal(reduced.mask, full.mask)
    assert not torch.equal(reduced.tokens, full.tokens)
    real = full.mask
    for vectors, expected in ((reduced.pooled, full.pooled), (reduced.tokens[real], full.tokens[real])):
        assert torch.nn.functional.cosine_similarity(vectors, expected, dim=-1).min() > 1 - 1e-3
    assert all(torch.equal(tensor, before[name]) for name, tensor in tower.module.state_dict().items())
