"""From items to arrays: the encoder run over a column, in memory or into a token cache."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from ccaco_cli.core import distributed
from ccaco_cli.core.data.loader import Column
from ccaco_cli.core.encoding.batching import BATCH, _ahead, _batches
from ccaco_cli.core.encoding.token_cache import pool_grid
from ccaco_cli.core.model.aligner import Aligner
from ccaco_cli.core.model.towers.precision import ReducedPrecision
from ccaco_cli.core.types import Encoded, Features, OnProgress, move, no_progress


@contextmanager
def reduced_precision(aligner: Aligner, dtype: torch.dtype) -> Iterator[None]:
    """Within it the towers of an aligner compute in ``dtype`` (``runtime.encoding``), on copies; heads and cross branch stay float32.

    Vectors then differ from float32's by less than 1e-3 of cosine; float16 shards round by as much.
    """
    whole = {side: side.tower for side in aligner.sides.values()}
    try:
        if dtype != torch.float32:
            for side, tower in whole.items():
                side.tower = ReducedPrecision(tower, dtype)  # type: ignore[arg-type]
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
    on_progress: OnProgress = no_progress,
) -> Encoded:
    """Encodes items of a column, in evaluation mode.

    items    [n] int64, default all
    local    also keep the tokens that the cross branch needs (float16, padded to the longest)
    batch_size  items at a time, 0 = what suits the device (``BATCH``)
    share    the processes of a launcher divide the batches among them (all must call), and each gets the whole
    grid     (height, width) of the column's patch grid, when its tokens shall be average-pooled to at most ``most`` (``pool_grid``)
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
            small = pool_grid(Features(encoded.tokens, encoded.mask, encoded.pooled), grid, most)
            encoded = aligner.local(modality, Encoded(small.tokens, small.mask, encoded.pooled, encoded.z))
        tokens = encoded.tokens.half() if local else encoded.tokens[:, :0].half()
        parts.append(
            (
                positions,
                Encoded(
                    tokens, encoded.mask if local else encoded.mask[:, :0], encoded.pooled.float(), encoded.z.float()
                ).to("cpu"),
            )
        )
        done += len(positions)
        on_progress(done, len(chosen), {})
    return _gathered(parts, len(chosen)) if world == 1 else _joined(parts, len(chosen))


def _joined(parts: list[tuple[Any, Encoded]], count: int) -> Encoded:
    """``_gathered`` over all processes: each has filled its own rows, the others' are zero. A process without a batch learns the widths."""
    mine = (
        [max(e.tokens.shape[1] for _, e in parts), parts[0][1].tokens.shape[2], parts[0][1].z.shape[1]]
        if parts
        else [0, 0, 0]
    )
    longest, width, dim = (int(distributed.all_reduce_max(n)) for n in mine)
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
    tokens, mask = (
        torch.zeros(count, longest, width, dtype=torch.float16),
        torch.zeros(count, longest, dtype=torch.bool),
    )
    return Encoded(tokens, mask, torch.zeros(count, dim), torch.zeros(count, dim))


def _fill(whole: Encoded, parts: list[tuple[Any, Encoded]]) -> None:
    for positions, part in parts:
        index = torch.from_numpy(positions)
        n = part.tokens.shape[1]
        whole.tokens[index, :n], whole.mask[index, :n] = part.tokens, part.mask
        whole.pooled[index], whole.z[index] = part.pooled, part.z
