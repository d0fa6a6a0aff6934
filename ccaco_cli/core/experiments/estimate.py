"""``ccaco train --estimate``: what a step of a run would cost, and what to change when it does not fit; nothing is trained or written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ccaco_cli.core import runtime
from ccaco_cli.core.config import RunConfig
from ccaco_cli.core.config_io import override
from ccaco_cli.core.data import shards
from ccaco_cli.core.data.loader import MediaColumn, TextColumn
from ccaco_cli.core.data.shards import Split
from ccaco_cli.core.encoding.token_cache import pool_grid
from ccaco_cli.core.errors import ConfigError
from ccaco_cli.core.experiments.datasets import prepared
from ccaco_cli.core.experiments.request import TrainRequest, check
from ccaco_cli.core.model import aligner as aligners
from ccaco_cli.core.model.towers.tower import Tower
from ccaco_cli.core.training import cost
from ccaco_cli.core.types import Features, OnProgress, PairBatch, no_progress

Row = dict[str, Any]
SLACK = 1.25
"""What a process on a CPU holds for each byte of live tensors: the allocator keeps what was freed, convolutions need room to work."""


def estimate(
    asked: TrainRequest, *, data_root: Path = Path("data"), on_progress: OnProgress = no_progress
) -> list[Row]:
    """Parameters, operations and peak memory of one step at full size: every text as long as the longest caption of training.

    Returns  one row for the run as asked; where it does not fit, one more for each change that lowers the peak, in the flags to type
             {"what", "parameters" (that learn), "GFLOPs" (a step, both passes), "memory_MiB" (peak, as ``report`` shows it),
             "available_MiB", "fits"}
    Raises   ConfigError: the model is not trained by gradient
    """
    data = shards.open(prepared(asked.dataset, data_root, on_progress))
    config = asked.resolve(data)
    check(config, data)
    if config.method != "gradient":
        raise ConfigError(
            "only steps on pairs can be estimated",
            where=f"method = {config.method!r}",
            expected="an arm that takes such steps",
        )
    if config.domain.target and config.domain.loss != "none":
        raise ConfigError(
            "the target's samples and heads cannot be estimated",
            where=f"domain.loss = {config.domain.loss!r}",
            expected="--domain-loss none",
        )
    part = data.split("train")
    room = runtime.available_memory(runtime.device(config.device))
    rows = [_row("as asked", config, part, data.modalities, room)]
    for what, settings in {} if rows[0]["fits"] else _changes(config).items():
        on_progress(len(rows), None, {"what": f"estimate with {what}"})
        rows.append(_row(what, override(config, settings), part, data.modalities, room))
    return rows[:1] + [row for row in rows[1:] if row["memory_MiB"] < 0.98 * rows[0]["memory_MiB"]]


def _changes(config: RunConfig) -> dict[str, dict[str, Any]]:
    """What can be typed to need less, least harm first: flags -> settings."""
    batch, tried = config.optim.batch_size, dict[str, dict[str, Any]]()
    if not config.optim.grad_checkpointing:
        tried["--grad-checkpointing"] = {"optim.grad_checkpointing": True}
    if config.loss.beta > 0:
        half = max(2, min(config.loss.cross_batch or batch, batch) // 4)
        tried[f"--set loss.cross_batch={half}"] = {"loss.cross_batch": half}
        if config.model.fusion.attention == "dense" and config.model.fusion.kind in (
            "attended",
            "coattention",
            "unified",
            "early",
        ):
            tried["--attention window"] = {"model.fusion.attention": "window"}
    every = {key: value for settings in tried.values() for key, value in settings.items()}
    if len(tried) > 1:
        tried[" ".join(tried)] = every
    for share in (2, 4, 8):
        if batch // share >= 2:
            tried[f"--batch-size {batch // share}"] = {"optim.batch_size": batch // share}
    return tried


def _row(what: str, config: RunConfig, part: Split, modalities: tuple[str, str], room: int) -> Row:
    device = runtime.device(config.device)
    aligner, towers = aligners.build(config.model, config.loss, modalities)
    aligner.to(device)
    if config.optim.grad_checkpointing:
        aligner.set_grad_checkpointing()
    size = config.optim.batch_size
    captions = min(config.optim.captions, int(np.diff(part.caption_start).max()) if "text" in modalities else 1)
    a, b = (_inputs(part, towers[m], config, size * captions if m == "text" else size, device) for m in modalities)
    rows = torch.arange(size, device=device).repeat(captions)
    at = (None if m == "text" or captions == 1 else rows for m in modalities)
    found = cost.of_step(aligner, PairBatch(a, b, rows, rows, torch.zeros_like(rows), *at), config)
    held = sum(t.numel() * t.element_size() for t in (*aligner.parameters(), *aligner.buffers()))
    # a process holds its libraries too, and the model that was just built
    peak = found.peak if device.type == "cuda" else runtime.resident_memory() + round(SLACK * (found.peak - held))
    learned = sum(p.numel() for p in aligner.parameters() if p.requires_grad)
    facts = {
        "what": what,
        "parameters": learned,
        "GFLOPs": round(found.flops / 1e9, 1),
        "memory_MiB": round(peak / 2**20),
    }
    return facts | {"available_MiB": round(room / 2**20), "fits": peak < room}


def _inputs(part: Split, tower: Tower, config: RunConfig, size: int, device: Any) -> Any:
    """A full batch of one modality: one sample, as often as the batch is large, without copies."""
    settings = config.model.tower(tower.modality)
    if tower.modality == "text":
        column = TextColumn(part, tower.preprocess)
        one: Mapping[str, torch.Tensor] = column.inputs(np.array([int(np.argmax(np.asarray(column.length)))]))
        one = {name: one[name] for name in ("ids", "mask")}  # without lengths: a full batch is one call
    else:
        one = MediaColumn(part, tower.modality, tower.preprocess).inputs(np.array([0]))
    if settings.lock:  # the batch comes from the cache of tokens
        count = one["mask"].shape[1] if tower.modality == "text" else tower.tokens
        tokens = torch.zeros(1, count, tower.width, dtype=torch.float16)
        found = Features(tokens, torch.ones(1, count, dtype=torch.bool), tokens[:, 0])
        found = pool_grid(found, tower.grid, settings.cache_tokens)
        return found.map(lambda t: t.to(device).expand(size, *t.shape[1:]))
    return {name: t.to(device).expand(size, *t.shape[1:]) for name, t in one.items()}
