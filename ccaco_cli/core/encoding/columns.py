"""How the items of a split reach the model: tokenised text, pixels, media decoded at each use, or cached tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ccaco_cli.core import distributed, runtime
from ccaco_cli.core.config import ModelConfig
from ccaco_cli.core.data import cache
from ccaco_cli.core.data.caption_words import CaptionWords
from ccaco_cli.core.data.loader import PIXELS_IN_CACHE, ClipColumn, Column, MediaColumn, PixelColumn, TextColumn
from ccaco_cli.core.data.question_words import QuestionColumn
from ccaco_cli.core.data.shards import PreparedData, Split
from ccaco_cli.core.encoding.token_cache import cached
from ccaco_cli.core.modalities import MODALITIES
from ccaco_cli.core.model.aligner import Aligner
from ccaco_cli.core.model.decoder import TextDecoder
from ccaco_cli.core.model.towers.tower import Tower
from ccaco_cli.core.types import OnProgress, no_progress


def columns(
    data: PreparedData,
    split: str,
    aligner: Aligner,
    towers: Mapping[str, Tower],
    config: ModelConfig,
    on_progress: OnProgress = no_progress,
) -> dict[str, Column]:
    """The items of both modalities of a split, by modality.

    The tokens of a locked tower come from the cache of the data set, which the first call fills.

    Args:
        towers: those of the aligner, by modality.
        on_progress: called while tokens are computed, with ``facts["what"]``.
    """
    device = next(aligner.parameters()).device

    def column(modality: str) -> Column:
        tower = towers[modality]
        lock = config.tower(modality).lock
        uncached = _uncached(data, split, tower, lock, on_progress)
        return _cached(data, split, tower, uncached, config, device, on_progress) if lock else uncached

    return {modality: column(modality) for modality in data.modalities}


def caption_words(data: PreparedData, split: str, tower: Tower) -> CaptionWords:
    """The captions of a split as token ids of a text tower."""
    column = _uncached(data, split, tower, True, no_progress)
    assert isinstance(column, TextColumn)
    return CaptionWords(column)


def decoder_words(
    data: PreparedData, split: Split, tower: Tower, decoder: TextDecoder, questions_per_pair: int
) -> tuple[CaptionWords, QuestionColumn | None]:
    """The texts that a decoder learns, whose words it knows from now on.

    Args:
        split: the training split.
        tower: of texts.
        questions_per_pair: ``loss.questions``.
    Returns:
        The captions, and the questions with answers; None = there are none.
    """
    captions = distributed.main_process_first(lambda: caption_words(data, split.name, tower))
    decoder.add_words(captions.token_ids(split.paired))
    if not questions_per_pair or tower.tokenizer is None:
        return captions, None
    ids = tower.tokenizer.text_ids()
    questions = QuestionColumn(split, tower.preprocess, (ids.start, ids.end), questions_per_pair, split.paired)
    if not len(questions):
        return captions, None
    decoder.add_words(questions.token_ids())
    return captions, questions


def _cached(
    data: PreparedData,
    split: str,
    tower: Tower,
    column: Column,
    config: ModelConfig,
    device: Any,
    on_progress: OnProgress,
) -> Column:
    """The tokens of a locked tower; ``column`` is read only where they are not cached yet."""
    modality = tower.modality
    max_tokens = config.tower(modality).cache_tokens if tower.grid else 0
    precision = str(runtime.locked_dtype(device)).removeprefix("torch.")
    name = cache.key(
        tower=tower.fingerprint,
        data=data.manifest.sha256,
        split=data.split(split).key,
        modality=modality,
        tokens=max_tokens,
        **({} if precision == "float32" else {"precision": precision}),
    )
    label = f"{modality} tokens of {split}"
    tokens = cached(
        tower.module,
        column,
        data.manifest.path / "cache" / name,
        grid=tower.grid,
        max_tokens=max_tokens,
        device=device,
        on_progress=lambda done, total, facts: on_progress(done, total, {**facts, "what": label}),
    )
    tokens.cut = getattr(column, "cut", 0)
    return tokens


def _uncached(data: PreparedData, split: str, tower: Tower, lock: bool, on_progress: OnProgress) -> Column:
    """The inputs of a tower."""
    part, modality = data.split(split), tower.modality
    name = cache.key(data=data.manifest.sha256, split=part.key, modality=modality, preprocess=repr(tower.preprocess))
    path = data.manifest.path / "cache" / name
    kind = MODALITIES[modality].kind
    if kind == "text":
        return TextColumn(part, tower.preprocess, path)
    if kind == "clip" and not lock:  # a locked tower decodes each clip only once, for its token cache
        return ClipColumn(part, modality, tower.preprocess, path, on_progress)
    if kind == "still" and tower.input_size is not None and max(tower.input_size) <= PIXELS_IN_CACHE:
        return PixelColumn(part, modality, tower.preprocess, path)
    return MediaColumn(part, modality, tower.preprocess)
