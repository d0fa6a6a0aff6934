"""The score of a pair, ``scale * cosine + weight * match``, for search, evaluation, inspection and explanation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

COSINE, TWO_STAGE, CROSS, CLASSES = "cosine", "two-stage", "cross", "classes"


def score_kind(alpha: float, beta: float, weight: float) -> str:
    """Which score ranks the answers of a trained model.

    Args:
        alpha, beta: weights of the contrastive and of the cross loss in training.
        weight: of the match logit, chosen on the validation split.
    Returns:
        ``two-stage`` or ``cosine`` with a contrastive half; ``cross`` with a cross branch alone; ``classes`` with
        neither.
    """
    if alpha > 0:
        return TWO_STAGE if weight > 0 else COSINE
    return CROSS if beta > 0 else CLASSES


@dataclass(frozen=True)
class Scorer:
    """Scores pairs by their cosine and their match logit; for floats, numpy arrays and tensors alike.

    Attributes:
        kind: ``cosine``, ``two-stage`` (both) or ``cross`` (the match logit alone).
        scale: multiplies cosines (1 / temperature); 0 = cosines do not count.
        weight: multiplies match logits; 0 = they do not count and are not needed.
    """

    kind: str
    scale: float = 1.0
    weight: float = 0.0

    @classmethod
    def of(cls, kind: str, scale: float = 1.0, weight: float = 0.0) -> Scorer:
        """The scorer of a kind; ``scale`` and ``weight`` are those of a two-stage score, which is the cosine at weight
        0."""
        if kind == CROSS:
            return cls(CROSS, 0.0, 1.0)
        return cls(TWO_STAGE, scale, weight) if kind == TWO_STAGE and weight else cls(COSINE)

    def __call__(self, cosine: Any, match: Any = None) -> Any:
        """Scores of pairs, higher = better, from arrays of one shape.

        ``match`` is not read at weight 0, so that a cross branch without weight changes no score, even when it is NaN.
        """
        score = self.scale * cosine
        return score + self.weight * match if self.weight else score
