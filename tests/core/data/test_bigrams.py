from __future__ import annotations

import math

import pytest

from ccaco_cli.core.data.bigrams import BigramModel


def test_by_hand() -> None:
    """Five words of four kinds in two captions: a dog | a cat, each with its end."""
    model = BigramModel(["A dog", "a cat!"], bigram_weight=0.5)
    size = 6 + 4 + 1  # a dog END a cat END; a, dog, cat, END; and the unknown word
    probability = (0.5 * 1 + 0.5 * 3 / size) * (0.5 * 1 / 2 + 0.5 * 2 / size) * (0.5 * 1 + 0.5 * 3 / size)
    assert model.log_likelihood("a dog") == pytest.approx(math.log(probability))


def test_order_counts_and_unknown_words_are_possible() -> None:
    model = BigramModel(["a man pushes a cart", "a man walks"])
    assert model.log_likelihood("a man pushes") > model.log_likelihood("pushes a man")
    assert model.log_likelihood("xylophone") > -math.inf
    nothing = BigramModel([])
    assert nothing.log_likelihood("a b") == nothing.log_likelihood("b a")
