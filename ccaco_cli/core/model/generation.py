"""Writes texts with a decoder: greedy, beam search, or sampling. It needs no torch: a decoder is what scores words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ccaco_cli.core.errors import ConfigError

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class GenerationOptions:
    """How texts are written.

    Attributes:
        max_words: words of a text at most, without its prefix; 0 = as many as the decoder has positions for.
        beam: texts that are followed at a time; 1 = greedy.
        sample: draw each word at random in place of the most probable ones.
        temperature: divides the logits before sampling.
        seed: of sampling. Equal seeds draw the same numbers for every sample, so that a text does not depend on the
            other samples of its batch.
        drafts: texts per sample.
    """

    max_words: int = 0
    beam: int = 1
    sample: bool = False
    temperature: float = 1.0
    seed: int = 0
    drafts: int = 1


ANSWERS = GenerationOptions(max_words=16)
"""How answers are written: greedily, in 16 tokens at most."""


@dataclass(frozen=True)
class Draft:
    """A text that was written.

    Attributes:
        ids: its token ids, without prefix, start and end.
        log_prob: mean log-probability of its words and its end, in nats per word.
        total_log_prob: log-probability of the text, in nats.
    """

    ids: tuple[int, ...]
    log_prob: float
    total_log_prob: float


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a question about a sample.

    Attributes:
        text: the answer; "" where there is a problem.
        confidence: probability of the whole answer under the decoder, 0..1.
        problem: why there is no answer; "" = there is one.
    """

    text: str = ""
    confidence: float | None = None
    problem: str = ""


class NextWord(Protocol):
    """Scores the next word of texts about B samples, of any kind of decoder. A word has a number among the known ones.

    Attributes:
        count: B.
        words: [U] int64, token ids of the known words by their number, ascending.
        start, end: numbers of the words that begin and end a text.
        max_words: positions of a text.
    """

    count: int
    words: Array
    start: int
    end: int
    max_words: int

    def step(self, numbers: Array, place: int, rows: Array | None) -> Array:
        """Log-probabilities [B * K, U] of the word after position ``place`` of K texts of each sample.

        Args:
            numbers: [B * K] int64, the word at this position.
            rows: [B * K] int64, the row of the last step whose text each one continues; None = this is the first step.
        """
        ...


def generate(
    decoder: NextWord,
    prefix_ids: Sequence[Sequence[int]] | None = None,
    options: GenerationOptions = GenerationOptions(),
) -> list[list[Draft]]:
    """Writes texts about B samples.

    Beam search keeps the texts of largest total log-probability, and orders the finished ones by their mean per word,
    so that short texts are not preferred.

    Args:
        prefix_ids: token ids that each text begins with, such as a question; without start and end. None = nothing.
    Returns:
        For each sample its drafts, the best first; fewer than ``options.drafts`` where there are no more texts.
    Raises:
        ConfigError: a prefix leaves no position for a word.
    """
    prefixes = [list(prefix) for prefix in prefix_ids] if prefix_ids is not None else [[]] * decoder.count
    longest = max(map(len, prefixes), default=0)
    if longest >= decoder.max_words:
        raise ConfigError(
            "a text to continue is too long for the decoder",
            where=f"{longest} tokens",
            expected=f"at most {decoder.max_words - 1} (model.decoder.max_words = {decoder.max_words})",
        )
    if not decoder.count:
        return []
    beams = _Beams(decoder, prefixes, options)
    for place in range(min(decoder.max_words, longest + beams.limit)):
        beams.step(place)
        if beams.done.all():
            break
    return [drafts[: options.drafts] for drafts in beams.drafts()]


class _Beams:
    """Texts of B samples that are written at the same time, K of each.

    Attributes:
        numbers: [B, K, t] the words so far, as numbers of known words.
        log_prob: [B, K] their total log-probability; -inf = no text.
        done: [B, K] whether a text has its end.
    """

    def __init__(self, decoder: NextWord, prefixes: list[list[int]], options: GenerationOptions):
        self.decoder, self.options = decoder, options
        self.width = options.drafts if options.sample else max(options.beam, options.drafts)
        self.limit = options.max_words or decoder.max_words
        self.length = np.array([len(prefix) for prefix in prefixes])
        self.prefix = np.full((len(prefixes), self.length.max()), decoder.end)
        for row, prefix in enumerate(prefixes):
            self.prefix[row, : len(prefix)] = _numbers(decoder.words, prefix)
        shape = len(prefixes), self.width
        self.numbers = np.empty((*shape, 0), np.int64)
        self.done, self.log_prob = np.zeros(shape, bool), np.zeros(shape)
        if not options.sample:  # the texts of a sample begin with different words: those of the first beam
            self.log_prob[:, 1:] = -math.inf
        self.rows: Array | None = None
        # each draft has its own numbers, so that more drafts of a seed are the same ones and further ones
        self.noise = [np.random.default_rng((options.seed, draft)) for draft in range(self.width)]

    def step(self, place: int) -> None:
        """Adds the word at position ``place`` to every text that is not done."""
        last = self.numbers[..., -1] if place else np.full(self.done.shape, self.decoder.start)
        log_probs = self.decoder.step(last.ravel(), place, self.rows).reshape(*self.done.shape, -1)
        parent, number, total = self._sample(log_probs) if self.options.sample else self._beam(log_probs)
        same = np.broadcast_to(np.arange(self.width), parent.shape)
        forced, cut = (place < self.length)[:, None], (place - self.length >= self.limit)[:, None]
        parent, total = np.where(forced | cut, same, parent), np.where(forced | cut, self.log_prob, total)
        if place < self.prefix.shape[1]:
            number = np.where(forced, self.prefix[:, place, None], number)
        done = np.take_along_axis(self.done, parent, 1)
        number = np.where(done | cut, self.decoder.end, number)
        so_far = np.take_along_axis(self.numbers, parent[..., None], 1)
        self.numbers = np.concatenate([so_far, number[..., None]], 2)
        self.done = ~forced & (done | (number == self.decoder.end))
        self.log_prob = total
        self.rows = (parent + np.arange(len(parent))[:, None] * self.width).ravel()

    def _beam(self, log_probs: Array) -> tuple[Array, Array, Array]:
        """The K best continuations of all texts of a sample: (text continued, its next word, total), each [B, K]."""
        finished = np.full(log_probs.shape[2], -math.inf)
        finished[self.decoder.end] = 0.0
        log_probs = np.where(self.done[..., None], finished, log_probs)
        totals = (self.log_prob[..., None] + log_probs).reshape(len(log_probs), -1)
        if self.width == 1:
            best = totals.argmax(1)[:, None]
        else:
            best = np.sort(np.argpartition(-totals, self.width - 1, axis=1)[:, : self.width], axis=1)
            order = np.argsort(-np.take_along_axis(totals, best, 1), axis=1, kind="stable")
            best = np.take_along_axis(best, order, 1)
        return *np.divmod(best, log_probs.shape[2]), np.take_along_axis(totals, best, 1)

    def _sample(self, log_probs: Array) -> tuple[Array, Array, Array]:
        """One word of each text, drawn by the largest of its logit plus Gumbel noise."""
        uniform = np.stack([noise.random(log_probs.shape[2]) for noise in self.noise]).clip(1e-300)
        number = (log_probs / self.options.temperature - np.log(-np.log(uniform))).argmax(-1)
        drawn = np.where(self.done, 0.0, np.take_along_axis(log_probs, number[..., None], 2)[..., 0])
        return np.broadcast_to(np.arange(self.width), number.shape), number, self.log_prob + drawn

    def drafts(self) -> list[list[Draft]]:
        """The different texts of each sample, ordered by their mean log-probability per word."""
        ids = self.decoder.words[self.numbers].tolist()
        end = int(self.decoder.words[self.decoder.end])
        every: list[list[Draft]] = []
        for texts, totals, skipped in zip(ids, self.log_prob.tolist(), self.length.tolist(), strict=True):
            drafts = {}
            for text, total in zip(texts, totals, strict=True):
                words = text[skipped:]
                count = words.index(end) if end in words else len(words)
                content = tuple(words[:count])
                if total > -math.inf:
                    ended = count < min(len(words), self.limit)
                    drafts[content] = Draft(content, total / max(1, count + ended), total)
            every.append(sorted(drafts.values(), key=lambda draft: -draft.log_prob))
        return every


def _numbers(words: Array, ids: Sequence[int]) -> Array:
    """Numbers of token ids among the known words; -1 = not known."""
    places = np.searchsorted(words, ids).clip(max=len(words) - 1)
    return np.where(words[places] == ids, places, -1)
