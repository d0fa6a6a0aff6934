"""Writes texts about samples with the decoder of a model, encoded exactly as for search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ccaco_cli.core import runtime
from ccaco_cli.core.data.loader import Column
from ccaco_cli.core.errors import ConfigError
from ccaco_cli.core.model.aligner import Aligner
from ccaco_cli.core.model.decoder import TextDecoder
from ccaco_cli.core.model.generation import Draft, GenerationOptions
from ccaco_cli.core.types import move


def require_decoder(aligner: Aligner, where: Any) -> TextDecoder:
    """The decoder of a model. Raises ConfigError: it has none."""
    if aligner.decoder is None:
        raise ConfigError(
            "this model has no text decoder, which writes captions",
            where=where,
            expected="a run that was trained with --gamma above 0",
            next="ccaco train --dataset NAME --gamma 1",
        )
    return aligner.decoder


@torch.no_grad()
def write_drafts(
    aligner: Aligner,
    column: Column,
    items: Any,
    options: GenerationOptions = GenerationOptions(),
    prefix_ids: Sequence[Sequence[int]] | None = None,
) -> list[list[Draft]]:
    """Writes texts about items of a column, in one batch; as ``TextDecoder.write`` returns them.

    Args:
        aligner: with a decoder; it is set to evaluation mode.
        column: inputs, or cached tokens, of ``Aligner.described``.
        items: [B] int64, positions in the column.
        prefix_ids: token ids that each text begins with.
    """
    decoder = require_decoder(aligner.eval(), "this model")
    device = next(aligner.parameters()).device
    with runtime.tensor_float32(device):
        features = aligner.encoder(aligner.described).features(move(column.inputs(items), device))
        return decoder.write(aligner.memory(features), features.mask, prefix_ids, options)
