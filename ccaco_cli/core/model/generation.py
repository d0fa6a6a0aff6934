"""Writes texts with a decoder: greedy, beam search, or sampling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ccaco_cli.core.errors import ConfigError
from ccaco_cli.core.model.decoder import TextDecoder


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


@torch.no_grad()
def generate(
    decoder: TextDecoder,
    memory: Tensor,
    mask: Tensor,
    prefix_ids: Sequence[Sequence[int]] | None = None,
    options: GenerationOptions = GenerationOptions(),
) -> list[list[Draft]]:
    """Writes texts about B samples.

    Beam search keeps the texts of largest total log-probability, and orders the finished ones by their mean per word,
    so that short texts are not preferred.

    Args:
        decoder: in evaluation mode.
        memory, mask: [B, N, D] and [B, N] bool, True = real token (``Aligner.memory``).
        prefix_ids: token ids that each text begins with, such as a question; without start and end.
    Returns:
        For each sample its drafts, the best first; fewer than ``options.drafts`` where there are no more texts.
    Raises:
        ConfigError: a prefix leaves no position for a word.
    """
    prefixes = [list(prefix) for prefix in prefix_ids] if prefix_ids is not None else [[]] * len(memory)
    longest = max(map(len, prefixes), default=0)
    if longest >= decoder.max_words:
        raise ConfigError(
            "a text to continue is too long for the decoder",
            where=f"{longest} tokens",
            expected=f"at most {decoder.max_words - 1} (model.decoder.max_words = {decoder.max_words})",
        )
    if not len(memory):
        return []
    width = options.drafts if options.sample else max(options.beam, options.drafts)
    beams = _Beams(decoder, memory, mask, prefixes, width, options)
    limit = min(decoder.max_words, longest + beams.limit)
    for place in range(limit):
        beams.step(place)
        if bool(beams.done.all()):
            break
    return [drafts[: options.drafts] for drafts in beams.drafts()]


class _Beams:
    """Texts of B samples that are written at the same time, K of each.

    Attributes:
        numbers: [B, K, t] the words so far, as numbers of known words.
        log_prob: [B, K] their total log-probability; -inf = no text.
        done: [B, K] whether a text has its end.
    """

    def __init__(
        self,
        decoder: TextDecoder,
        memory: Tensor,
        mask: Tensor,
        prefixes: list[list[int]],
        width: int,
        options: GenerationOptions,
    ):
        self.decoder, self.options, self.width = decoder, options, width
        self.limit = options.max_words or decoder.max_words
        count, device = len(memory), memory.device
        self.memory = [
            tuple(t.repeat_interleave(width, 0) for t in block.cross_attention.keys_values(memory))  # type: ignore[operator, union-attr]
            for block in decoder.blocks
        ]
        self.mask = mask.repeat_interleave(width, 0)
        self.length = torch.tensor([len(prefix) for prefix in prefixes], device=device)
        padded = [prefix + [decoder.end] * (int(self.length.max()) - len(prefix)) for prefix in prefixes]
        self.prefix = decoder.number[torch.tensor(padded, dtype=torch.long, device=device)]
        self.start, self.end = int(decoder.number[decoder.start]), int(decoder.number[decoder.end])
        self.numbers = torch.empty(count, width, 0, dtype=torch.long, device=device)
        self.done = torch.zeros(count, width, dtype=torch.bool, device=device)
        self.log_prob = torch.zeros(count, width, device=device)
        if not options.sample:  # the texts of a sample begin with different words: those of the first beam
            self.log_prob[:, 1:] = -math.inf
        self.past: list[Any] | None = None
        self.noise = torch.Generator().manual_seed(options.seed)

    def step(self, place: int) -> None:
        """Adds the word at position ``place`` to every text that is not done."""
        count, first = len(self.numbers), torch.full_like(self.done, self.start, dtype=torch.long)
        last = self.numbers[..., -1] if place else first
        log_probs, past = self.decoder.step(last.flatten(), place, self.memory, self.mask, self.past)
        log_probs = log_probs.unflatten(0, (count, self.width))
        parent, number, total = self._sample(log_probs) if self.options.sample else self._beam(log_probs)
        same = torch.arange(self.width, device=parent.device).expand_as(parent)
        forced, cut = ((place < self.length)[:, None], (place - self.length >= self.limit)[:, None])
        parent, total = torch.where(forced | cut, same, parent), torch.where(forced | cut, self.log_prob, total)
        if place < self.prefix.shape[1]:
            number = torch.where(forced, self.prefix[:, place, None], number)
        done = self.done.gather(1, parent)
        number = torch.where(done | cut, self.end, number)
        self.numbers = torch.cat(
            [self.numbers.gather(1, parent[..., None].expand_as(self.numbers)), number[..., None]], 2
        )
        self.done = ~forced & (done | (number == self.end))
        self.log_prob = total
        rows = (parent + torch.arange(count, device=parent.device)[:, None] * self.width).flatten()
        self.past = [tuple(t[rows] for t in block_state) for block_state in past]

    def _beam(self, log_probs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The K best continuations of all texts of a sample: (text continued, its next word, total), each [B, K]."""
        finished = torch.full_like(log_probs[:1, 0], -math.inf)
        finished[:, self.end] = 0.0
        log_probs = torch.where(self.done[..., None], finished, log_probs)
        totals = (self.log_prob[..., None] + log_probs).flatten(1)
        total, best = totals.topk(min(self.width, totals.shape[1]), 1)
        return best // log_probs.shape[2], best % log_probs.shape[2], total

    def _sample(self, log_probs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One word of each text, drawn by the largest of its logit plus Gumbel noise."""
        uniform = torch.rand(log_probs.shape[1:], generator=self.noise, dtype=torch.float64).clamp_min(1e-300)
        gumbel = -(-uniform.log()).log().to(log_probs)
        number = (log_probs / self.options.temperature + gumbel).argmax(-1)
        drawn = log_probs.gather(2, number[..., None])[..., 0].masked_fill(self.done, 0.0)
        return torch.arange(self.width, device=number.device).expand_as(number), number, self.log_prob + drawn

    def drafts(self) -> list[list[Draft]]:
        """The different texts of each sample, ordered by their mean log-probability per word."""
        ids = self.decoder.words[self.numbers].tolist()
        every: list[list[Draft]] = []
        for texts, totals, skipped in zip(ids, self.log_prob.tolist(), self.length.tolist(), strict=True):
            drafts = {}
            for text, total in zip(texts, totals, strict=True):
                words = text[skipped:]
                count = words.index(self.decoder.end) if self.decoder.end in words else len(words)
                content = tuple(words[:count])
                if total > -math.inf:
                    ended = count < min(len(words), self.limit)
                    drafts[content] = Draft(content, total / max(1, count + ended), total)
            every.append(sorted(drafts.values(), key=lambda draft: -draft.log_prob))
        return every
