"""A tower: the encoder of one modality, which returns tokens, their mask and a pooled vector."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from torch import Tensor, nn

from ccaco_cli.core.errors import TowerError
from ccaco_cli.core.model.towers.pooling import Pooling

PositionRule = Callable[[Tensor, int], Tensor]
"""(position table [n, W], count) -> table [count, W]; an entry of ``positions.RULES``."""


@dataclass(frozen=True)
class TowerSpec:
    """The parts of a SPEC, ``family:name@weights``.

    Attributes:
        family: key of the table of tower families of a modality.
        name: model within the family; "" = the family's only or default model.
        weights: a pretrained tag, a file, ``none`` (random), or "" for the family's default.
    """

    family: str
    name: str
    weights: str

    @classmethod
    def parse(cls, text: str) -> TowerSpec:
        """Splits a SPEC. Raises TowerError: it has no family."""
        head, _, weights = text.partition("@")
        family, _, name = head.partition(":")
        if not family:
            raise TowerError("empty tower SPEC", where=repr(text), expected="tiny or family:name[@weights]")
        return cls(family, name, weights)

    def __str__(self) -> str:
        return self.family + (f":{self.name}" if self.name else "") + (f"@{self.weights}" if self.weights else "")


@dataclass(frozen=True)
class TextIds:
    """The token ids of a tokenizer, for a decoder that writes texts.

    Attributes:
        count: ids are 0 .. count - 1.
        start, end: the ids that the tokenizer puts before and after each text; None = it adds none.
    """

    count: int
    start: int | None
    end: int | None


@dataclass(frozen=True)
class TokenSpans:
    """The characters of each token of a text.

    Attributes:
        text: as it was cut into tokens, for example in lower case.
        spans: (position of the token, first character, character after the last); a character that was cut into
            several tokens belongs to each. Empty where the tokenizer cannot tell.
    """

    text: str
    spans: list[tuple[int, int, int]]


class TextTokenizer(Protocol):
    """The preprocessing of a text tower.

    Attributes:
        context_length: the most tokens of a text; longer texts are cut.
    """

    @property
    def context_length(self) -> int: ...

    def __call__(self, texts: list[str]) -> dict[str, Tensor]:
        """Tokenizes n texts.

        Returns:
            {"ids": [n, L] int64, "mask": [n, L] bool, True = real token, "cut": [n] bool, True = the text was longer},
            padded to the longest text of the list.
        """
        ...

    def token_spans(self, text: str) -> TokenSpans:
        """Returns the characters of each token, without special tokens."""
        ...

    def text_ids(self) -> TextIds:
        """Returns the number of ids, and those that it puts before and after each text."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of token ids without special tokens."""
        ...

    def portable(self) -> tuple[str, dict[str, Any]] | None:
        """Returns (JSON for ``tokenizers.Tokenizer.from_str``, settings of ``query.json``), so that queries need no
        other library; None where the tokenizer cannot be converted."""
        ...

    def with_context_length(self, count: int) -> Self:
        """Returns the tokenizer with another context length."""
        ...


@dataclass(frozen=True)
class JointSpace:
    """The space in which a pretrained dual encoder compares both modalities.

    Attributes:
        size: E, numbers of one embedding.
        logit_scale: multiplies cosines.
        logit_bias: is added to scaled cosines (SigLIP, arXiv:2303.15343); None = the model has none.
    """

    size: int
    logit_scale: float
    logit_bias: float | None = None


@dataclass(frozen=True)
class Tower:
    """One encoder and its declared capabilities: a capability that is None is one that the tower lacks.

    Attributes:
        spec: the SPEC that it was built from.
        modality: name of the modality that it encodes.
        module: dict of input tensors -> ``Features`` (tokens [B, N, W], mask [B, N], pooled [B, W]); it computes in the
            dtype of its parameters, so that it can be converted to bf16.
        preprocess: one decoded sample -> what the loader stacks. image: PIL image -> uint8 [3, H, W]; text:
            ``TextTokenizer``;
            audio, video: ``types.Recording`` -> [n, ...], time first, n grows with the clip.
            It can be pickled, and its repr names every setting.
        width: W.
        tokens: the most tokens of a sample (context length, or grid height x width plus special tokens).
        grid: (height, width) of the patch grid; the last height * width tokens are the patches, row by row; None = no
            grid.
        pretrained: True when weights were loaded.
        fingerprint: sha256 of architecture, weights and preprocessing; equal fingerprints give equal outputs.
        save_assets: (folder) -> SPEC that rebuilds architecture and preprocessing from the folder, without weights or
            network.
        input_size: (height, width) of the pixels that ``preprocess`` returns; None = inputs are no images of one size.
        tokenizer: of text towers, the object that ``preprocess`` is, too.
        set_grad_checkpointing: (enable) recomputes activations in the backward pass.
        hidden_states: states that a token can be built from: one before the first layer and one after each layer; 1 =
            the last only.
        select_hidden_states: (layer numbers) concatenates these states in each token; 0 = before the first layer.
        extend_context: (count, rule) extends learned positions to ``count`` tokens.
        pooled_from: how ``pooled`` follows from the tokens; it is checked when the tower is built.
        probe_samples: () -> a short and a longer decoded sample on which it is checked, where its inputs depend on its
            settings; None = those of the modality.
        space: the joint space that ``pooled`` [B, E] lies in, projected by the model and not normalised; None = the
            module has no projection, and ``pooled`` is [B, W].
    """

    spec: TowerSpec
    modality: str
    module: nn.Module
    preprocess: Callable[[Any], Any]
    width: int
    tokens: int
    grid: tuple[int, int] | None
    pretrained: bool
    fingerprint: str
    save_assets: Callable[[Path], str]
    input_size: tuple[int, int] | None = None
    tokenizer: TextTokenizer | None = None
    set_grad_checkpointing: Callable[[bool], None] | None = None
    hidden_states: int = 1
    select_hidden_states: Callable[[Sequence[int]], None] | None = None
    extend_context: Callable[[int, PositionRule], None] | None = None
    pooled_from: Pooling = "model"
    probe_samples: Callable[[], Sequence[Any]] | None = None
    space: JointSpace | None = None

    @property
    def pooled_width(self) -> int:
        """Numbers of ``pooled``: E of a projected vector, else W."""
        return self.width if self.space is None else self.space.size
