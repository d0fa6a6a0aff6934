"""From a prepared split to batches: columns of items, and pairs of them.

An *item* is one sample of one modality: a caption, or the media of a row. A *row* is one thing with all its items.
"""

from __future__ import annotations

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

from ccaco_cli.core import distributed, ragged
from ccaco_cli.core.data import cache
from ccaco_cli.core.data.checks import lenient
from ccaco_cli.core.data.shards import Split
from ccaco_cli.core.modalities import MODALITIES
from ccaco_cli.core.types import Features, OnProgress, PairBatch, no_progress

Array = np.ndarray[Any, Any]
DECODED_AT_ONCE = 64
PIXELS_IN_CACHE = 128
"""Pictures up to this many pixels a side are kept decoded (uint8, memory-mapped): decoding them again costs more than reading."""


def stack(samples: Sequence[Tensor]) -> dict[str, Tensor]:
    """Arrays of one shape -> {"pixels" [B, ...]}: images [B, 3, H, W]."""
    return {"pixels": torch.stack(list(samples))}


def pad(samples: Sequence[Tensor]) -> dict[str, Tensor]:
    """Clips of any length, time first -> {"values" [B, N, ...] padded with zeros, "mask" [B, N] True = real}."""
    counts = torch.tensor([len(sample) for sample in samples])
    return {
        "values": pad_sequence(list(samples), batch_first=True),
        "mask": torch.arange(int(counts.max())) < counts[:, None],
    }


class Column(Protocol):
    """All items of one modality of a split.

    row     [items] int64, the row of each item
    start   [rows + 1] int64, items of row r are start[r] .. start[r + 1]
    length  [items] int64 tokens of each item where they differ (for batching by length), or None
    """

    row: Array
    start: Array
    length: Array | None

    def inputs(self, items: Array) -> Any:
        """What the tower takes (dict of tensors), or cached Features."""
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
    """Captions as tokens; a batch is padded to its own longest caption, and says how long each is.

    kept  folder where the tokens are kept, computed once and read by memory map; None = in memory
    cut   captions that were longer than the tower takes
    """

    def __init__(self, split: Captioned, tokenize: Callable[[list[str]], dict[str, Tensor]], kept: Path | None = None):
        self.row, self.start = split.caption_row, split.caption_start

        def told() -> dict[str, Array]:
            encoded = tokenize(list(split.captions))
            cut = encoded["cut"] if "cut" in encoded else torch.zeros(len(self.row), dtype=torch.bool)
            return {"ids": encoded["ids"].to(torch.int32).numpy(), "mask": encoded["mask"].numpy(), "cut": cut.numpy()}

        found = cache.arrays(kept, told) if kept else told()
        self.ids, self.mask = found["ids"], found["mask"]
        self.length: Array | None = self.mask.sum(1)
        self.cut = int(found["cut"].sum())

    def inputs(self, items: Array) -> dict[str, Tensor]:
        mask = torch.from_numpy(np.asarray(self.mask[items]))
        longest = int(mask.any(0).nonzero().max()) + 1
        return {
            "ids": torch.from_numpy(self.ids[items, :longest]).long(),
            "mask": mask[:, :longest],
            "lengths": mask.sum(1),
        }


class MediaColumn:
    """Pictures or clips, decoded when asked for."""

    length: Array | None = None

    def __init__(self, split: Split, modality: str, preprocess: Callable[[Any], Tensor]):
        self.split, self.modality, self.preprocess = split, modality, preprocess
        self.row, self.start = np.arange(len(split)), np.arange(len(split) + 1)
        # twice the size of the resize that follows, so that the resize still decides every pixel
        self.short_side = 2 * max(getattr(preprocess, "resize", (0,)))

    def decode(self, data: bytes) -> Any:
        """One sample as ``preprocess`` takes it."""
        modality = MODALITIES[self.modality]
        if modality.decode_scaled and self.short_side:
            return modality.decode_scaled(data, self.short_side)
        return modality.decode(data)

    def inputs(self, items: Array) -> dict[str, Tensor]:
        batch: dict[str, Tensor] = MODALITIES[self.modality].collate(self.samples(items))
        return batch

    def samples(self, items: Sequence[int] | Array) -> list[Tensor]:
        """What a tower takes of each item, decoded by as many threads as torch has (the decoders free the GIL)."""
        media = self.split.media(self.modality, items)
        if (threads := torch.get_num_threads()) == 1:
            return [self.sample(data) for data in media]
        with lenient(), ThreadPoolExecutor(threads) as pool:
            return list(pool.map(self.sample, media))

    def sample(self, data: bytes) -> Tensor:
        """What a tower takes of one item."""
        return self.preprocess(self.decode(data))


class PixelColumn(MediaColumn):
    """Small pictures, decoded once into a memory-mapped uint8 array [rows, 3, H, W]."""

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
    """Clips, decoded once into a memory-mapped array [all their steps, ...] of what the tower takes: film as uint8, sound as float16.

    Shards keep the encoded clips, for each tower wants another size, rate and length of them; but decoding H.264 again every epoch would
    take longer than learning from it.
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
        found = cache.folder(path, partial(self._write_clips, on_progress=on_progress), resumes=True)
        self.offsets, self.values = cache.read_array(found / ragged.OFFSETS), cache.read_array(found / "values.npy")
        self.length = np.diff(self.offsets)

    def _write_clips(self, folder: Path, on_progress: OnProgress) -> None:
        def some(first: int) -> tuple[Array, dict[str, Array], dict[str, Array]]:
            rows = range(first, min(first + DECODED_AT_ONCE, len(self.split)))
            samples = self.samples(rows)
            on_progress(rows.stop, len(self.split), {"what": f"{self.modality} of {self.split.name}"})
            return np.array([len(s) for s in samples]), {"values": torch.cat(samples).numpy()}, {}

        ragged.write(folder, len(self.split), some)

    def inputs(self, items: Array) -> dict[str, Tensor]:
        return pad([torch.from_numpy(np.array(self.values[self.offsets[i] : self.offsets[i + 1]])) for i in items])


class CachedColumn:
    """Tokens of a locked tower, read from a cache folder (``tokens.npy`` [total, W] float16, ``offsets.npy``, ``pooled.npy``)."""

    def __init__(self, path: Path, row: Array, start: Array):
        self.row, self.start = row, start
        self.tokens, self.pooled = (cache.read_array(path / f"{name}.npy") for name in ("tokens", "pooled"))
        self.cut = 0
        self.offsets = cache.read_array(path / ragged.OFFSETS)
        try:
            ragged.check(self.tokens, self.offsets, len(self.pooled))
        except ValueError as error:
            raise cache.damaged(path, str(error)) from None
        counts = np.diff(self.offsets)
        self.length: Array | None = counts
        self.fixed = int(counts[0]) if len(counts) and (counts == counts[0]).all() else 0

    def inputs(self, items: Array) -> Features:
        pooled = torch.from_numpy(np.asarray(self.pooled[items]))
        if self.fixed:  # a patch grid: one block a row
            tokens = torch.from_numpy(self.tokens.reshape(-1, self.fixed, self.tokens.shape[1])[items])
            return Features(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool), pooled)
        source, mask = ragged.places(self.offsets, items)
        padded = np.zeros((*mask.shape, self.tokens.shape[1]), np.float16)
        padded[mask] = self.tokens[source]
        return Features(torch.from_numpy(padded), torch.from_numpy(mask), pooled)


NONE: Array = np.empty(0, np.int64)


@dataclass(frozen=True)
class PairPlan:
    """The order of one epoch: for every batch, rows and the item of either side. A function of (seed, epoch) alone.

    batch_size  rows of a batch
    captions  of a row, as many pairs of different items stand in its batch, if it has them; apart from one another, so that neighbours
              differ
    family    [rows with a partner]
    unpaired  items of a and of b without a partner: behind its pairs each batch has ``batch_size`` of them, of each side that has any,
              drawn apart from one another
    """

    a: Column
    b: Column
    family: Array
    batch_size: int
    seed: int
    unpaired: tuple[Array, Array] = (NONE, NONE)
    captions: int = 1

    def __len__(self) -> int:
        """Batches an epoch; a last one that would be smaller is left out."""
        return max(1, len(self.family) // self.batch_size)

    def epoch(self, number: int) -> list[tuple[Array, Array, Array]]:
        """[(rows, items of a, items of b)]: rows shuffled, families (hard negatives of each other) kept side by side, all again for each
        further caption; more items than rows where some have no partner."""
        rng = np.random.default_rng((self.seed, number))
        key = rng.random(int(self.family.max()) + 1)[self.family]
        order = np.lexsort((rng.random(len(key)), key))
        counts = [np.diff(column.start) for column in (self.a, self.b)]
        first = [(rng.random(len(count)) * count).astype(np.int64) for count in counts]
        many = np.minimum(self.captions, np.maximum(*counts))

        def pairs(rows: Array) -> tuple[Array, ...]:
            nth = np.repeat(np.arange(self.captions), len(rows))
            again = np.tile(rows, self.captions)
            again, nth = again[kept := nth < many[again]], nth[kept]
            sides = zip((self.a, self.b), counts, first, strict=True)
            return again, *(column.start[again] + (begun[again] + nth) % count[again] for column, count, begun in sides)

        cuts = (pairs(order[i * self.batch_size : (i + 1) * self.batch_size]) for i in range(len(self)))
        lone = [
            _in_turn(items, self.batch_size, len(self), np.random.default_rng((self.seed, number, i)))
            for i, items in enumerate(self.unpaired)
        ]
        return [
            (rows, np.append(a, lone_a), np.append(b, lone_b))
            for (rows, a, b), lone_a, lone_b in zip(cuts, *lone, strict=True)
        ]


def _in_turn(items: Array, size: int, batches: int, rng: np.random.Generator) -> list[Array]:
    """``batches`` times ``size`` items, each once before any comes again."""
    if not len(items):
        return [items] * batches
    rounds = -(-size * batches // len(items))
    drawn = np.concatenate([rng.permutation(items) for _ in range(rounds)])
    return [drawn[i * size : (i + 1) * size] for i in range(batches)]


class PairDataset(Dataset[PairBatch]):
    """Batches by plan entry, for a ``DataLoader`` whose sampler is the plan.

    An item of several pairs is read once; where several processes share a batch, once a pair, for they must read equally many.
    """

    def __init__(self, a: Column, b: Column, group: Array, domain: Array):
        self.a, self.b, self.group, self.domain = a, b, torch.from_numpy(group), torch.from_numpy(domain)
        self.alone = distributed.world() == 1  # asked here, for the workers of a loader are in no group

    def __getitem__(self, entry: tuple[Array, Array, Array]) -> PairBatch:
        rows, items_a, items_b = entry
        index = torch.from_numpy(rows)
        (items_a, at_a), (items_b, at_b) = self._once(items_a), self._once(items_b)
        return PairBatch(
            self.a.inputs(items_a), self.b.inputs(items_b), index, self.group[index], self.domain[index], at_a, at_b
        )

    def _once(self, items: Array) -> tuple[Array, Tensor | None]:
        once, at = np.unique(items, return_inverse=True)
        return (once, torch.from_numpy(at)) if self.alone and len(once) < len(items) else (items, None)


def part(entry: tuple[Array, Array, Array], rank: int, world: int) -> tuple[Array, Array, Array]:
    """The share of one process of a plan entry: an equal run of its rows, in rank order, and of the items behind them without a partner."""
    pairs = len(entry[0])
    rows, items_a, items_b = (
        np.append(_share(column[:pairs], rank, world), _share(column[pairs:], rank, world)) for column in entry
    )
    return rows, items_a, items_b


def _share(column: Array, rank: int, world: int) -> Array:
    each = len(column) // world
    return column[rank * each : (rank + 1) * each]


def load(
    dataset: PairDataset, plan: Sequence[tuple[Array, Array, Array]], workers: int, seed: int = 0
) -> DataLoader[PairBatch]:
    """Batches in plan order, prefetched by ``workers`` processes (0 = in this one).

    seed  of the workers' generators. Drawing it from torch's own would change what a resumed run draws next
    Raises DataError, when it is read: a worker died
    """
    own = torch.Generator().manual_seed(seed)
    return DataLoader(dataset, batch_size=None, sampler=plan, num_workers=workers, generator=own)  # type: ignore[arg-type]
