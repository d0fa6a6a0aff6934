"""Texts of very different length in one batch: each is encoded among texts of its own length, so that little of the work is padding."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ccaco_cli.core.types import Features

LONG = 128
"""Tokens of the longest text from which it pays; a shorter batch is one call, as ever."""
PAYS = 0.75
"""Share of the padded batch that must be left of the work."""


def by_length(tower: nn.Module, inputs: dict[str, Any]) -> Features:
    """What ``tower(inputs)`` gives, from one call for each bucket of lengths (each at most 1.4 times the last).

    inputs   {"ids" [B, L], "mask" [B, L]}, and "lengths" [B] int64, the real tokens of each text: all real tokens stand in front
    Returns  Features with tokens [B, L, W], zeros where a text has ended
    """
    given = {k: inputs[k] for k in ("ids", "mask")}
    lengths, longest = inputs["lengths"].tolist(), inputs["ids"].shape[1]
    buckets = defaultdict(list)
    for row, length in enumerate(lengths):
        buckets[math.ceil(2 * math.log2(max(length, 16)))].append(row)
    work = sum(len(rows) * max(lengths[row] for row in rows) for rows in buckets.values())
    if longest < LONG or work > PAYS * longest * len(lengths):
        found: Features = tower(given)
        return found
    order = torch.tensor([row for rows in buckets.values() for row in rows], device=inputs["ids"].device)
    parts = []
    for rows in buckets.values():
        end = max(lengths[row] for row in rows)
        part = tower({k: v[rows][:, :end] for k, v in given.items()})
        padding = longest - part.tokens.shape[1]
        parts.append((F.pad(part.tokens, (0, 0, 0, padding)), F.pad(part.mask, (0, padding)), part.pooled))
    return Features(*(torch.cat(column)[order.argsort()] for column in zip(*parts, strict=True)))
