"""A causal text decoder with cross-attention to the tokens of another modality (CoCa, arXiv:2205.01917)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ccaco_cli.core.config import DecoderConfig
from ccaco_cli.core.errors import ConfigError
from ccaco_cli.core.model.fusion import mlp, positions
from ccaco_cli.core.model.generation import Draft, GenerationOptions, NextWord, generate
from ccaco_cli.core.model.global_batch import GlobalDropout
from ccaco_cli.core.model.layout import LINE, Layout
from ccaco_cli.core.model.towers.tower import TextIds, Tower
from ccaco_cli.core.types import TensorRecord, Words

DECODER = ("decoder.",)
"""Beginnings of the names of the weights of the decoder."""
IGNORED = -100
"""Target of a position that the loss leaves out."""
KeysValues = tuple[Tensor, Tensor]
"""Keys and values, both [B, H, N, W / H]."""
BlockState = tuple[Tensor, Tensor, Tensor]
"""What a block keeps of the words so far: their keys and values, and the inputs [B, WINDOW - 1, W] of its convolution
at the last ones."""
WINDOW = 3
"""Words that a convolution joins."""


@dataclass(frozen=True, slots=True)
class CaptionLogits(TensorRecord):
    """Teacher-forced predictions of B captions.

    Attributes:
        logits: [B, L, U] float, the score of each of the U known words at each position.
        targets: [B, L] int64, number of the right word among the known ones; ``IGNORED`` = no word is there.
    """

    logits: Tensor
    targets: Tensor


class DecoderAttention(nn.Module):
    """Multi-head attention whose keys and values can be computed once and used again.

    Args:
        width: W of queries and of the output.
        heads: divide W.
        context_width: width of the tokens that are attended to.
    """

    def __init__(self, width: int, heads: int, context_width: int):
        super().__init__()
        self.heads = heads
        self.q, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.k, self.v = nn.Linear(context_width, width), nn.Linear(context_width, width)

    def keys_values(self, context: Tensor) -> KeysValues:
        """[B, N, context_width] -> keys and values."""
        return self._split(self.k(context)), self._split(self.v(context))

    def forward(self, x: Tensor, context: KeysValues, mask: Tensor | None = None, *, causal: bool = False) -> Tensor:
        """x [B, L, W], mask [B, N] True = real token -> [B, L, W]."""
        attention_mask = None if mask is None else mask[:, None, None]
        out = F.scaled_dot_product_attention(self._split(self.q(x)), *context, attention_mask, is_causal=causal)
        attn_out: Tensor = self.out(out.transpose(1, 2).flatten(2))
        return attn_out

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.heads, -1).transpose(1, 2)


class CausalConvolution(nn.Module):
    """Joins each word with the ``WINDOW - 1`` words before it (residual, pre-norm).

    Phrases such as "orange cat" are learned earlier than by attention alone, which must first learn where the last word
    stands.
    """

    def __init__(self, width: int):
        super().__init__()
        self.norm, self.convolution = nn.LayerNorm(width), nn.Conv1d(width, width, WINDOW)

    def forward(self, x: Tensor, before: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x [B, L, W], ``before`` [B, WINDOW - 1, W] of the words before x (None = there are none) -> x and before."""
        normed = self.norm(x)
        padded = F.pad(normed, (0, 0, WINDOW - 1, 0)) if before is None else torch.cat([before, normed], 1)
        joined = F.gelu(self.convolution(padded.transpose(1, 2)).transpose(1, 2))
        return x + joined, padded[:, 1 - WINDOW :]


class DecoderBlock(nn.Module):
    """Convolution over the last words, attention to all words so far and to the memory, and an MLP (pre-norm,
    arXiv:2002.04745)."""

    def __init__(self, width: int, memory_width: int, config: DecoderConfig):
        super().__init__()
        self.phrases = CausalConvolution(width)
        self.norm_self, self.norm_cross, self.norm_mlp = (nn.LayerNorm(width) for _ in range(3))
        self.self_attention = DecoderAttention(width, config.heads, width)
        self.cross_attention = DecoderAttention(width, config.heads, memory_width)
        self.mlp = mlp(width, config.dropout, dropout_type=GlobalDropout)
        self.dropout = GlobalDropout(config.dropout)

    def forward(
        self, x: Tensor, memory: KeysValues, mask: Tensor, past: BlockState | None = None
    ) -> tuple[Tensor, BlockState]:
        """Decodes all words of a text, or the next one.

        Args:
            x: [B, L, W]; L = 1 if ``past`` is not None.
            memory, mask: of the samples that are described; [B, N] bool, True = real token.
            past: of the words before x.
        Returns:
            [B, L, W], and the state of all words up to the last one of x.
        """
        x, before = self.phrases(x, None if past is None else past[2])
        normed = self.norm_self(x)
        words = self.self_attention.keys_values(normed)
        if past is not None:
            words = torch.cat([past[0], words[0]], 2), torch.cat([past[1], words[1]], 2)
        x = x + self.dropout(self.self_attention(normed, words, causal=past is None))
        x = x + self.dropout(self.cross_attention(self.norm_cross(x), memory, mask))
        return x + self.dropout(self.mlp(self.norm_mlp(x))), (*words, before)

    def decode(self, x: Tensor, memory: Tensor, mask: Tensor, index: Tensor | None) -> Tensor:
        """All words at once, where row i of x describes sample ``index[i]`` of the memory (None = sample i)."""
        keys, values = self.cross_attention.keys_values(memory)
        if index is not None:
            keys, values, mask = keys[index], values[index], mask[index]
        decoded: Tensor = self(x, (keys, values), mask)[0]
        return decoded


class TextDecoder(nn.Module):
    """Writes texts about samples of another modality, word by word.

    "Words" are the tokens of the text tower's tokenizer. Word vectors are used on both sides: a word is predicted by
    the dot product of a state with its vector. Only words of the training captions are known: the others have random
    vectors, so they are neither scored nor written, and the softmax over a hundred words costs what it should. A text
    starts and ends with the ids that the tokenizer puts there; where it puts none, the decoder has two of its own.

    Args:
        ids: of the text tower's tokenizer.
        memory_width: D, width of the tokens that it attends to.
        config: its size.
        layout: of these tokens: on a grid, the decoder knows what is left of what.
    Attributes:
        known: [V] bool, the words of the training captions.
    Raises:
        ConfigError: the heads do not divide the width.
    """

    known: Tensor
    words: Tensor
    number: Tensor

    def __init__(self, ids: TextIds, memory_width: int, config: DecoderConfig, layout: Layout = LINE):
        super().__init__()
        width, self.layout = config.width or memory_width, layout
        if width % config.heads:
            raise ConfigError(
                "the heads of the text decoder must divide its width",
                where=f"model.decoder.heads = {config.heads}",
                expected=f"a divisor of {width}",
            )
        self.max_words, self.checkpointing = config.max_words, False
        self.added = int(ids.start is not None), int(ids.end is not None)
        self.start = ids.count if ids.start is None else ids.start
        self.end = ids.count + 1 if ids.end is None else ids.end
        self.embedding = nn.Embedding(ids.count + 2, width)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        self.positions = nn.Parameter(torch.randn(config.max_words + 1, width) * 0.1)
        self.dropout, self.word_dropout = GlobalDropout(config.dropout), GlobalDropout(config.word_dropout)
        self.norm_memory = nn.LayerNorm(memory_width)
        self.blocks = nn.ModuleList(DecoderBlock(width, memory_width, config) for _ in range(config.layers))
        # without a map in between, each state would at first predict its own word again
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))
        self.register_buffer("known", torch.zeros(ids.count + 2, dtype=torch.bool))
        self.register_buffer("words", torch.empty(0, dtype=torch.long), persistent=False)
        self.register_buffer("number", torch.empty(0, dtype=torch.long), persistent=False)
        self.add_words([])
        self.register_load_state_dict_post_hook(lambda *_: self._count_words())  # type: ignore[no-untyped-call]

    def add_words(self, ids: Any) -> None:
        """Makes words known, besides start and end.

        Args:
            ids: token ids, a list or an array.
        """
        self.known[torch.as_tensor([self.start, self.end, *ids], device=self.known.device)] = True
        self._count_words()

    def _count_words(self) -> None:
        if self.known.is_meta:  # only the size of the model is of interest
            return
        self.words = self.known.nonzero()[:, 0]
        self.number = torch.where(self.known, self.known.cumsum(0) - 1, -1)

    @property
    def vocabulary_size(self) -> int:
        """U, the number of known words, with start and end."""
        return len(self.words)

    def prepare_memory(self, tokens: Tensor) -> Tensor:
        """Projected tokens as the decoder attends to them, with their positions on the grid: [R, N, D] -> [R, N, D]."""
        memory: Tensor = self.norm_memory(tokens)
        segment = self.layout.segment(tokens.shape[1])
        if segment.grid is None:  # on a line the tower has added positions, or there is no order
            return memory
        width = tokens.shape[2]
        grid = F.pad(positions(segment, width // 2 * 2, tokens.device), (0, width % 2))
        return memory + grid.to(memory.dtype)

    def forward(self, memory: Tensor, mask: Tensor, words: Words, index: Tensor | None = None) -> CaptionLogits:
        """Predicts each word of a text from the words before it and from the memory.

        Args:
            memory, mask: [R, N, D] and [R, N] bool, True = real token.
            words: B texts.
            index: [B] int64, the sample of the memory that each text describes; None = text i describes sample i.
        Returns:
            Predictions of all words and of the end of each text; the end of a text that is cut is left out.
        """
        before, targets = self._shifted(words)
        vectors = self.embedding.weight[self.words]
        embedded = self._embed(before, vectors) * self._word_mask(before, words)
        x = self.dropout(embedded + self.positions[: before.shape[1]])
        for block in self.blocks:
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block.decode, x, memory, mask, index, use_reentrant=False)  # type: ignore[arg-type]
            else:
                x = block.decode(x, memory, mask, index)  # type: ignore[operator]
        return CaptionLogits(F.linear(self.head(x), vectors), targets)

    def _shifted(self, words: Words) -> tuple[Tensor, Tensor]:
        """Texts as numbers of known words: (inputs [B, L], which begin with the start; targets [B, L])."""
        first, last = self.added
        length = words.mask.sum(1, keepdim=True) - first - last
        content = self.number[words.ids[:, first : words.ids.shape[1] - last][:, : self.max_words]]
        place = torch.arange(content.shape[1] + 1, device=content.device)
        start, end = self.number[self.start], self.number[self.end]
        before = torch.cat([start.expand(len(content), 1), content], 1)
        after = F.pad(content, (0, 1), value=-1)
        targets = torch.where(place < length, after, torch.where(place == length, end, -1))
        if words.prefix is not None:
            targets = torch.where(place < words.prefix[:, None], -1, targets)
        return before, torch.where(targets < 0, IGNORED, targets)

    def _word_mask(self, before: Tensor, words: Words) -> Tensor:
        """Leaves out whole words of the input in training, so that a word is read from the sample and not guessed from
        the words before it (word dropout, arXiv:1511.06349): factors [B, L, 1]. Prefixes stay whole."""
        mask: Tensor = self.word_dropout(self.positions.new_ones(*before.shape, 1))
        if words.prefix is None:
            return mask
        place = torch.arange(before.shape[1], device=before.device)
        return torch.where((place <= words.prefix[:, None]).unsqueeze(-1), 1.0, mask)

    def _embed(self, numbers: Tensor, vectors: Tensor) -> Tensor:
        """Vectors of words [B, L] (-1 = not known: zero) by their numbers: [B, L, W], each value of variance 1."""
        known = (numbers >= 0).unsqueeze(-1).to(vectors.dtype)
        embedded: Tensor = F.embedding(numbers.clamp_min(0), vectors) * vectors.shape[1] ** 0.5 * known
        return embedded

    def step(self, numbers: Tensor, place: Any, memory: Sequence[KeysValues], mask: Tensor, past: Any) -> Any:
        """Log-probabilities of the next word.

        Args:
            numbers: [B] the last word of each text.
            place: its position, a number or [B] int64.
            memory: keys and values of each block.
            past: what the last step returned; None = this is the first one.
        Returns:
            (log-probabilities [B, U], states of the blocks for the next step).
        """
        vectors = self.embedding.weight[self.words]
        x = self._embed(numbers[:, None], vectors) + self.positions[place].view(-1, 1, vectors.shape[1])
        state = []
        for block, keys_values, before in zip(self.blocks, memory, past or [None] * len(self.blocks), strict=True):
            x, block_state = block(x, keys_values, mask, before)
            state.append(block_state)
        logits = F.linear(self.head(x[:, -1]), vectors).float()
        is_start = torch.arange(logits.shape[1], device=logits.device) == self.number[self.start]
        return logits.masked_fill(is_start, -math.inf).log_softmax(-1), state

    @torch.no_grad()
    def write(
        self,
        memory: Tensor,
        mask: Tensor,
        prefix_ids: Sequence[Sequence[int]] | None = None,
        options: GenerationOptions = GenerationOptions(),
    ) -> list[list[Draft]]:
        """Writes texts about B samples, in evaluation mode (``generate``).

        Args:
            memory, mask: [B, N, D] and [B, N] bool, True = real token (``Aligner.memory``).
        """
        return generate(_TorchNextWord(self, memory, mask), prefix_ids, options)


class _TorchNextWord(NextWord):
    """A decoder with the samples that it describes."""

    def __init__(self, decoder: TextDecoder, memory: Tensor, mask: Tensor):
        self.decoder, self.count, self.max_words = decoder, len(memory), decoder.max_words
        self.words = decoder.words.cpu().numpy()
        self.start, self.end = (int(decoder.number[id]) for id in (decoder.start, decoder.end))
        self.mask = mask
        self.memory = [block.cross_attention.keys_values(memory) for block in decoder.blocks]  # type: ignore[operator, union-attr]
        self.past: list[BlockState] | None = None

    def step(self, numbers: Any, place: int, rows: Any) -> Any:
        device = self.mask.device
        if rows is None:
            width = len(numbers) // self.count
            self.mask = self.mask.repeat_interleave(width, 0)
            self.memory = [tuple(t.repeat_interleave(width, 0) for t in part) for part in self.memory]  # type: ignore[misc]
        elif self.past is not None:
            order = torch.from_numpy(rows).to(device)
            self.past = [tuple(t[order] for t in state) for state in self.past]  # type: ignore[misc]
        last = torch.from_numpy(numbers).to(device)
        log_probs, self.past = self.decoder.step(last, place, self.memory, self.mask, self.past)
        return log_probs.cpu().numpy()


def build_decoder(
    built: Mapping[str, Tower], memory_width: int, config: DecoderConfig, layout: Layout = LINE
) -> TextDecoder:
    """Builds the decoder of a model with these towers; ``layout`` is that of the side that is described.

    Raises:
        ConfigError: no side is text, or its tower has no tokenizer.
    """
    tokenizer = built["text"].tokenizer if "text" in built else None
    if tokenizer is None:
        raise ConfigError(
            "captions cannot be learned without text",
            where=f"loss.gamma above 0, {' and '.join(built)}",
            expected="a data set with captions, or --gamma 0",
        )
    return TextDecoder(tokenizer.text_ids(), memory_width, config, layout)
