"""Encodes the items of a column, in batches: the one path from inputs to embeddings and tokens."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ccaco_cli.core import distributed, runtime
from ccaco_cli.core.data.loader import Column
from ccaco_cli.core.encoding.batching import BATCH_SIZE, batch_positions, prefetch
from ccaco_cli.core.model.aligner import Aligner
from ccaco_cli.core.model.token_pooling import pool_grid
from ccaco_cli.core.model.towers.precision import ReducedPrecision
from ccaco_cli.core.types import Embedding, EncodedSamples, LocalTokens, OnProgress, move, no_progress

Array = np.ndarray[Any, Any]


def reduce_precision(aligner: Aligner, dtype: torch.dtype, *, keep: str = "") -> None:
    """Lets the towers of an aligner compute in ``dtype``, on copies of their weights; the rest stays float32.

    Locked towers stay float32, because the token cache of a data set holds what they compute in it. The cosine of two
    vectors changes by less than 1e-3.

    Args:
        keep: a modality whose tower stays float32.
    """
    for modality, side in aligner.sides.items():
        if dtype != torch.float32 and modality != keep and not side.config.lock:  # type: ignore[union-attr]
            side.tower = ReducedPrecision(side.tower, dtype)  # type: ignore[arg-type]


@contextmanager
def reduced_precision(aligner: Aligner, dtype: torch.dtype) -> Iterator[None]:
    """``reduce_precision`` for the time of a block."""
    towers = {side: side.tower for side in aligner.sides.values()}
    try:
        reduce_precision(aligner, dtype)
        yield
    finally:
        for side, tower in towers.items():
            side.tower = tower


@dataclass(frozen=True)
class EncodeOptions:
    """How items are encoded.

    Attributes:
        max_tokens: average-pool the patch grid to at most so many tokens for the cross branch; 0 = keep all.
        batch_size: items at a time; 0 = what suits the device (``BATCH_SIZE``).
        across_processes: the processes of a launcher divide the batches. All of them must call, and each gets all
            items.
    """

    max_tokens: int = 0
    batch_size: int = 0
    across_processes: bool = False


@torch.inference_mode()
def encode(
    aligner: Aligner,
    modality: str,
    column: Column,
    *,
    items: Any = None,
    local_tokens: bool = False,
    options: EncodeOptions = EncodeOptions(),
    on_progress: OnProgress = no_progress,
) -> EncodedSamples:
    """Encodes items of a column, in evaluation mode.

    Args:
        items: [n] int64, positions in the column; None = all.
        local_tokens: also compute the tokens for the cross branch, which has none of a further side.
    Returns:
        n samples on the CPU, in the order of ``items``: embeddings float32; tokens float16, padded to the longest.
    """
    aligner.eval()
    local_tokens = local_tokens and modality in aligner.modalities
    device = next(aligner.parameters()).device
    chosen = np.arange(len(column.row)) if items is None else np.asarray(items)
    rank, world = (distributed.rank(), distributed.world()) if options.across_processes else (0, 1)
    batches = batch_positions(column, chosen, options.batch_size or BATCH_SIZE.get(device.type, BATCH_SIZE["cuda"]))
    encoded: list[tuple[Array, EncodedSamples]] = []
    on_device: deque[tuple[Array, EncodedSamples]] = deque()
    done = 0
    for positions, inputs in prefetch(
        lambda positions: column.inputs(chosen[positions]), itertools.islice(batches, rank, None, world)
    ):
        with runtime.tensor_float32(device):
            samples = _encode_batch(
                aligner, modality, move(inputs, device), options.max_tokens if local_tokens else None
            )
        on_device.append((positions, samples))
        if len(on_device) > 1:  # a copy to the CPU waits for its batch: meanwhile a GPU computes the next one
            encoded.append(_on_cpu(*on_device.popleft()))
        done += len(positions)
        on_progress(done, len(chosen), {})
    encoded += [_on_cpu(*batch) for batch in on_device]
    longest = max((part.local_tokens.mask.shape[1] for _, part in encoded if local_tokens), default=0)
    if world > 1:
        longest = int(distributed.all_reduce_max(longest))
    result = _empty(len(chosen), aligner, longest if local_tokens else None)
    for positions, part in encoded:
        _write(result, torch.from_numpy(positions), part)
    # every process has filled the rows of its own batches, and all its other rows are zero
    return result if world == 1 else result.map(distributed.sum_disjoint)  # type: ignore[no-any-return]


def _encode_batch(aligner: Aligner, modality: str, inputs: Any, max_tokens: int | None) -> EncodedSamples:
    """Encodes one batch on its device; tokens as in ``EncodeOptions.max_tokens``, None = no tokens."""
    embedding, features = aligner.encode(modality, inputs)
    tokens = None
    if max_tokens is not None:
        if max_tokens:
            features = pool_grid(features, aligner.encoder(modality).grid, max_tokens)
        prepared = aligner.local_tokens(modality, features)
        tokens = LocalTokens(prepared.tokens.half(), prepared.mask)
    return EncodedSamples(embedding.map(torch.Tensor.float), tokens)


def _on_cpu(positions: Array, samples: EncodedSamples) -> tuple[Array, EncodedSamples]:
    return positions, samples.to("cpu")


def _empty(count: int, aligner: Aligner, longest: int | None) -> EncodedSamples:
    """Samples of zeros, with tokens unless ``longest`` is None."""
    size = aligner.embedding_size
    embedding = Embedding(torch.zeros(count, size), torch.zeros(count, size))
    if longest is None:
        return EncodedSamples(embedding)
    tokens = torch.zeros(count, longest, aligner.matcher.local_width, dtype=torch.float16)
    return EncodedSamples(embedding, LocalTokens(tokens, torch.zeros(count, longest, dtype=torch.bool)))


def _write(samples: EncodedSamples, rows: torch.Tensor, part: EncodedSamples) -> None:
    """Writes some rows in place; shorter tokens stay padded with zeros."""
    samples.embedding.z[rows], samples.embedding.pooled[rows] = part.embedding.z, part.embedding.pooled
    if part.tokens is not None:
        count = part.tokens.mask.shape[1]
        samples.local_tokens.tokens[rows, :count] = part.tokens.tokens
        samples.local_tokens.mask[rows, :count] = part.tokens.mask
