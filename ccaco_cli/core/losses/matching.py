"""The local half when it answers a question about pairs: do these two belong together?"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def matching(match_logit: Tensor, label: Tensor) -> Tensor:
    """Pair matching, binary cross-entropy (ALBEF's ITM, arXiv:2107.07651, eq. 4, with one logit).

    match_logit  [M] float
    label        [M] bool, True = the pair belongs together
    Returns      scalar, nats; a model that knows only the share of true pairs stays at that share's entropy (0.6365 for 1 : 2)
    """
    return F.binary_cross_entropy_with_logits(match_logit.float(), label.float())


def prior(negatives: int) -> float:
    """Nats that ``matching`` costs a model that knows only the share of true pairs: one to ``negatives`` false ones (0.6365 for 2)."""
    return math.log(1 + negatives) - negatives / (1 + negatives) * math.log(negatives)


def listwise(match_logit: Tensor, candidates: int) -> Tensor:
    """Softmax over one true and ``candidates - 1`` false partners of each query (ListNet's top-one loss, ICML 2007).

    match_logit  [Q * candidates] float; of each run of ``candidates`` the first is true
    Returns      scalar, nats; chance is log(candidates)
    """
    logits = match_logit.float().view(-1, candidates)
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))
