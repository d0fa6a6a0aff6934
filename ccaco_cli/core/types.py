"""Types that all packages share.

Shapes: B pairs, N tokens of either modality, W tower width, D model width, E embedding size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

Media = Path | bytes | Callable[[], bytes]
"""Where the bytes of one sample come from: a file, the bytes themselves, or a picklable function that makes them."""


class OnProgress(Protocol):
    """A progress callback, because ``core`` does not print.

    Args:
        done, total: steps of the work; ``total`` is None when it is not known.
        facts: what is being done (``facts["what"]``), and figures to show.
    """

    def __call__(self, done: int, total: int | None, facts: Mapping[str, Any]) -> None: ...


def no_progress(done: int, total: int | None, facts: Mapping[str, Any]) -> None:
    """The ``OnProgress`` that ignores everything."""


OnNote = Callable[[str], None]
"""Receives one sentence for the user."""


def no_note(line: str) -> None:
    """The ``OnNote`` that ignores everything."""


class Recording(Protocol):
    """A video or audio file that is decoded at the rate and length that a tower needs."""

    def samples(self, rate: int, seconds: float) -> Any:
        """Decodes the first ``seconds`` of the audio: float32 [n], mono, at ``rate`` Hz."""
        ...

    def frames(self, rate: float, seconds: float) -> Iterator[Image]:
        """Yields the frames shown at 0, 1/rate, 2/rate ... s of the first ``seconds``."""
        ...


@dataclass(frozen=True, slots=True)
class PairRecord:
    """One sample in two modalities, as a source yields it.

    Attributes:
        id: unique within the data set; used in results and rejects.
        group: samples of one group mean the same, and are never negatives of each other.
        split: train | val | test.
        media: modality -> where its bytes come from (every modality except text).
        captions: the texts of the sample (empty for video-audio).
        domain: style or origin; "" when the data set has only one.
        label: class name; "" when the data set has none.
        family: samples that are hard negatives of each other share a family (swapped twins); "" = none.
        meta: further facts, as JSON types.
        problem: why the source cannot give this sample; it is counted and listed among the rejects. "" = none.
        detail: what belongs to the problem of this sample alone, such as a number.
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
    problem: str = ""
    detail: str = ""


class RecordFilter(Protocol):
    """Decides which pairs of a stream of records are kept."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """What it depends on, for the manifest."""
        ...

    def select(
        self, records: Iterable[PairRecord], modalities: tuple[str, ...], folders: tuple[str, ...]
    ) -> Iterator[PairRecord]:
        """The records in order; what is not kept is a record with the problem ``checks.UNLIKELY``.

        Args:
            modalities: of the records.
            folders: real paths that files may lie in; () = anywhere.
        """
        ...


class TensorRecord:
    """Base of dataclasses of tensors: moves and indexes all tensor fields at once, also those of nested records."""

    def map(self, fn: Callable[[torch.Tensor], torch.Tensor]) -> Any:
        """The record with ``fn`` applied to every tensor."""
        changed = {}
        for f in fields(self):  # type: ignore[arg-type]
            value = getattr(self, f.name)
            if isinstance(value, TensorRecord):
                changed[f.name] = value.map(fn)
            elif hasattr(value, "device"):
                changed[f.name] = fn(value)
        return replace(self, **changed)  # type: ignore[type-var]

    def to(self, device: Any) -> Any:
        """The record on a device (``move_tensor``)."""
        return self.map(lambda t: move_tensor(t, device))

    def pin_memory(self) -> Any:
        """The record in pinned memory, from which copies to a GPU run in the background. Data loaders call this."""
        return self.map(lambda t: t.pin_memory())

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Declares that a stream uses the tensors: their memory is used again only after its work so far."""
        self.map(lambda t: _record(t, stream))

    def __getitem__(self, rows: Any) -> Any:
        return self.map(lambda t: t[rows])


@dataclass(frozen=True, slots=True)
class Features(TensorRecord):
    """Output of a tower for B samples.

    Attributes:
        tokens: [B, N, W] float.
        mask: [B, N] bool, True = real token.
        pooled: [B, W] float, as the tower pools (class token, attention pool or masked mean).
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
    """Output of the cross branch for M pairs, or for all A x B pairs.

    Attributes:
        match_logit: [M] or [A, B] float, higher = better match.
        fused_a: [M, N_a, D] float or None.
        fused_b: [M, N_b, D] float or None.
        attention: [M, H, N_b, N_a] float or None, the weights of b's tokens over a's tokens in each of H heads. Where
            the match logit depends on it, it is part of the graph, so that its gradient can be taken.
        drift: scalar or None, mean squared change of the tokens by the fusion (L_mse of the source description).
    """

    match_logit: torch.Tensor
    fused_a: torch.Tensor | None = None
    fused_b: torch.Tensor | None = None
    attention: torch.Tensor | None = None
    drift: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class Words(TensorRecord):
    """Texts of B pairs as token ids of the text tower's tokenizer, for the decoder.

    Attributes:
        ids: [B, L] int64, with the start and end that the tokenizer adds.
        mask: [B, L] bool, True = real token.
        prefix: [B] int64, tokens of the question that a text begins with, which is read and not predicted. None = all
            texts are captions.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    prefix: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class PairBatch(TensorRecord):
    """B pairs as the model takes them.

    Attributes:
        a, b: inputs of both modalities, a dict of tensors for ``Tower.module`` or ``Features`` from a token cache.
            Samples without a partner stand behind those with one.
        rows: [B] int64, row of each pair in its split.
        group: [B] int64, equal = means the same.
        domain: [B] int64.
        at_a, at_b: int64, position in a or b of the sample of each pair (then of each sample without a partner); None =
            each sample belongs to one pair, and they are in order.
        words: the caption of each pair, also where its text tower is locked; None = no decoder is trained.
        questions: K questions with answers for each pair, side by side: Q = B * K texts; a text without tokens stands
            in for the questions of a sample that has none. None = the decoder learns captions alone.
    """

    a: Any
    b: Any
    rows: torch.Tensor
    group: torch.Tensor
    domain: torch.Tensor
    at_a: torch.Tensor | None = None
    at_b: torch.Tensor | None = None
    words: Words | None = None
    questions: Words | None = None

    def map(self, fn: Callable[[torch.Tensor], torch.Tensor]) -> PairBatch:
        """The batch with ``fn`` applied to every tensor, also to those of both inputs."""
        changed: PairBatch = TensorRecord.map(self, fn)
        a, b = (_map_dict(side, fn) if isinstance(side, dict) else side for side in (changed.a, changed.b))
        return replace(changed, a=a, b=b)

    def to(self, device: Any) -> PairBatch:
        """The batch on a device (``move_tensor``)."""
        return self.map(lambda t: move_tensor(t, device))


LENGTHS = "lengths"
"""The input of towers of texts and clips that stays on the CPU: the program decides by it what is encoded together."""


def _map_dict(
    tensors: Mapping[str, torch.Tensor], fn: Callable[[torch.Tensor], torch.Tensor]
) -> dict[str, torch.Tensor]:
    return {name: tensor if name == LENGTHS else fn(tensor) for name, tensor in tensors.items()}


def _record(tensor: torch.Tensor, stream: torch.cuda.Stream) -> torch.Tensor:
    tensor.record_stream(stream)
    return tensor


MAX_PINNED = 1 << 24
"""Bytes up to which ``move_tensor`` copies a tensor to pinned memory first: such memory stays reserved."""


def move_tensor(tensor: torch.Tensor, device: Any) -> torch.Tensor:
    """Moves a tensor to a device; the only place that starts copies in the background.

    A copy to a GPU runs in the background if its source is in pinned memory. Small tensors are copied there first,
    since a copy from other memory waits for all that the GPU has to do before. Every other copy is complete on return:
    a copy to the CPU in the background would be read before its data has arrived.
    """
    device_type = str(device).partition(":")[0]
    if tensor.device.type != "cpu" or device_type == "cpu":
        return tensor.to(device, non_blocking=False)
    if device_type == "cuda" and not tensor.is_pinned() and tensor.numel() * tensor.element_size() <= MAX_PINNED:
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=tensor.is_pinned())


def move(inputs: Any, device: Any) -> Any:
    """Moves the inputs of one modality (``Features`` or a dict of tensors) to a device (``move_tensor``)."""
    if isinstance(inputs, dict):
        return _map_dict(inputs, lambda t: move_tensor(t, device))
    return inputs.to(device)
