"""Encoding texts of very different length: each bucket of similar lengths by itself, with little padding."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ccaco_cli.core.types import Features

MIN_LENGTH = 128
"""Tokens of the longest text from which buckets are used; a shorter batch is one call."""
MAX_WORK = 0.75
"""Buckets are used only where they compute at most this share of the tokens of the padded batch."""


def encode_by_length(tower: nn.Module, inputs: dict[str, Any]) -> Features:
    """Computes ``tower(inputs)`` with one call per bucket (lengths within a bucket differ by up to 1.4 times).

    Args:
        tower: module of a text tower.
        inputs: {"ids": [B, L], "mask": [B, L], "lengths": [B] int64 on the CPU, the real tokens of each text}; real
            tokens come first.
    Returns:
        Features with tokens [B, L, W]; tokens behind the end of a text are zero.
    """
    token_inputs = {k: inputs[k] for k in ("ids", "mask")}
    longest = inputs["ids"].shape[1]
    lengths = inputs["lengths"].tolist() if longest >= MIN_LENGTH else []
    buckets = defaultdict(list)
    for row, length in enumerate(lengths):
        buckets[math.ceil(2 * math.log2(max(length, 16)))].append(row)
    work = sum(len(rows) * max(lengths[row] for row in rows) for rows in buckets.values())
    if not lengths or work > MAX_WORK * longest * len(lengths):
        features: Features = tower(token_inputs)
        return features
    order = torch.tensor([row for rows in buckets.values() for row in rows], device=inputs["ids"].device)
    parts = []
    for rows in buckets.values():
        end = max(lengths[row] for row in rows)
        part = tower({k: v[rows][:, :end] for k, v in token_inputs.items()})
        padding = longest - part.tokens.shape[1]
        parts.append((F.pad(part.tokens, (0, 0, 0, padding)), F.pad(part.mask, (0, padding)), part.pooled))
    return Features(*(torch.cat(column)[order.argsort()] for column in zip(*parts, strict=True)))
