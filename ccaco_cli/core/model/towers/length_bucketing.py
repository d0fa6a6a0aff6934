"""Encoding samples of very different length: each group of similar lengths by itself, with little or no padding."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ccaco_cli.core.types import LENGTHS, Features, move_tensor

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
    lengths = inputs[LENGTHS].tolist() if longest >= MIN_LENGTH else []
    buckets = defaultdict(list)
    for row, length in enumerate(lengths):
        buckets[math.ceil(2 * math.log2(max(length, 16)))].append(row)
    work = sum(len(rows) * max(lengths[row] for row in rows) for rows in buckets.values())
    if not lengths or work > MAX_WORK * longest * len(lengths):
        features: Features = tower(token_inputs)
        return features

    def encode(rows: Sequence[int], bucket: dict[str, Tensor]) -> tuple[Tensor, ...]:
        part = tower({name: tensor[:, : max(lengths[row] for row in rows)] for name, tensor in bucket.items()})
        padding = longest - part.tokens.shape[1]
        return F.pad(part.tokens, (0, 0, 0, padding)), F.pad(part.mask, (0, padding)), part.pooled

    return Features(*in_groups(token_inputs, list(buckets.values()), encode))


def in_groups(
    inputs: Mapping[str, Tensor],
    groups: Sequence[Sequence[int]],
    encode: Callable[[Sequence[int], dict[str, Tensor]], tuple[Tensor, ...]],
) -> tuple[Tensor, ...]:
    """Calls ``encode`` with each group of rows, and returns its results in the order of the rows.

    The program does not wait for a GPU: the groups come from numbers on the CPU.

    Args:
        inputs: [B, ...] each.
        groups: row numbers; together they are all rows.
        encode: (row numbers, inputs of these rows) -> tensors [rows, ...], of one shape for all groups but for the
            rows.
    """
    order = torch.tensor([row for rows in groups for row in rows])
    device = next(iter(inputs.values())).device
    index, inverse = (move_tensor(rows, device) for rows in (order, order.argsort()))
    sizes = [len(rows) for rows in groups]
    split = {name: tensor[index].split(sizes) for name, tensor in inputs.items()}  # type: ignore[no-untyped-call]
    results = [encode(rows, {name: split[name][number] for name in split}) for number, rows in enumerate(groups)]
    return tuple(torch.cat(column)[inverse] for column in zip(*results, strict=True))
