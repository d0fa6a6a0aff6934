"""How the pooled vector of a tower follows from its tokens: a tower declares the rule, and ``probing`` checks it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from ccaco_cli.core.model.attention import masked_mean

Pooling = Literal["mean", "first", "last", "model"]
"""mean: of the real tokens; first: the class token; last: the last real token; model: an attention pool, a head or
another rule of the model, which cannot be checked on the tokens."""


def first_token(tokens: Tensor, mask: Tensor) -> Tensor:
    """Returns the first token: tokens [B, N, W] -> [B, W]."""
    return tokens[:, 0]


def last_token(tokens: Tensor, mask: Tensor) -> Tensor:
    """Returns the last real token: tokens [B, N, W], mask [B, N] bool with real tokens first -> [B, W]."""
    last = (mask.long().sum(1) - 1).clamp_min(0)
    return tokens[torch.arange(len(tokens), device=tokens.device), last]


RULES: Mapping[Pooling, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": masked_mean,
    "first": first_token,
    "last": last_token,
}
"""Rule -> function of tokens and mask; ``model`` has none."""
