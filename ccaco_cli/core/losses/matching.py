"""Losses of the cross branch that classify pairs: do these two samples belong together?"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ccaco_cli.core.losses.precision import in_float32


@in_float32
def matching(match_logit: Tensor, label: Tensor) -> Tensor:
    """Binary cross-entropy of pair matching (ALBEF's ITM, arXiv:2107.07651, eq. 4, with one logit).

    Args:
        match_logit: [M] float.
        label: [M] bool, True = the pair belongs together.
    Returns:
        Scalar in nats.
    """
    return F.binary_cross_entropy_with_logits(match_logit, label.to(match_logit))


def matching_chance(negatives: int) -> float:
    """``matching`` in nats of a model that knows only the ratio of true to false pairs, 1 : ``negatives``."""
    return math.log(1 + negatives) - negatives / (1 + negatives) * math.log(negatives)


@in_float32
def listwise(match_logit: Tensor, candidates: int) -> Tensor:
    """Softmax over one true and ``candidates - 1`` false partners of each query (ListNet's top-one loss, ICML 2007).

    Args:
        match_logit: [Q * candidates] float; the first of each ``candidates`` consecutive values belongs to the true
            partner.
        candidates: partners of each query.
    Returns:
        Scalar in nats; chance level log(candidates).
    """
    logits = match_logit.view(-1, candidates)
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))
