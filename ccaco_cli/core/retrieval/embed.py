"""From items to arrays: the encoder run over a column, in memory or into a token cache."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ccaco_cli.core import distributed, ragged
from ccaco_cli.core.data import cache
from ccaco_cli.core.data.loader import CachedColumn, Column
from ccaco_cli.core.model.aligner import Aligner
from ccaco_cli.core.model.towers.narrow import Narrow
from ccaco_cli.core.types import Encoded, Features, OnProgress, move, silent

BATCH = {"cpu": 64, "cuda": 256}
"""Items that are encoded at a time. On a CPU the maps of 64 pictures still lie in cache: convolutions take twice as long with 256."""
PART, PART_BYTES = 4096, 1 << 27
"""Most items of a part of a token cache, and about how many bytes: what a killed process has to do again."""
TOKENS, PIXELS = 1 << 15, 1 << 24
"""Most text tokens, and numbers of other media, that are encoded at a time: one picture of 4096 x 4096."""


@contextmanager
def narrowed(aligner: Aligner, dtype: torch.dtype) -> Iterator[None]:
    """Within it the towers of an aligner compute in ``dtype`` (``runtime.encoding``), on copies; heads and cross branch stay float32.

    Vectors then differ from float32's by less than 1e-3 of cosine; float16 shards round by as much.
    """
    whole = {side: side.tower for side in aligner.sides.values()}
    try:
        if dtype != torch.float32:
            for side, tower in whole.items():
                side.tower = Narrow(tower, dtype)  # type: ignore[arg-type]
        yield
    finally:
        for side, tower in whole.items():
            side.tower = tower


@torch.inference_mode()
def encode(
    aligner: Aligner,
    modality: str,
    column: Column,
    *,
    items: Any = None,
    local: bool = False,
    grid: tuple[int, int] | None = None,
    most: int = 0,
    batch_size: int = 0,
    share: bool = False,
    on_progress: OnProgress = silent,
) -> Encoded:
    """Encodes items of a column, in evaluation mode.

    items    [n] int64, default all
    local    also keep the tokens that the cross branch needs (float16, padded to the longest)
    batch_size  items at a time, 0 = what suits the device (``BATCH``)
    share    the processes of a launcher divide the batches among them (all must call), and each gets the whole
    grid     (height, width) of the column's patch grid, when its tokens shall be average-pooled to at most ``most`` (``shrink``)
    Returns  Encoded on the CPU in item order; tokens [n, N, D] float16 (N = 0 unless ``local``), z float32
    """
    aligner.eval()
    device = next(aligner.parameters()).device
    chosen = np.arange(len(column.row)) if items is None else np.asarray(items)
    parts: list[tuple[np.ndarray[Any, Any], Encoded]] = []
    done = 0
    rank, world = (distributed.rank(), distributed.world()) if share else (0, 1)
    size = batch_size or BATCH.get(device.type, BATCH["cuda"])
    mine = itertools.islice(_batches(column, chosen, size), rank, None, world)
    for positions, inputs in _ahead(lambda positions: column.inputs(chosen[positions]), mine):
        encoded = aligner.encode(modality, move(inputs, device))
        if local:
            small = shrink(Features(encoded.tokens, encoded.mask, encoded.pooled), grid, most)
            encoded = aligner.local(modality, Encoded(small.tokens, small.mask, encoded.pooled, encoded.z))
        tokens = encoded.tokens.half() if local else encoded.tokens[:, :0].half()
        parts.append(
            (
                positions,
                Encoded(tokens, encoded.mask if local else encoded.mask[:, :0], encoded.pooled.float(), encoded.z.float()).to("cpu"),
            )
        )
        done += len(positions)
        on_progress(done, len(chosen), {})
    return _gathered(parts, len(chosen)) if world == 1 else _joined(parts, len(chosen))


def _ahead(make: Callable[[Any], Any], jobs: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    """Each job and what ``make`` gives for it, which a thread begins while the job before is worked on: the device does not wait."""
    with ThreadPoolExecutor(1) as pool:
        waiting: deque[tuple[Any, Future[Any]]] = deque()
        for job in jobs:
            waiting.append((job, pool.submit(make, job)))
            if len(waiting) > 1:
                done, made = waiting.popleft()
                yield done, made.result()
        for done, made in waiting:
            yield done, made.result()


def _batches(column: Column, chosen: Any, size: int) -> Iterator[Any]:
    """Positions in ``chosen``, by length, at most ``size`` at a time and fewer of what is large."""
    if column.length is None:
        one = column.inputs(chosen[:1]) if len(chosen) else None
        cost = max(t[0].numel() for t in one.values()) // 3 if isinstance(one, dict) else 1
        order, limits = np.arange(len(chosen)), np.full(len(chosen), PIXELS // max(1, cost))
    else:
        length = np.asarray(column.length)[chosen]
        order = np.argsort(length, kind="stable")
        limits = TOKENS // np.maximum(1, length[order])
    first = 0
    while first < len(order):
        room = np.maximum(1, limits[first : first + size])  # by the longest so far
        count = int((np.arange(1, len(room) + 1) <= room).sum())
        yield order[first : first + count]
        first += count


def _joined(parts: list[tuple[Any, Encoded]], count: int) -> Encoded:
    """``_gathered`` over all processes: each has filled its own rows, the others' are zero. A process without a batch learns the widths."""
    mine = [max(e.tokens.shape[1] for _, e in parts), parts[0][1].tokens.shape[2], parts[0][1].z.shape[1]] if parts else [0, 0, 0]
    longest, width, dim = (int(distributed.largest(n)) for n in mine)
    whole = _empty(count, longest, width, dim)
    _fill(whole, parts)
    return whole.map(distributed.join_parts)  # type: ignore[no-any-return]


def _gathered(parts: list[tuple[Any, Encoded]], count: int) -> Encoded:
    """Parts of ``count`` items, each with the positions of its own, as one; tokens are padded to the longest."""
    longest = max(e.tokens.shape[1] for _, e in parts)
    width, dim = parts[0][1].tokens.shape[2], parts[0][1].z.shape[1]
    whole = _empty(count, longest, width, dim)
    _fill(whole, parts)
    return whole


def _empty(count: int, longest: int, width: int, dim: int) -> Encoded:
    tokens, mask = torch.zeros(count, longest, width, dtype=torch.float16), torch.zeros(count, longest, dtype=torch.bool)
    return Encoded(tokens, mask, torch.zeros(count, dim), torch.zeros(count, dim))


def _fill(whole: Encoded, parts: list[tuple[Any, Encoded]]) -> None:
    for positions, part in parts:
        index = torch.from_numpy(positions)
        n = part.tokens.shape[1]
        whole.tokens[index, :n], whole.mask[index, :n] = part.tokens, part.mask
        whole.pooled[index], whole.z[index] = part.pooled, part.z


def cached(
    tower: Any, column: Column, path: Path, *, grid: tuple[int, int] | None, most: int, device: Any, on_progress: OnProgress = silent
) -> CachedColumn:
    """The column of a locked tower's tokens: computed once into ``path``, then read by memory map. A killed process's part of it stays.

    tower  module: inputs -> Features
    grid   (height, width) of the patch grid, or None; larger grids are average-pooled to at most ``most`` tokens
    """
    size = min(64, PART)

    @torch.inference_mode()
    def some(first: int) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        nonlocal size
        items = np.arange(first, min(first + size, len(column.row)))
        tokens: list[Any] = [None] * len(items)
        pooled: list[Any] = [None] * len(items)
        for positions, inputs in _ahead(lambda positions: column.inputs(items[positions]), _batches(column, items, BATCH["cpu"])):
            found = shrink(tower(move(inputs, device)), grid, most)
            told = found.map(lambda t: t.half() if t.is_floating_point() else t).to("cpu")
            for place, one, mask, summary in zip(positions, told.tokens.numpy(), told.mask.numpy(), told.pooled.numpy(), strict=True):
                tokens[place], pooled[place] = one[mask], summary
        on_progress(int(items[-1]) + 1, len(column.row), {})
        values = np.concatenate(tokens)
        size = min(2 * size, PART) if values.nbytes < PART_BYTES else max(1, size // 2)
        return np.array([len(t) for t in tokens]), {"tokens": values}, {"pooled": np.stack(pooled)}

    def write(folder: Path) -> None:
        tower.eval()
        ragged.write(folder, len(column.row), some)

    return CachedColumn(cache.folder(path, write, resumes=True), column.row, column.start)


def shrink(features: Features, grid: tuple[int, int] | None, most: int) -> Features:
    """Average-pools a patch grid to at most ``most`` tokens (a square side no larger than the grid's); special tokens stay in front."""
    if grid is None or (small := shrunk(grid, most)) == grid:
        return features
    patches = grid[0] * grid[1]
    special, patch = features.tokens[:, :-patches], features.tokens[:, -patches:]
    maps = patch.transpose(1, 2).reshape(len(patch), -1, *grid)
    pooled = torch.nn.functional.adaptive_avg_pool2d(maps.float(), small)
    tokens = torch.cat([special, pooled.flatten(2).transpose(1, 2)], 1)
    return Features(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device), features.pooled)


def shrunk(grid: tuple[int, int], most: int) -> tuple[int, int]:
    """(height, width) of the patch grid that ``shrink`` leaves of one."""
    side = int(most**0.5)
    return grid if grid[0] * grid[1] <= most else (min(side, grid[0]), min(side, grid[1]))
