"""Health checks at every validation: they cost one forward pass, and a failed run costs hours."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import TypedDict

import torch
from torch import Tensor

from ccaco_cli.core.model.aligner import Aligner
from ccaco_cli.core.types import LocalTokens, PairBatch

HealthWarning = TypedDict("HealthWarning", {"step": int, "kind": str, "what": str})  # noqa: UP013
"""One warning in ``metrics.jsonl`` and in the facts of a run: the first step that raised it, its kind, a sentence."""
NOT_FINITE = "not-finite"
"""The only kind that ends a run: later steps would be meaningless."""
NAN_EMBEDDINGS = "nan-embeddings"
"""The embeddings of a modality are not finite, so nothing can be searched with the model."""
MAX_PAIRS = 64
MAX_WEIGHTS = 1 << 24
"""Attention weights (pairs x tokens x tokens) that are checked: longer inputs are checked with fewer pairs, very long
ones not at all."""
CONSTANT_NORM = 0.999
"""Embeddings count as constant if the norm of their mean is above this."""
CHANCE_RATIO = 0.98
"""A loss counts as at chance above this fraction of the chance level."""
ADVERSARY_ACCURACY = 0.98
"""Accuracy of a domain classifier, over an epoch, from which the features no longer confuse it."""
UNIFORM_ENTROPY = 0.975
"""Attention counts as uniform above this fraction of the maximum entropy: useless attention stays at 0.98."""


def is_fatal(warnings: Sequence[HealthWarning]) -> bool:
    """Whether one of the warnings ends the run."""
    return any(warning["kind"] == NOT_FINITE for warning in warnings)


def not_finite(step: int, values: Sequence[Mapping[str, Tensor]]) -> HealthWarning | None:
    """The warning that ends a run if a number of this step is NaN or infinite; None otherwise.

    The program waits for a GPU once, for the numbers of the whole step.

    Args:
        values: name -> scalar, for each batch of the step; a name may be in several of them.
    """
    named = [(name, value) for batch in values for name, value in batch.items()]
    if bool(torch.isfinite(torch.stack([value.float() for _, value in named])).all()):
        return None
    names = dict.fromkeys(name for name, value in named if not math.isfinite(value.item()))
    sentence = f"{', '.join(names)} not finite: training ended here, before this step"
    return {"step": step, "kind": NOT_FINITE, "what": sentence}


def update_warnings(previous: Sequence[HealthWarning], current: Mapping[str, str], step: int) -> list[HealthWarning]:
    """The warnings that hold now: one that was raised before keeps its first step, one that no longer holds is dropped.

    Args:
        current: kind -> sentence, of ``check_model`` and ``check_domain_classifier``.
    """
    persistent = [w for w in previous if w["kind"] in current or w["kind"] == NOT_FINITE]
    known = {w["kind"] for w in persistent}
    new: list[HealthWarning] = [
        {"step": step, "kind": kind, "what": sentence} for kind, sentence in current.items() if kind not in known
    ]
    return persistent + new


@torch.no_grad()
def check_model(
    aligner: Aligner,
    batch: PairBatch,
    epoch_losses: Mapping[str, Sequence[float]],
    chance_levels: Mapping[str, float],
    trained_modalities: Collection[str] = (),
) -> dict[str, str]:
    """Checks a model on one batch in evaluation mode.

    Args:
        epoch_losses: loss part -> values of the steps since the last check; without "cross" the cross branch is not
            checked.
        chance_levels: loss part -> loss in nats of a model that has learned nothing, where it is known.
        trained_modalities: the modalities that are trained; () = both.
    Returns:
        Kind -> sentence, one entry per problem.
    """
    aligner.eval()
    pairs = len(batch.rows)
    embeddings, features = {}, {}
    for modality, inputs, sample_index in zip(
        aligner.modalities, (batch.a, batch.b), (batch.at_a, batch.at_b), strict=True
    ):
        rows = slice(pairs) if sample_index is None else sample_index[:pairs]
        embedding, tower_features = aligner.encode(modality, inputs)
        embeddings[modality], features[modality] = embedding[rows], tower_features[rows]
    problems: dict[str, str] = {}
    for modality, embedding in embeddings.items():
        if trained_modalities and modality not in trained_modalities:
            continue
        if not torch.isfinite(embedding.z).all():
            problems[NAN_EMBEDDINGS] = f"the embeddings of {modality} are not finite"
        elif len(embedding.z) > 1 and embedding.z.mean(0).norm() > CONSTANT_NORM:
            problems["constant-embeddings"] = f"every {modality} has the same embedding"
    if aligner.log_scale.requires_grad and aligner.log_scale.exp() >= 0.999 * aligner.max_scale:
        problems["scale-clamped"] = f"the logit scale is at its clamp of {aligner.max_scale:g}"
    problems |= _check_chance(epoch_losses, chance_levels)
    if epoch_losses.get("cross"):
        size = math.prod(x.mask.shape[1] for x in features.values())
        checked_pairs = max(2, min(MAX_PAIRS, MAX_WEIGHTS // size))
        a, b = (aligner.local_tokens(m, x[:checked_pairs]) for m, x in features.items())
        problems |= _check_attention(aligner, a, b, weights=size <= MAX_WEIGHTS)
    return problems


def check_domain_classifier(accuracies: Sequence[float]) -> dict[str, str]:
    """Checks the accuracies 0..1 of the domain classifier since the last check: kind -> sentence."""
    mean = sum(accuracies) / len(accuracies) if accuracies else 0.0
    if mean < ADVERSARY_ACCURACY:
        return {}
    return {"adversary-won": f"the domain classifier is right on {mean:.1%} of samples: domains stay apart"}


def _check_chance(epoch_losses: Mapping[str, Sequence[float]], chance_levels: Mapping[str, float]) -> dict[str, str]:
    problems = []
    for part, chance in chance_levels.items():
        values = epoch_losses.get(part, ())
        mean = sum(values) / len(values) if values else 0.0
        if mean > CHANCE_RATIO * chance:
            problems.append(f"the {part} loss is at {mean:.4f} nats; chance level is {chance:.4f}")
    return {"loss-at-chance": "; ".join(problems)} if problems else {}


def _check_attention(aligner: Aligner, a: LocalTokens, b: LocalTokens, *, weights: bool) -> dict[str, str]:
    """Checks scores and attention of true pairs.

    Args:
        weights: also check the attention weights.
    """
    rows = torch.arange(len(a.tokens), device=a.tokens.device)
    crossed = aligner.cross(a, b, torch.stack([rows, rows], 1), attention=weights)
    logit, attention = crossed.match_logit.float(), crossed.attention
    if not torch.isfinite(logit).all() or (attention is not None and not torch.isfinite(attention).all()):
        return {"attention-vanished": "the cross branch is not finite"}
    if len(logit) > 1 and logit.std() < 1e-5 * max(1.0, float(logit.abs().mean())):
        return {"attention-vanished": "the cross branch gives every pair the same score"}
    if attention is None:
        return {}
    attention = attention.mean(1)  # over heads
    query_mask, key_mask = b.mask, a.mask
    if aligner.config.fusion.direction == "a_to_b":  # tokens of a attend to those of b
        attention, query_mask, key_mask = attention.transpose(1, 2), a.mask, b.mask
    keys = key_mask.sum(1, keepdim=True).expand_as(query_mask)
    queries = query_mask & (keys > 1)
    entropy = -(attention * attention.clamp_min(1e-12).log()).sum(-1)[queries] / keys[queries].log()
    if len(entropy) and entropy.mean() > UNIFORM_ENTROPY:
        return {"attention-uniform": f"attention is spread evenly ({entropy.mean():.3f} of the maximum entropy)"}
    return {}
