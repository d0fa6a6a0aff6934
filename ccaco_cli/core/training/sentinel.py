"""Signs that a run is sick, looked for at every validation: a warning costs one forward pass, a wasted run costs hours."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ccaco_cli.core.model.aligner import Aligner
from ccaco_cli.core.types import LocalTokens, PairBatch

Warning = dict[str, Any]
"""{"step", "kind", "what"}: the step at which it was first seen, one of the kinds below, and a sentence."""
NOT_FINITE = "not-finite"
"""The one kind that ends a run: nothing after such a step can be trusted."""
PAIRS = 64
SEEN = 1 << 24
"""Attention weights (pairs x tokens x tokens) that are looked at; of longer inputs fewer pairs, and of one that is larger none."""
SAME = 0.999
"""Length of the mean of unit vectors from which they count as one vector."""
AT_CHANCE = 0.98
"""Share of the loss of a branch that has learned nothing."""
WON = 0.98
"""Accuracy of a domain classifier, over all steps since the last look, from which features are no use against it."""
UNIFORM = 0.975
"""Share of the highest entropy (SCIENCE, finding 1: an attention that aligns nothing stays at 0.98)."""


def ended(warnings: Sequence[Warning]) -> bool:
    """Whether one of these warnings ends the run."""
    return any(w["kind"] == NOT_FINITE for w in warnings)


def stop(step: int, losses: Mapping[str, Tensor], norm: float) -> Warning | None:
    """The warning that ends a run, when a loss part or the gradient norm of this step is NaN or infinite."""
    sick = [name for name, value in losses.items() if not math.isfinite(value.item())] + (
        [] if math.isfinite(norm) else ["gradients"]
    )
    return (
        _warning(step, NOT_FINITE, f"{', '.join(sick)} not finite: training ended here, before this step")
        if sick
        else None
    )


def renew(known: Sequence[Warning], found: Mapping[str, str], step: int) -> list[Warning]:
    """The warnings that hold now: what was known and is still found keeps its first step, what healed is dropped.

    found  kind -> sentence, from ``inspect``
    """
    kept = [w for w in known if w["kind"] in found or w["kind"] == NOT_FINITE]
    return kept + [_warning(step, kind, what) for kind, what in found.items() if kind not in {w["kind"] for w in kept}]


@torch.no_grad()
def inspect(
    aligner: Aligner,
    batch: PairBatch,
    cross_losses: Sequence[float],
    chance: float | None,
    learns: Collection[str] = (),
) -> dict[str, str]:
    """What is wrong with a model, seen on one batch in evaluation mode: kind -> sentence.

    cross_losses  of the steps since the last look; empty when the cross branch did not run
    chance        what it costs to have learned nothing, nats; None = unknown
    learns        the modalities that learn; () = both
    """
    aligner.eval()
    given = zip(aligner.modalities, (batch.a, batch.b), (batch.at_a, batch.at_b), strict=True)
    sides, features = [], []
    for modality, inputs, at in given:
        rows = slice(len(batch.rows)) if at is None else at[: len(batch.rows)]
        embedding, tokens = aligner.encode(modality, inputs)
        sides.append(embedding[rows])
        features.append(tokens[rows])
    found: dict[str, str] = {}
    for modality, side in zip(aligner.modalities, sides, strict=True):
        if learns and modality not in learns:
            continue
        if not torch.isfinite(side.z).all():
            found["nan-embeddings"] = f"the embeddings of {modality} are not finite"
        elif len(side.z) > 1 and side.z.mean(0).norm() > SAME:
            found["constant-embeddings"] = f"every {modality} has the same embedding"
    if aligner.log_scale.requires_grad and aligner.log_scale.exp() >= 0.999 * aligner.max_scale:
        found["scale-clamped"] = f"the logit scale is at its clamp of {aligner.max_scale:g}"
    mean = sum(cross_losses) / len(cross_losses) if cross_losses else 0.0
    if chance is not None and mean > AT_CHANCE * chance:
        found["loss-at-chance"] = f"the cross loss is at {mean:.4f} nats; having learned nothing costs {chance:.4f}"
    if cross_losses:
        size = features[0].mask.shape[1] * features[1].mask.shape[1]
        pairs = max(2, min(PAIRS, SEEN // size))
        a, b = (aligner.local_tokens(m, x[:pairs]) for m, x in zip(aligner.modalities, features, strict=True))
        found |= _attention(aligner, a, b, weights=size <= SEEN)
    return found


def adversary(accuracies: Sequence[float]) -> dict[str, str]:
    """What is wrong between the towers and the domain classifier: kind -> sentence.

    accuracies  of the domain classifier at the steps since the last look, 0..1
    """
    mean = sum(accuracies) / len(accuracies) if accuracies else 0.0
    if mean < WON:
        return {}
    return {
        "adversary-won": f"the domain classifier is right on {mean:.1%} of samples: the domains are not being drawn together"
    }


def _attention(aligner: Aligner, a: LocalTokens, b: LocalTokens, *, weights: bool) -> dict[str, str]:
    true = torch.arange(len(a.mask), device=a.mask.device)
    crossed = aligner.cross(a, b, torch.stack([true, true], 1), attention=weights)
    logit, attention = crossed.match_logit.float(), crossed.attention
    if not torch.isfinite(logit).all() or (attention is not None and not torch.isfinite(attention).all()):
        return {"attention-vanished": "the cross branch is not finite"}
    if len(logit) > 1 and logit.std() < 1e-5 * max(1.0, float(logit.abs().mean())):
        return {"attention-vanished": "the cross branch gives every pair the same score"}
    if attention is None:
        return {}
    attention = attention.mean(1)  # over heads
    if aligner.config.fusion.direction == "a_to_b":  # then it is a that looks, and each token of a spreads over b
        attention, a, b = attention.transpose(1, 2), b, a
    seen = a.mask.sum(1, keepdim=True).expand_as(b.mask)
    looking = b.mask & (seen > 1)
    entropy = -(attention * attention.clamp_min(1e-12).log()).sum(-1)[looking] / seen[looking].log()
    if len(entropy) and entropy.mean() > UNIFORM:
        return {"attention-uniform": f"attention is spread evenly ({entropy.mean():.3f} of the highest entropy)"}
    return {}


def _warning(step: int, kind: str, what: str) -> Warning:
    return {"step": step, "kind": kind, "what": what}
