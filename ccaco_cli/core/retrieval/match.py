"""Match logits of listed pairs, in batches of like length: the costly half of a score."""

from __future__ import annotations

import torch
from torch import Tensor

from ccaco_cli.core import runtime
from ccaco_cli.core.model.aligner import Aligner
from ccaco_cli.core.retrieval.query import PAIRS_AT_ONCE
from ccaco_cli.core.types import LocalTokens

TOKENS_AT_ONCE = 1 << 18
"""Tokens of both sides that go to the device at once: fewer pairs of what is long."""
LENGTH_STEP = 8
"""Pairs whose lengths differ by less than this many tokens go together."""


@torch.inference_mode()
def match_logits(aligner: Aligner, a: LocalTokens, b: LocalTokens, index: Tensor) -> Tensor:
    """Scores listed pairs by the cross branch.

    Args:
        a, b: tokens of A and B samples of the first and of the second modality, on the CPU.
        index: [M, 2] int64, rows of a and b.
    Returns:
        [M] float32 on the CPU, higher = better match.
    """
    aligner.eval()
    device = next(aligner.parameters()).device
    step = max(1, min(PAIRS_AT_ONCE, TOKENS_AT_ONCE // max(1, a.mask.shape[1] + b.mask.shape[1])))
    # Pairs of like length go together, because a batch costs what its longest costs. Among them, the pairs of one row
    # go together, because a row is then read once.
    length = (a.mask.sum(1)[index[:, 0]] + b.mask.sum(1)[index[:, 1]]) // LENGTH_STEP
    order = index[:, 0].argsort(stable=True)
    order = order[length[order].argsort(stable=True)]
    logits = []
    for chunk in torch.split(order, step):
        (rows_a, place_a), (rows_b, place_b) = (
            torch.unique(rows, return_inverse=True) for rows in index[chunk].unbind(1)
        )
        # only the rows of this chunk go to the device, cut at their longest token
        chunk_a, chunk_b = (
            _trim(tokens[rows]).to(device).map(lambda t: t.float() if t.is_floating_point() else t)
            for tokens, rows in ((a, rows_a), (b, rows_b))
        )
        pairs = torch.stack([place_a, place_b], 1).to(device)
        with runtime.tensor_float32(device):
            logits.append(aligner.cross(chunk_a, chunk_b, pairs).match_logit.float())
    # one copy for all: a copy of each part would let a GPU wait for the next one
    return torch.empty(len(index)).index_copy_(0, order, torch.cat(logits).cpu())


def _trim(local: LocalTokens) -> LocalTokens:
    longest = int(local.mask.any(0).nonzero().max()) + 1 if local.mask.any() else 0
    return LocalTokens(local.tokens[:, :longest], local.mask[:, :longest])
