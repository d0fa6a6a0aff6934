"""From a prepared split to batches of pairs.

An *item* is one sample of one modality: a caption, or the media of a row. A *row* is one record with all its items.
A *column* has all items of one modality of a split.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from ccaco_cli.core import distributed, ragged, runtime
from ccaco_cli.core.data import cache
from ccaco_cli.core.data.checks import lenient
from ccaco_cli.core.data.shards import Split
from ccaco_cli.core.modalities import MODALITIES
from ccaco_cli.core.types import LENGTHS, Features, OnProgress, PairBatch, Words, no_progress

Array = np.ndarray[Any, Any]
CLIPS_PER_CHUNK = 64
"""Clips that are decoded at a time while a cache is written."""
PIXELS_IN_CACHE = 128
"""Images up to this many pixels per side are cached decoded (uint8), because decoding is slower than reading."""


def stack(samples: Sequence[Tensor]) -> dict[str, Tensor]:
    """Arrays of one shape -> {"pixels" [B, ...]}: images [B, 3, H, W]."""
    return {"pixels": torch.stack(list(samples))}


def pad(samples: Sequence[Tensor]) -> dict[str, Tensor]:
    """Clips, time first -> {"values" [B, N, ...] padded with zeros, "mask" [B, N] True = real, "lengths" [B] int64}."""
    counts = torch.tensor([len(sample) for sample in samples])
    return {
        "values": pad_sequence(list(samples), batch_first=True),
        "mask": torch.arange(int(counts.max())) < counts[:, None],
        LENGTHS: counts,
    }


class Column(Protocol):
    """All items of one modality of a split.

    Attributes:
        row: [items] int64, the row of each item.
        start: [rows + 1] int64; row r has the items start[r] .. start[r + 1] - 1.
        length: [items] int64, number of tokens of each item (for batching by length); None = all equal.
    """

    row: Array
    start: Array
    length: Array | None

    def inputs(self, items: Array) -> Any:
        """A batch of these items: the input of ``Tower.module`` (dict of tensors), or cached Features."""
        ...


class Captioned(Protocol):
    """Rows with captions, as ``Split`` has them."""

    @property
    def captions(self) -> Sequence[str]: ...

    @property
    def caption_row(self) -> Array: ...

    @property
    def caption_start(self) -> Array: ...


class TextColumn:
    """Captions as token ids; a batch is padded to its longest caption, and holds the length of each.

    Args:
        split: rows with captions.
        tokenize: ``Tower.preprocess`` of a text tower.
        cache_folder: where the ids are stored, to be read by memory map; None = in memory.

    Attributes:
        cut: number of captions that were longer than the tower's context.
    """

    def __init__(
        self, split: Captioned, tokenize: Callable[[list[str]], dict[str, Tensor]], cache_folder: Path | None = None
    ):
        self.row, self.start = split.caption_row, split.caption_start

        def encode() -> dict[str, Array]:
            encoded = tokenize(list(split.captions))
            cut = encoded["cut"] if "cut" in encoded else torch.zeros(len(self.row), dtype=torch.bool)
            return {"ids": encoded["ids"].to(torch.int32).numpy(), "mask": encoded["mask"].numpy(), "cut": cut.numpy()}

        arrays = cache.arrays(cache_folder, encode) if cache_folder else encode()
        self.ids, self.mask = arrays["ids"], arrays["mask"]
        self.length: Array | None = self.mask.sum(1)
        self.cut = int(arrays["cut"].sum())

    def inputs(self, items: Array) -> dict[str, Tensor]:
        mask = torch.from_numpy(np.asarray(self.mask[items]))
        longest = int(mask.any(0).nonzero().max()) + 1
        return {
            "ids": torch.from_numpy(self.ids[items, :longest]).long(),
            "mask": mask[:, :longest],
            LENGTHS: mask.sum(1),
        }


def decode_media(modality: str, data: bytes, preprocess: Any) -> Any:
    """One sample as ``preprocess`` takes it; large images are decoded at a reduced size, unless it is ``exact``."""
    entry = MODALITIES[modality]
    # twice the size of the resize that follows, so that the resize still decides every pixel
    short_side = 0 if getattr(preprocess, "exact", False) else 2 * max(getattr(preprocess, "resize", (0,)))
    return entry.decode_scaled(data, short_side) if entry.decode_scaled and short_side else entry.decode(data)


class MediaColumn:
    """Images or clips, decoded for each batch."""

    length: Array | None = None

    def __init__(self, split: Split, modality: str, preprocess: Callable[[Any], Tensor]):
        self.split, self.modality, self.preprocess = split, modality, preprocess
        self.row, self.start = np.arange(len(split)), np.arange(len(split) + 1)

    def decode(self, data: bytes) -> Any:
        """Decodes one sample for ``preprocess``."""
        return decode_media(self.modality, data, self.preprocess)

    def inputs(self, items: Array) -> dict[str, Tensor]:
        batch: dict[str, Tensor] = MODALITIES[self.modality].collate(self.samples(items))
        return batch

    def samples(self, items: Sequence[int] | Array) -> list[Tensor]:
        """The preprocessed items, decoded by several threads (the decoders release the GIL)."""
        media = self.split.media(self.modality, items)
        if (threads := runtime.decoding_threads()) == 1:
            return [self.sample(data) for data in media]
        with lenient(), ThreadPoolExecutor(threads) as pool:
            return list(pool.map(self.sample, media))

    def sample(self, data: bytes) -> Tensor:
        """Decodes and preprocesses one sample."""
        return self.preprocess(self.decode(data))


class PixelColumn(MediaColumn):
    """Small images, decoded once into a memory-mapped uint8 array [rows, 3, H, W]."""

    def __init__(self, split: Split, modality: str, preprocess: Callable[[Any], Tensor], path: Path):
        super().__init__(split, modality, preprocess)
        self.pixels = cache.read_array(cache.folder(path, self._write) / "pixels.npy")

    def _write(self, folder: Path) -> None:
        shape = super().inputs(np.array([0]))["pixels"].shape[1:]
        array = cache.new_array(folder / "pixels.npy", (len(self.split), *shape), np.uint8)
        for first in range(0, len(self.split), 512):
            rows = np.arange(first, min(first + 512, len(self.split)))
            array[rows] = super().inputs(rows)["pixels"].numpy()
        array.flush()

    def inputs(self, items: Array) -> dict[str, Tensor]:
        return {"pixels": torch.from_numpy(self.pixels[items])}


class ClipColumn(MediaColumn):
    """Clips, decoded once into a memory-mapped array [time steps of all clips, ...]: video as uint8, audio as float16.

    Shards store the encoded clips, because each tower needs its own size, rate and length. Decoding H.264 again in
    every epoch would take longer than training on it.
    """

    def __init__(
        self,
        split: Split,
        modality: str,
        preprocess: Callable[[Any], Tensor],
        path: Path,
        on_progress: OnProgress = no_progress,
    ):
        super().__init__(split, modality, preprocess)
        folder = cache.folder(path, partial(self._write_clips, on_progress=on_progress), resumes=True)
        self.offsets, self.values = cache.read_array(folder / ragged.OFFSETS), cache.read_array(folder / "values.npy")
        self.length = np.diff(self.offsets)

    def _write_clips(self, folder: Path, on_progress: OnProgress) -> None:
        def next_rows(first: int) -> tuple[Array, dict[str, Array], dict[str, Array]]:
            rows = range(first, min(first + CLIPS_PER_CHUNK, len(self.split)))
            samples = self.samples(rows)
            on_progress(rows.stop, len(self.split), {"what": f"{self.modality} of {self.split.name}"})
            return np.array([len(s) for s in samples]), {"values": torch.cat(samples).numpy()}, {}

        ragged.write(folder, len(self.split), next_rows)

    def inputs(self, items: Array) -> dict[str, Tensor]:
        clips = [torch.from_numpy(np.array(self.values[self.offsets[i] : self.offsets[i + 1]])) for i in items]
        cache.release(self.values)
        return pad(clips)


class CachedColumn:
    """Tokens of a locked tower, read from a cache folder.

    The folder holds ``tokens.npy`` [total, W] float16, ``offsets.npy`` [items + 1] and ``pooled.npy`` [items, W].
    """

    def __init__(self, path: Path, row: Array, start: Array):
        self.row, self.start = row, start
        self.tokens, self.pooled = (cache.read_array(path / f"{name}.npy") for name in ("tokens", "pooled"))
        self.cut = 0
        self.offsets = cache.read_array(path / ragged.OFFSETS)
        try:
            ragged.check(self.tokens, self.offsets, len(self.pooled))
        except ValueError as error:
            raise cache.damaged(path, str(error)) from None
        self.length: Array | None = np.diff(self.offsets)

    def inputs(self, items: Array) -> Features:
        start = np.asarray(self.offsets[items])
        counts = np.asarray(self.offsets[items + 1]) - start
        tokens = np.zeros((len(items), counts.max(initial=0), self.tokens.shape[1]), np.float16)
        for padded, first, count in zip(tokens, start.tolist(), counts.tolist(), strict=True):
            padded[:count] = self.tokens[first : first + count]
        mask = np.arange(tokens.shape[1]) < counts[:, None]
        pooled = np.asarray(self.pooled[items])
        cache.release(self.tokens, self.pooled)
        return Features(torch.from_numpy(tokens), torch.from_numpy(mask), torch.from_numpy(pooled))


NONE: Array = np.empty(0, np.int64)
Entry = tuple[Array, ...]
"""A batch of the plan: rows, items of a, items of b, and for a decoder the questions of each row, if there are any."""
Read = Callable[[Array], Words] | None


@dataclass(frozen=True)
class PairPlan:
    """The order of an epoch: the rows of every batch, and the item of each side. It depends on (seed, epoch) only.

    Attributes:
        a, b: columns of the two sides.
        family: [rows with a partner] int64, as ``Split.family``.
        batch_size: rows per batch.
        seed: of all epochs.
        unpaired: items of a and of b without a partner. Each batch has ``batch_size`` of them after its pairs, from
            each side that has any, drawn independently.
        captions: pairs per row with different items, if the row has as many; they are not neighbours in the batch.
        questions: (rows [B], generator) -> questions of each pair [B, K], the fourth column of a batch; None = none.
    """

    a: Column
    b: Column
    family: Array
    batch_size: int
    seed: int
    unpaired: tuple[Array, Array] = (NONE, NONE)
    captions: int = 1
    questions: Callable[[Array, np.random.Generator], Array] | None = None

    def __len__(self) -> int:
        """Batches per epoch; an incomplete last batch is left out."""
        return max(1, len(self.family) // self.batch_size)

    def epoch(self, number: int) -> list[Entry]:
        """The batches of one epoch.

        Rows are shuffled, and families (hard negatives of each other) stay side by side. All rows are repeated for
        each further caption. There are more items than rows where some items have no partner.
        """
        rng = np.random.default_rng((self.seed, number))
        key = rng.random(int(self.family.max()) + 1)[self.family]
        order = np.lexsort((rng.random(len(key)), key))
        counts = [np.diff(column.start) for column in (self.a, self.b)]
        first = [(rng.random(len(count)) * count).astype(np.int64) for count in counts]
        pairs_per_row = np.minimum(self.captions, np.maximum(*counts))

        def pairs(rows: Array) -> tuple[Array, ...]:
            nth = np.repeat(np.arange(self.captions), len(rows))
            repeated = np.tile(rows, self.captions)
            exists = nth < pairs_per_row[repeated]
            repeated, nth = repeated[exists], nth[exists]
            sides = zip((self.a, self.b), counts, first, strict=True)
            return repeated, *(
                column.start[repeated] + (start[repeated] + nth) % count[repeated] for column, count, start in sides
            )

        batches = (pairs(order[i * self.batch_size : (i + 1) * self.batch_size]) for i in range(len(self)))
        unpaired = [
            _draw_rounds(items, self.batch_size, len(self), np.random.default_rng((self.seed, number, i)))
            for i, items in enumerate(self.unpaired)
        ]
        draw, question_rng = self.questions, np.random.default_rng((self.seed, number, len(unpaired)))
        return [
            (rows, np.append(a, unpaired_a), np.append(b, unpaired_b), *([draw(rows, question_rng)] if draw else []))
            for (rows, a, b), unpaired_a, unpaired_b in zip(batches, *unpaired, strict=True)
        ]


def _draw_rounds(items: Array, size: int, batches: int, rng: np.random.Generator) -> list[Array]:
    """Draws ``batches`` times ``size`` items; every item is drawn once before any is drawn again."""
    if not len(items):
        return [items] * batches
    rounds = -(-size * batches // len(items))
    drawn = np.concatenate([rng.permutation(items) for _ in range(rounds)])
    return [drawn[i * size : (i + 1) * size] for i in range(batches)]


class PairDataset(Dataset[PairBatch]):
    """Batches by plan entry, for a ``DataLoader`` whose sampler is the plan.

    An item of several pairs is read once. If several processes share a batch, it is read once per pair, because the
    processes must read equal numbers of items. ``words`` and ``questions`` read captions and questions for a decoder.
    """

    def __init__(self, a: Column, b: Column, group: Array, domain: Array, words: Read = None, questions: Read = None):
        self.a, self.b, self.group, self.domain = a, b, torch.from_numpy(group), torch.from_numpy(domain)
        # read here, because a loader's workers are in no process group
        self.words, self.questions, self.deduplicate = words, questions, distributed.world() == 1

    def __getitem__(self, entry: Entry) -> PairBatch:
        rows, items_a, items_b, *items_questions = entry
        index = torch.from_numpy(rows)
        words = None if self.words is None else self.words(items_b[: len(rows)])
        questions = self.questions(items_questions[0].flatten()) if self.questions and items_questions else None
        (items_a, at_a), (items_b, at_b) = self._unique(items_a), self._unique(items_b)
        inputs = self.a.inputs(items_a), self.b.inputs(items_b)
        return PairBatch(*inputs, index, self.group[index], self.domain[index], at_a, at_b, words, questions)

    def _unique(self, items: Array) -> tuple[Array, Tensor | None]:
        unique, index = np.unique(items, return_inverse=True)
        return (unique, torch.from_numpy(index)) if self.deduplicate and len(unique) < len(items) else (items, None)


def part(entry: Entry, rank: int, world: int) -> Entry:
    """The part of a plan entry for one process: an equal share of its rows and of its unpaired items, in rank order."""
    pairs = len(entry[0])
    return tuple(np.concatenate([_share(items, rank, world) for items in (c[:pairs], c[pairs:])]) for c in entry)


def count_samples(entry: Entry, world: int) -> int:
    """Number of samples with a partner in a batch, over all processes; a sample with several captions counts once."""
    return len(np.unique(entry[0][: len(entry[0]) // world * world]))


def _share(column: Array, rank: int, world: int) -> Array:
    size = len(column) // world
    return column[rank * size : (rank + 1) * size]


class BatchLoader(DataLoader[PairBatch]):
    """A ``DataLoader`` that starts its processes without Python's warning about threads (from 3.12 on).

    The warning is of locks that a thread holds at the time of the fork: a process that loads data uses none of those
    of the thread that samples the memory, or of torch's threads.
    """

    def __iter__(self) -> Any:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*is multi-threaded, use of fork", DeprecationWarning)
            return super().__iter__()


def load(
    dataset: PairDataset,
    plan: Sequence[Entry],
    workers: int,
    seed: int = 0,
    *,
    pin_memory: bool = False,
) -> DataLoader[PairBatch]:
    """Batches in plan order, prefetched by ``workers`` processes (0 = in this process).

    Args:
        dataset: reads the batches.
        plan: of one epoch.
        workers: processes; at most one for each batch is started.
        seed: of the workers' generators. A draw from torch's global generator would change what a resumed run draws
            next.
        pin_memory: puts batches into pinned memory, from which they are copied to a GPU in the background.
    """
    generator = torch.Generator().manual_seed(seed)
    return BatchLoader(
        dataset,
        batch_size=None,
        sampler=plan,  # type: ignore[arg-type]
        num_workers=min(workers, len(plan)),
        generator=generator,
        pin_memory=pin_memory,
    )
