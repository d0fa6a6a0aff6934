"""A bigram model of captions: how likely a sentence is by its words alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise

from ccaco_cli.core.words import words

_EDGE = "\n"
"""Stands before the first and after the last word."""


class BigramModel:
    """Word bigrams with backing off to single words (interpolation, Jelinek & Mercer 1980).

    Args:
        captions: that the words are counted in.
        bigram_weight: weight of the bigrams, 0..1; the rest is shared by single words with one count added to each.
    """

    def __init__(self, captions: Iterable[str], bigram_weight: float = 0.9) -> None:
        self.bigram_weight = bigram_weight
        self.words: Counter[str] = Counter()
        self.pairs: Counter[tuple[str, str]] = Counter()
        for caption in captions:
            sequence = _sequence(caption)
            self.words.update(sequence[1:])
            self.pairs.update(pairwise(sequence))
        self.starts = Counter[str]()
        for (word, _), count in self.pairs.items():
            self.starts[word] += count

    def log_likelihood(self, caption: str) -> float:
        """Sum over the words of a caption, and its end, of the log of their probability, in nats."""
        sequence = _sequence(caption)
        size = self.words.total() + len(self.words) + 1
        total = 0.0
        for pair in pairwise(sequence):
            single = (self.words[pair[1]] + 1) / size
            follows = self.pairs[pair] / self.starts[pair[0]] if self.starts[pair[0]] else 0.0
            total += math.log(self.bigram_weight * follows + (1 - self.bigram_weight) * single)
        return total


def _sequence(caption: str) -> list[str]:
    return [_EDGE, *(word.form for word in words(caption)), _EDGE]
