"""``ccaco train --estimate``: what a training step would cost, and what to change when it does not fit. Nothing is
trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ccaco_cli.core import runtime
from ccaco_cli.core.config import RunConfig
from ccaco_cli.core.config_io import override
from ccaco_cli.core.data import shards
from ccaco_cli.core.data.caption_words import CaptionWords
from ccaco_cli.core.data.loader import MediaColumn, TextColumn
from ccaco_cli.core.data.question_words import QuestionColumn
from ccaco_cli.core.data.shards import Split
from ccaco_cli.core.errors import ConfigError
from ccaco_cli.core.experiments.datasets import prepared
from ccaco_cli.core.experiments.request import TrainRequest, check
from ccaco_cli.core.experiments.start import add_updates
from ccaco_cli.core.model import aligner as aligners
from ccaco_cli.core.model.token_pooling import pool_grid
from ccaco_cli.core.model.towers.tower import Tower
from ccaco_cli.core.training import cost
from ccaco_cli.core.types import Features, OnProgress, PairBatch, move, no_progress

CPU_OVERHEAD = 1.25
"""Bytes that a process on a CPU holds per byte of live tensors: the allocator keeps freed memory, and convolutions need
buffers.
"""
NOTICEABLE = 0.98
"""A change is listed when the peak falls below this share of the original peak."""


@dataclass(frozen=True)
class StepEstimate:
    """The cost of one training step.

    Attributes:
        change: the flags that were changed, or "as asked".
        parameters: number of trained parameters.
        gflops: floating-point operations of forward and backward pass, in 10^9.
        memory_mib: peak memory in MiB, as ``report`` shows it.
        available_mib: memory of the device in MiB.
        fits: True when the peak is below the available memory.
    """

    change: str
    parameters: int
    gflops: float
    memory_mib: int
    available_mib: int
    fits: bool

    def as_dict(self) -> dict[str, Any]:
        """Column -> value, for tables, CSV and JSON."""
        return {
            "what": self.change,
            "parameters": self.parameters,
            "GFLOPs": self.gflops,
            "memory_MiB": self.memory_mib,
            "available_MiB": self.available_mib,
            "fits": self.fits,
        }


def estimate(
    request: TrainRequest, *, data_root: Path = Path("data"), on_progress: OnProgress = no_progress
) -> list[StepEstimate]:
    """Parameters, operations and peak memory of one step, with every text as long as the longest caption of training.

    Returns:
        The run as requested; where it does not fit, also each change of flags that lowers the peak.
    Raises:
        ConfigError: the model is not trained by gradient descent, or has a domain loss.
    """
    data = shards.open(prepared(request.dataset, data_root, on_progress))
    config = request.resolve(data)
    check(config, data)
    if config.method != "gradient":
        raise ConfigError(
            "only training by gradient descent can be estimated",
            where=f"method = {config.method!r}",
            expected="an arm that takes such steps",
        )
    if config.domain.target and config.domain.loss != "none":
        raise ConfigError(
            "the target's samples and heads cannot be estimated",
            where=f"domain.loss = {config.domain.loss!r}",
            expected="--domain-loss none",
        )
    split = data.split("train")
    available = runtime.available_memory(runtime.device(config.device))
    first = _estimate("as asked", config, split, data.modalities, available)
    others = []
    for number, (flags, settings) in enumerate(({} if first.fits else _changes(config)).items(), start=1):
        on_progress(number, None, {"what": f"estimate with {flags}"})
        others.append(_estimate(flags, override(config, settings), split, data.modalities, available))
    return [first, *(other for other in others if other.memory_mib < NOTICEABLE * first.memory_mib)]


def _changes(config: RunConfig) -> dict[str, dict[str, Any]]:
    """Flags that lower the memory -> their settings; first those that change the result least."""
    batch = config.optim.batch_size
    changes: dict[str, dict[str, Any]] = {}
    if not config.optim.grad_checkpointing:
        changes["--grad-checkpointing"] = {"optim.grad_checkpointing": True}
    if config.loss.beta > 0:
        cross_batch = max(2, min(config.loss.cross_batch or batch, batch) // 4)
        changes[f"--set loss.cross_batch={cross_batch}"] = {"loss.cross_batch": cross_batch}
        fusion = config.model.fusion
        if fusion.attention == "dense" and fusion.kind in ("attended", "coattention", "unified", "early"):
            changes["--attention window"] = {"model.fusion.attention": "window"}
    if len(changes) > 1:
        combined = {key: value for settings in changes.values() for key, value in settings.items()}
        changes[" ".join(changes)] = combined
    for divisor in (2, 4, 8):
        if batch // divisor >= 2:
            changes[f"--batch-size {batch // divisor}"] = {"optim.batch_size": batch // divisor}
    return changes


def _estimate(
    change: str, config: RunConfig, split: Split, modalities: tuple[str, str], available: int
) -> StepEstimate:
    device = runtime.device(config.device)
    aligner, towers = aligners.build(config.model, config.loss, modalities)
    add_updates(aligner, config)
    aligner.to(device)
    if config.optim.grad_checkpointing:
        aligner.set_grad_checkpointing()
    size = config.optim.batch_size
    captions = min(config.optim.captions, int(np.diff(split.caption_start).max()) if "text" in modalities else 1)
    a, b = (_inputs(split, towers[m], config, size * captions if m == "text" else size, device) for m in modalities)
    rows = torch.arange(size, device=device).repeat(captions)
    at_a, at_b = (None if m == "text" or captions == 1 else rows for m in modalities)
    words = questions = None
    if aligner.decoder is not None:
        texts = TextColumn(split, towers["text"].preprocess)
        captions_as_ids = CaptionWords(texts)
        aligner.decoder.add_words(captions_as_ids.token_ids(len(split)))
        words = captions_as_ids(np.full(len(rows), np.argmax(np.asarray(texts.length)))).to(device)
        if config.loss.questions:
            ids = towers["text"].tokenizer.text_ids()  # type: ignore[union-attr]
            ends, first = (ids.start, ids.end), min(size, len(split))
            column = QuestionColumn(split, towers["text"].preprocess, ends, config.loss.questions, first)
            if len(column):
                aligner.decoder.add_words(column.token_ids())
                longest = max(range(len(column)), key=lambda item: len(column.text(item)[0]))
                questions = column(np.full(len(rows) * config.loss.questions, longest)).to(device)
    batch = PairBatch(a, b, rows, rows, torch.zeros_like(rows), at_a, at_b, words, questions)
    step = cost.step_cost(aligner, batch, config)
    model_bytes = sum(t.numel() * t.element_size() for t in (*aligner.parameters(), *aligner.buffers()))
    peak = step.peak
    if device.type != "cuda":  # resident memory already holds the libraries and the model
        peak = runtime.resident_memory() + round(CPU_OVERHEAD * (step.peak - model_bytes))
    return StepEstimate(
        change,
        parameters=sum(p.numel() for p in aligner.parameters() if p.requires_grad),
        gflops=round(step.flops / 1e9, 1),
        memory_mib=round(peak / 2**20),
        available_mib=round(available / 2**20),
        fits=peak < available,
    )


def _inputs(split: Split, tower: Tower, config: RunConfig, size: int, device: Any) -> Any:
    """A full batch of one modality: one sample, repeated without copies."""
    settings = config.model.tower(tower.modality)
    sample: Mapping[str, torch.Tensor]
    if tower.modality == "text":
        column = TextColumn(split, tower.preprocess)
        sample = column.inputs(np.array([int(np.argmax(np.asarray(column.length)))]))
        sample = {name: sample[name] for name in ("ids", "mask")}  # without lengths, a full batch is one forward pass
    else:
        sample = MediaColumn(split, tower.modality, tower.preprocess).inputs(np.array([0]))
    if settings.lock:  # the batch comes from the token cache
        count = sample["mask"].shape[1] if tower.modality == "text" else tower.tokens
        tokens = torch.zeros(1, count, tower.width, dtype=torch.float16)
        features = Features(tokens, torch.ones(1, count, dtype=torch.bool), tokens[:, 0])
        features = pool_grid(features, tower.grid, settings.cache_tokens)
        return features.map(lambda t: t.to(device).expand(size, *t.shape[1:]))
    return {name: t.expand(size, *t.shape[1:]) for name, t in move(dict(sample), device).items()}
