"""Which way the items of a split reach the model: tokenised text, pixels, media decoded on the fly, or cached tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ccaco_cli.core.config import ModelConfig
from ccaco_cli.core.data import cache
from ccaco_cli.core.data.loader import PIXELS_IN_CACHE, ClipColumn, Column, MediaColumn, PixelColumn, TextColumn
from ccaco_cli.core.data.shards import PairData
from ccaco_cli.core.encoding.token_cache import cached
from ccaco_cli.core.modalities import MODALITIES
from ccaco_cli.core.model.aligner import Aligner
from ccaco_cli.core.model.towers.tower import Tower
from ccaco_cli.core.types import OnProgress, no_progress


def columns(
    data: PairData,
    split: str,
    aligner: Aligner,
    towers: Mapping[str, Tower],
    config: ModelConfig,
    on_progress: OnProgress = no_progress,
) -> dict[str, Column]:
    """Both modalities' items of a split; tokens of locked towers come from the data set's cache (made on the first call).

    on_progress  told while tokens are computed, with ``facts["what"]``
    """
    device = next(aligner.parameters()).device
    return {
        m: _column(data, split, m, aligner.sides[m].tower, towers[m], config, device, on_progress)
        for m in data.modalities
    }


def _column(
    data: PairData,
    split: str,
    modality: str,
    module: Any,
    tower: Tower,
    config: ModelConfig,
    device: Any,
    on_progress: OnProgress,
) -> Column:
    settings = config.tower(modality)
    found = _raw(data, split, modality, tower, settings.lock, on_progress)
    if not settings.lock:
        return found
    most = settings.cache_tokens if tower.grid else 0
    name = cache.key(
        tower=tower.fingerprint, data=data.manifest.sha256, split=data.split(split).key, modality=modality, tokens=most
    )
    what = f"{modality} tokens of {split}"
    kept = cached(
        module,
        found,
        data.manifest.path / "cache" / name,
        grid=tower.grid,
        most=most,
        device=device,
        on_progress=lambda done, total, facts: on_progress(done, total, {**facts, "what": what}),
    )
    kept.cut = getattr(found, "cut", 0)
    return kept


def _raw(data: PairData, split: str, modality: str, tower: Tower, lock: bool, on_progress: OnProgress) -> Column:
    part = data.split(split)
    name = cache.key(data=data.manifest.sha256, split=part.key, modality=modality, preprocess=repr(tower.preprocess))
    path = data.manifest.path / "cache" / name
    kind = MODALITIES[modality].kind
    if kind == "text":
        return TextColumn(part, tower.preprocess, path)
    if kind == "clip":
        # of a locked tower the tokens are kept, and each clip is decoded for them once
        return (
            MediaColumn(part, modality, tower.preprocess)
            if lock
            else ClipColumn(part, modality, tower.preprocess, path, on_progress)
        )
    if kind == "still" and tower.input_size is not None and max(tower.input_size) <= PIXELS_IN_CACHE:
        return PixelColumn(part, modality, tower.preprocess, path)
    return MediaColumn(part, modality, tower.preprocess)
