"""Metrics of captions, by the reference implementation of the field (``pycocoevalcap``), without Java."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ccaco_cli.core.errors import ConfigError
from ccaco_cli.core.words import words

TOKENISATION = "lower case, words of letters, digits and apostrophes, in every script; punctuation is left out"
"""The words that are compared. Published figures use the PTB tokenizer, which needs Java and seldom differs."""
MAX_WORDS = 4
"""Longest n-gram of BLEU."""


def tokenised(caption: str) -> str:
    """The words of a caption, separated by spaces (``TOKENISATION``)."""
    lower = caption.lower().replace("_", " ")
    if lower.isascii():
        return " ".join(re.findall(r"[^\W_]+(?:'[^\W_]+)*", lower))
    return " ".join(word.form for word in words(lower))


def caption_metrics(captions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Scores captions against references.

    Args:
        captions: one for each sample.
        references: the captions of each sample that people, or the source, gave; at least one.
    Returns:
        BLEU-4 (of the corpus, 0..1), ROUGE-L (mean, 0..1) and CIDEr-D (mean, 0..10; arXiv:1411.5726), whose document
        frequencies are those of these references.
    Raises:
        ConfigError: the extra ``captions`` is not installed.
    """
    try:
        from pycocoevalcap.bleu.bleu import Bleu
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.rouge.rouge import Rouge
    except ImportError:
        raise ConfigError(
            "metrics of captions need a library",
            where="pycocoevalcap",
            expected="the extra captions",
            next="pip install 'ccaco[captions]'",
        ) from None
    written = {number: [tokenised(caption)] for number, caption in enumerate(captions)}
    reference_words = {number: [tokenised(text) for text in texts] for number, texts in enumerate(references)}
    bleu, _ = Bleu(MAX_WORDS).compute_score(reference_words, written, verbose=0)
    rouge, _ = Rouge().compute_score(reference_words, written)
    cider, _ = Cider().compute_score(reference_words, written)
    return {"BLEU-4": float(bleu[-1]), "ROUGE-L": float(rouge), "CIDEr-D": float(cider)}
