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
from ccaco_cli.core.model.aligner import Aligner
from ccaco_cli.core.model.token_pooling import pool_grid
from ccaco_cli.core.model.towers.precision import ReducedPrecision
from ccaco_cli.core.types import Embedding, EncodedSamples, LocalTokens, OnProgress, move, no_progress


@contextmanager
def reduced_precision(aligner: Aligner, dtype: torch.dtype) -> Iterator[None]:
    """Within it the towers of an aligner compute in ``dtype`` (``runtime.encoding_dtype``), on copies; heads and cross branch stay float32.

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
    local_tokens: bool = False,
    max_tokens: int = 0,
    batch_size: int = 0,
    share: bool = False,
    on_progress: OnProgress = no_progress,
) -> EncodedSamples:
    """Encodes items of a column, in evaluation mode.

    items    [n] int64, default all
    local_tokens  also compute the tokens that the cross branch needs (float16, padded to the longest)
    batch_size  items at a time, 0 = what suits the device (``BATCH``)
    share    the processes of a launcher divide the batches among them (all must call), and each gets the whole
    max_tokens  average-pool the patch grid to at most so many tokens for the cross branch (``pool_grid``); 0 = keep all
    Returns  EncodedSamples on the CPU in item order: vectors float32; tokens [n, N, D] float16, None unless ``local_tokens``
    """
    aligner.eval()
    device = next(aligner.parameters()).device
    chosen = np.arange(len(column.row)) if items is None else np.asarray(items)
    parts: list[tuple[np.ndarray[Any, Any], EncodedSamples]] = []
    done = 0
    rank, world = (distributed.rank(), distributed.world()) if share else (0, 1)
    size = batch_size or BATCH.get(device.type, BATCH["cuda"])
    mine = itertools.islice(_batches(column, chosen, size), rank, None, world)
    for positions, inputs in _ahead(lambda positions: column.inputs(chosen[positions]), mine):
        embedding, features = aligner.encode(modality, move(inputs, device))
        tokens = None
        if local_tokens:
            if max_tokens:
                features = pool_grid(features, aligner.sides[modality].grid, max_tokens)  # type: ignore[arg-type]
            prepared = aligner.local_tokens(modality, features)
            tokens = LocalTokens(prepared.tokens.half(), prepared.mask)
        parts.append((positions, EncodedSamples(embedding.map(torch.Tensor.float), tokens).to("cpu")))
        done += len(positions)
        on_progress(done, len(chosen), {})
    if world == 1:
        return _assemble(parts, len(chosen), *_sizes(parts))
    # a process without a batch takes the sizes from the others; each fills its own rows, and all other rows are zero
    sizes = (int(distributed.all_reduce_max(n)) for n in _sizes(parts))
    return _assemble(parts, len(chosen), *sizes).map(distributed.sum_disjoint)  # type: ignore[no-any-return]


def _sizes(parts: list[tuple[Any, EncodedSamples]]) -> tuple[int, int, int]:
    """(E of the embeddings, longest N and D of the tokens); zeros for what is not there."""
    tokens = [part.tokens.tokens.shape for _, part in parts if part.tokens is not None]
    embedding_size = parts[0][1].z.shape[1] if parts else 0
    return (embedding_size, max(shape[1] for shape in tokens), tokens[0][2]) if tokens else (embedding_size, 0, 0)


def _assemble(
    parts: list[tuple[Any, EncodedSamples]], count: int, embedding_size: int, longest: int, width: int
) -> EncodedSamples:
    """Parts of ``count`` items, each with the positions of its rows, as one record; tokens are padded to the longest."""
    z, pooled = torch.zeros(count, embedding_size), torch.zeros(count, embedding_size)
    tokens = None
    if longest:
        tokens = LocalTokens(
            torch.zeros(count, longest, width, dtype=torch.float16), torch.zeros(count, longest, dtype=torch.bool)
        )
    for positions, part in parts:
        index = torch.from_numpy(positions)
        z[index], pooled[index] = part.embedding.z, part.embedding.pooled
        if tokens is not None and part.tokens is not None:
            n = part.tokens.mask.shape[1]
            tokens.tokens[index, :n], tokens.mask[index, :n] = part.tokens.tokens, part.tokens.mask
    return EncodedSamples(Embedding(z, pooled), tokens)
