"""The words that the rooms share. Shapes: B pairs, N tokens of either modality, W tower width, D model width, E shared width."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

Media = Path | bytes | Callable[[], bytes]
"""Where the bytes of one sample come from: a file, the bytes themselves, or a picklable function that makes them."""


class OnProgress(Protocol):
    """Progress of long work, told to whoever asked: ``on_progress(done, total, facts)``. ``core`` knows no terminal."""

    def __call__(self, done: int, total: int | None, facts: Mapping[str, Any]) -> None: ...


def no_progress(done: int, total: int | None, facts: Mapping[str, Any]) -> None:
    """The ``OnProgress`` of a caller that does not listen."""


class Recording(Protocol):
    """A video or sound file as audio and video towers take it: each asks for the rate and length it wants."""

    def samples(self, rate: int, seconds: float) -> Any:
        """The start of the sound: float32 [n], mono, at ``rate`` Hz."""
        ...

    def frames(self, rate: float, seconds: float) -> Iterator[Image]:
        """The start of the film: the pictures seen at 0, 1/rate, 2/rate ... s."""
        ...


@dataclass(frozen=True, slots=True)
class PairRecord:
    """One thing described in two modalities, as a source yields it.

    id        unique within the data set; used in results and rejects
    group     things of one group mean the same: never each other's negatives
    split     train | val | test
    media     modality -> where its bytes come from (every modality but text)
    captions  the texts of the thing (empty for video-audio)
    domain    style or origin; "" when the set has one only
    label     class name; "" when the set has none
    family    hard negatives of each other share a family (swapped twins); "" = alone
    meta      anything else worth keeping, as JSON types
    """

    id: str
    group: str
    split: str
    media: Mapping[str, Media]
    captions: Sequence[str] = ()
    domain: str = ""
    label: str = ""
    family: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)


class TensorRecord:
    """Base of dataclasses of tensors: moves and indexes every tensor field alike, those of nested records too."""

    def map(self, fn: Callable[[torch.Tensor], torch.Tensor]) -> Any:
        changed = {}
        for f in fields(self):  # type: ignore[arg-type]
            value = getattr(self, f.name)
            if isinstance(value, TensorRecord):
                changed[f.name] = value.map(fn)
            elif hasattr(value, "device"):
                changed[f.name] = fn(value)
        return replace(self, **changed)  # type: ignore[type-var]

    def to(self, device: Any) -> Any:
        return self.map(lambda t: t.to(device, non_blocking=True))

    def __getitem__(self, rows: Any) -> Any:
        return self.map(lambda t: t[rows])


@dataclass(frozen=True, slots=True)
class Features(TensorRecord):
    """What a tower says of B samples.

    tokens  [B, N, W] float
    mask    [B, N] bool, True = real token
    pooled  [B, W] float, the tower's own summary (class token, attention pool or masked mean)
    """

    tokens: torch.Tensor
    mask: torch.Tensor
    pooled: torch.Tensor


@dataclass(frozen=True, slots=True)
class Embedding(TensorRecord):
    """Global vectors of B samples of one modality.

    Attributes:
        z: [B, E] float, unit norm; the dot product of two is their similarity.
        pooled: [B, E] float, the same before normalisation.
    """

    z: torch.Tensor
    pooled: torch.Tensor


@dataclass(frozen=True, slots=True)
class LocalTokens(TensorRecord):
    """Tokens of B samples of one modality, prepared for the cross branch (``Aligner.local_tokens``).

    Attributes:
        tokens: [B, N, D] float.
        mask: [B, N] bool, True = real token.
    """

    tokens: torch.Tensor
    mask: torch.Tensor


@dataclass(frozen=True, slots=True)
class EncodedSamples(TensorRecord):
    """B samples of one modality as an aligner encodes them: what search and scoring work with.

    Attributes:
        embedding: their global vectors.
        tokens: their tokens for the cross branch; None when only vectors were computed.
    """

    embedding: Embedding
    tokens: LocalTokens | None = None

    @property
    def z(self) -> torch.Tensor:
        """[B, E] float, unit norm."""
        return self.embedding.z

    @property
    def local_tokens(self) -> LocalTokens:
        """The tokens, of samples that were encoded with them. Raises RuntimeError: they were not."""
        if self.tokens is None:
            raise RuntimeError("these samples were encoded without tokens for the cross branch")
        return self.tokens

    def __len__(self) -> int:
        return len(self.embedding.z)


@dataclass(frozen=True, slots=True)
class Crossed(TensorRecord):
    """What the cross branch says of M pairs (or of all A x B pairs).

    match_logit  [M] or [A, B] float, higher = better match
    fused_a      [M, N_a, D] float or None
    fused_b      [M, N_b, D] float or None
    attention    [M, H, N_b, N_a] float or None: how much each token of b looks at each token of a, in each of H heads; where the score goes
                 through it, it is part of the graph, so that gradients of ``match_logit`` can be taken there
    drift        scalar or None: mean squared change that the fusion makes to the tokens (the source description's L_mse)
    """

    match_logit: torch.Tensor
    fused_a: torch.Tensor | None = None
    fused_b: torch.Tensor | None = None
    attention: torch.Tensor | None = None
    drift: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class PairBatch(TensorRecord):
    """B pairs on their way to the model.

    a, b    what ``Tower.module`` of either modality takes: a dict of tensors, or ``Features`` read from a token cache; samples without a
            partner, where there are any, lie behind those that have one
    rows    [B] int64, row of each pair in its split
    group   [B] int64, equal = means the same
    domain  [B] int64
    at_a, at_b  int64 of the length that a and b would have if no sample served several pairs: which sample stands there; None = none does
    """

    a: Any
    b: Any
    rows: torch.Tensor
    group: torch.Tensor
    domain: torch.Tensor
    at_a: torch.Tensor | None = None
    at_b: torch.Tensor | None = None

    def to(self, device: Any) -> PairBatch:
        moved = self.map(lambda t: t.to(device, non_blocking=True))
        return replace(moved, a=move(self.a, device), b=move(self.b, device))  # type: ignore[no-any-return]


def move(inputs: Any, device: Any) -> Any:
    """Inputs of one modality (``Features`` or a dict of tensors) on another device."""
    if isinstance(inputs, dict):
        return {k: v.to(device, non_blocking=True) for k, v in inputs.items()}
    return inputs.to(device)
