"""The loop around the step: epochs, accumulation, clipping, validation, best and last checkpoint, resume."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ccaco_cli.core import distributed, interrupts, runtime
from ccaco_cli.core.config import RunConfig
from ccaco_cli.core.data.loader import PairDataset, PairPlan, load, part
from ccaco_cli.core.errors import ConfigError, DataError, LossInputError
from ccaco_cli.core.losses import balance as balances
from ccaco_cli.core.losses.balance import beta_at
from ccaco_cli.core.losses.total import check_losses, cross_loss, part_weights
from ccaco_cli.core.model.adaptation import Adaptation
from ccaco_cli.core.model.aligner import Aligner
from ccaco_cli.core.training import augment, parallel, sentinel, step
from ccaco_cli.core.training.optim import lr_at, set_lr
from ccaco_cli.core.training.state import Saving, TrainingState, starved
from ccaco_cli.core.types import OnProgress, PairBatch

Evaluate = Callable[[Aligner], Mapping[str, float]]
WEIGHTS = {
    "contrastive": "alpha",
    "cross": "beta",
    "taught": "teach",
    "domain": "domain_weight",
    "label": "label_weight",
}
"""Loss part -> the name of its weight in ``metrics.jsonl``."""


@dataclass(frozen=True)
class TrainingSummary:
    """What a finished run says of itself. memory in MiB (peak), seconds without validation, warnings that held at the end."""

    steps: int
    best_epoch: int
    best: float
    seconds: float
    samples_per_second: float
    memory: float
    warnings: tuple[sentinel.Warning, ...] = ()
    oracle_epoch: int = -1


def check(config: RunConfig) -> None:
    """Raises ConfigError for settings that would only fail in the middle of a run."""
    parallel.check(config)
    augment.check(config.model)
    balances.build(config.loss)
    if config.loss.beta > 0:
        check_losses(config.loss)
    if config.optim.precision not in runtime.PRECISIONS:
        raise ConfigError("unknown precision", where=config.optim.precision, expected=" | ".join(runtime.PRECISIONS))
    budget = {"optim.epochs": config.optim.steps or config.optim.epochs, "optim.batch_size": config.optim.batch_size}
    for key, value in (
        budget | {"optim.accum_freq": config.optim.accum_freq, "optim.captions": config.optim.captions}
    ).items():
        if value < 1:
            raise ConfigError(f"{value} does not fit", where=key, expected="1 or more")
    if min(config.loss.alpha, config.loss.beta) < 0 or not (
        config.loss.alpha or config.loss.beta or config.domain.classify > 0
    ):
        raise ConfigError(
            "nothing to learn",
            where=f"loss.alpha {config.loss.alpha}, loss.beta {config.loss.beta}",
            expected="one above 0, none below",
        )
    step.terms(config.domain)
    if config.domain.weight < 0 or config.domain.stats not in ("source", "target"):
        raise ConfigError(
            f"weight {config.domain.weight} and stats {config.domain.stats!r} do not fit",
            where="domain",
            expected="weight 0 or more, stats source | target",
        )


def fit(
    aligner: Aligner,
    data: PairDataset,
    plan: PairPlan,
    config: RunConfig,
    folder: Path,
    evaluate: Evaluate,
    *,
    resume: bool = False,
    saving: Saving | None = None,
    adaptation: Adaptation | None = None,
    oracle: Evaluate | None = None,
    on_progress: OnProgress,
) -> TrainingSummary:
    """Trains an aligner; leaves ``checkpoints/best``, the last ``checkpoints/STEP-EPOCH`` and ``metrics.jsonl`` in ``folder``.

    A loss or gradient that is not finite ends the run before the weights are touched: what was best until then is kept.
    Several processes each read their part of every batch of the plan; the first one writes and speaks.

    evaluate  validation figures of the model as it is; ``config.eval.select`` chooses the best epoch
    resume    continue from the latest checkpoint, in the middle of an epoch too: on a CPU to the bit
    adaptation  heads of a run across domains; they learn with the aligner and lie beside its best weights
    oracle    figures on the target's validation split; they choose ``checkpoints/oracle`` and nothing else
    Raises    ConfigError: an epoch has fewer batches than ``accum_freq``; DataError: a full disk, a worker that died;
              Interrupted: asked to end, and saved
    """
    if len(plan) < config.optim.accum_freq:
        raise ConfigError(
            "too few batches an epoch to accumulate",
            where=f"optim.accum_freq = {config.optim.accum_freq}",
            expected=f"at most {len(plan)}",
        )
    run = TrainingState(
        aligner, config, folder, saving or Saving(), resume, len(plan) // config.optim.accum_freq, adaptation
    )
    learns = adaptation.reads if adaptation is not None and config.loss.alpha == config.loss.beta == 0 else ()
    with interrupts.listening() as asked, run.log():
        while run.goes_on():
            batch = _epoch(run, data, plan, asked, on_progress)
            cross = run.cursor.cross
            chance = cross_loss(config.loss).chance if cross else None
            run.pause()
            with run.engine.whole():
                found = sentinel.inspect(
                    aligner, batch, cross, chance(config.loss, config.optim.batch_size) if chance else None, learns
                )
                found |= sentinel.adversary(run.cursor.critics)
                figures = evaluate(aligner)
                told = None if oracle is None else oracle(aligner)
            waited, spent = run.cursor.waited, run.cursor.seconds - run.cursor.before
            if starved(waited, spent, config.workers):
                on_progress(run.cursor.step, run.total, {"waiting": waited / spent})
            run.judge(found, figures, told)
            run.save()
            run.answer(asked)
    cursor = run.cursor
    samples = cursor.step * config.optim.batch_size * config.optim.accum_freq
    speed = samples / max(cursor.seconds, 1e-9)
    memory = peak_memory(run.device)
    warnings = tuple(cursor.warnings)
    return TrainingSummary(
        cursor.step, cursor.best_epoch, cursor.best, cursor.seconds, speed, memory, warnings, cursor.oracle_epoch
    )


def _epoch(
    run: TrainingState, data: PairDataset, plan: PairPlan, asked: interrupts.StopSignal, on_progress: OnProgress
) -> PairBatch:
    """One epoch, or what is left of it; returns its last batch."""
    aligner, config, cursor, often = run.aligner, run.config, run.cursor, run.config.optim.accum_freq
    run.losses.train()
    begun = cursor.step - cursor.batch // often  # the step before this epoch
    entries = plan.epoch(cursor.epoch)[: min(run.updates, run.total - begun) * often][cursor.batch :]
    own = [part(entry, distributed.rank(), distributed.world()) for entry in entries]
    arriving = time.perf_counter()
    batches = iter(load(data, own, config.workers, config.seed * 1_000_003 + cursor.epoch))
    if not entries:  # stopped between its last step and its validation
        batch = data[part(plan.epoch(cursor.epoch)[cursor.batch - 1], distributed.rank(), distributed.world())].to(
            run.device
        )
    for number in range(len(entries)):
        batch = _next(batches)
        cursor.waited += time.perf_counter() - arriving
        set_lr(run.optimizer, lr_at(cursor.step, run.total, config.optim))
        beta = beta_at(config.loss, cursor.step / run.total)
        batch = augment.augment(batch.to(run.device), config.model, aligner.modalities, run.generator)
        last = (number + 1) % often == 0
        with nullcontext() if last else run.engine.adding():
            with runtime.autocast(config.optim.precision, run.device):
                parts = _losses(run.engine, batch, beta, run.generator, cursor.step / run.total)
            told = distributed.mean(parts)
            if sick := sentinel.stop(cursor.step + 1, told, 0.0):
                cursor.warnings.append(sick)
                break
            given = part_weights(config.loss, beta) | (run.adaptation.weights if run.adaptation is not None else {})
            weights = {name: torch.as_tensor(run.balance.weigh(name, weight)) for name, weight in given.items()}
            used = {WEIGHTS[name]: round(float(weight.detach()), 6) for name, weight in weights.items()}
            run.balance.observe(parts, given, step.shared(aligner))
            run.scaler.scale(parts["total"] / often).backward()  # type: ignore[no-untyped-call]
        cursor.batch += 1
        if last:
            run.engine.reduced()
            run.scaler.unscale_(run.optimizer)
            norm = parallel.clip(run.parameters, config.optim.grad_clip)
            # a scaler skips such steps itself, and lowers its scale
            if not run.scaler.is_enabled() and (sick := sentinel.stop(cursor.step + 1, {}, float(norm))):
                cursor.warnings.append(sick)
                break
            run.scaler.step(run.optimizer)
            run.scaler.update()
            run.optimizer.zero_grad(set_to_none=True)
            cursor.step += 1
            facts = {k: round(v.item(), 6) for k, v in told.items()} | used
            facts |= {"lr": lr_at(cursor.step - 1, run.total, config.optim), "grad_norm": round(float(norm), 4)}
            facts |= {"logit_scale": round(float(aligner.logit_scale().detach()), 4)}
            cursor.cross += [facts["cross"]] if "cross" in facts else []
            cursor.critics += [facts["domain_accuracy"]] if "domain_accuracy" in facts else []
            run.write({"step": cursor.step, "epoch": cursor.epoch, **facts})
            rate = cursor.step * config.optim.batch_size * often / run.seconds()
            on_progress(cursor.step, run.total, {k: facts[k] for k in parts} | {"samples/s": rate})
            run.answer(asked)
        arriving = time.perf_counter()
    return batch


def _next(batches: Iterator[PairBatch]) -> PairBatch:
    try:
        return next(batches)
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise DataError(
            f"a process that loads data died ({' '.join(str(error).split())[:100]})",
            expected="enough memory for every worker",
            next="the same command with --resume latest and fewer --workers",
        ) from None


def _losses(
    engine: parallel.Engine, batch: PairBatch, beta: float, generator: torch.Generator, progress: float
) -> dict[str, torch.Tensor]:
    try:
        return engine(batch, beta, generator, progress)
    except LossInputError:  # embeddings that are not finite: as sick as a loss that is not
        return {"embeddings": torch.tensor(math.nan), "total": torch.tensor(math.nan)}


def peak_memory(device: Any) -> float:
    """Peak memory in MiB: of the GPU where there is one, else of this process."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device)) / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10  # ru_maxrss counts bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
