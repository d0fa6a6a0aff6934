"""The loss of the text decoder."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ccaco_cli.core import distributed


def caption_loss(logits: Tensor, targets: Tensor, ignored: int = -100) -> Tensor:
    """Teacher-forced cross entropy of captions (CoCa, arXiv:2205.01917, eq. 4).

    Args:
        logits: [B, L, U] of the words at each position.
        targets: [B, L] int64, the right word 0 .. U - 1; ``ignored`` = no word is there.
    Returns:
        Scalar in nats, mean over the real words of the batch of all processes. The end of a text counts as a word. A
        process returns its own part times the number of processes: the mean over them, and of the gradients, is exact.
    """
    words = distributed.all_reduce_sum((targets != ignored).sum().float())
    total = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=ignored, reduction="sum")
    return total * distributed.world() / words.clamp_min(1)
