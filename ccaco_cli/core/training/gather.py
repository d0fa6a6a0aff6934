"""Builds the batch of all processes from the batches of each, as the losses need it."""

from __future__ import annotations

import torch
from torch import Tensor

from ccaco_cli.core import distributed
from ccaco_cli.core.config import ParallelConfig
from ccaco_cli.core.model.aligner import Aligner
from ccaco_cli.core.types import Embedding, Features, LocalTokens, PairBatch


def gather_embeddings(embedding: Embedding, parallel: ParallelConfig) -> Embedding:
    """Embeddings of all processes, in rank order; of a single process, its argument."""
    if distributed.world() == 1:
        return embedding
    return embedding.map(  # type: ignore[no-any-return]
        lambda x: distributed.gather(x, with_grad=parallel.gather_with_grad)
    )


def gather_local_tokens(
    aligner: Aligner,
    modality: str,
    features: Features,
    sample_index: Tensor | None,
    rows: Tensor,
    pairs_per_process: int,
    parallel: ParallelConfig,
) -> LocalTokens:
    """Tokens for the cross branch of the given rows of the global batch, on every process.

    Only these rows are exchanged. Every process then runs the cross branch on all of them: the sub-batch is small, and
    so the loss is exact on every process, also with dropout.

    Args:
        features: tower outputs of this process.
        sample_index: row of ``features`` of each pair, where a sample serves several pairs (single process only); None
            = row i is pair i.
        rows: [R] int64, rows of the global batch, equal on every process.
        pairs_per_process: pairs of the batch of one process.
    """
    if distributed.world() == 1:
        return aligner.local_tokens(modality, features[rows if sample_index is None else sample_index[rows]])
    local_rows, position = distributed.row_owners(rows, pairs_per_process)
    local = aligner.local_tokens(modality, features[local_rows])
    tokens = distributed.gather(distributed.pad_to_longest(local.tokens), with_grad=parallel.gather_with_grad)
    mask = distributed.gather(distributed.pad_to_longest(local.mask.to(torch.uint8))).bool()
    return LocalTokens(tokens, mask)[position]  # type: ignore[no-any-return]


def query_rows(batch: PairBatch, parallel: ParallelConfig) -> slice | None:
    """The rows of the global batch whose contrastive loss this process computes (``--local-loss``); None = all."""
    if distributed.world() == 1 or not parallel.local_loss:
        return None
    rows = len(batch.group)
    return slice(distributed.rank() * rows, (distributed.rank() + 1) * rows)
