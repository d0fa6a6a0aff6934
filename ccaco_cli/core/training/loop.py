"""The loop around the step: epochs, accumulation, clipping, validation, best and last checkpoint, resume."""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ccaco_cli.core import runtime
from ccaco_cli.core.config import RunConfig
from ccaco_cli.core.data.loader import PairDataset, PairPlan, load
from ccaco_cli.core.errors import ConfigError, LossInputError
from ccaco_cli.core.losses import balance as balances
from ccaco_cli.core.losses.balance import Balance, beta_at
from ccaco_cli.core.losses.total import cross_loss
from ccaco_cli.core.model.adaptation import Adaptation
from ccaco_cli.core.model.aligner import Aligner
from ccaco_cli.core.training import checkpoint, sentinel, step
from ccaco_cli.core.training.optim import adamw, lr_at, set_lr
from ccaco_cli.core.types import OnProgress, PairBatch

Evaluate = Callable[[Aligner], Mapping[str, float]]
WEIGHTS = {"contrastive": "alpha", "cross": "beta", "domain": "domain_weight", "label": "label_weight"}
"""Loss part -> the name of its weight in ``metrics.jsonl``."""


@dataclass
class Cursor:
    """Where a run is; all of it is in ``state.pt``."""

    step: int = 0
    epoch: int = 0
    best: float = float("-inf")
    best_epoch: int = -1
    seconds: float = 0.0
    oracle: float = float("-inf")
    oracle_epoch: int = -1
    warnings: list[sentinel.Warning] = field(default_factory=list)


@dataclass(frozen=True)
class Fitted:
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
    balances.build(config.loss)
    if config.loss.beta > 0:
        cross_loss(config.loss)
    if config.optim.precision not in runtime.PRECISIONS:
        raise ConfigError("unknown precision", where=config.optim.precision, expected=" | ".join(runtime.PRECISIONS))
    budget = {"optim.epochs": config.optim.steps or config.optim.epochs, "optim.batch_size": config.optim.batch_size}
    for key, value in (budget | {"optim.accum_freq": config.optim.accum_freq}).items():
        if value < 1:
            raise ConfigError(f"{value} does not fit", where=key, expected="1 or more")
    if min(config.loss.alpha, config.loss.beta) < 0 or not (config.loss.alpha or config.loss.beta or config.domain.classify > 0):
        raise ConfigError(
            "nothing to learn", where=f"loss.alpha {config.loss.alpha}, loss.beta {config.loss.beta}", expected="one above 0, none below"
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
    adaptation: Adaptation | None = None,
    oracle: Evaluate | None = None,
    on_progress: OnProgress,
) -> Fitted:
    """Trains an aligner; leaves ``checkpoints/best``, ``checkpoints/last`` and ``metrics.jsonl`` in ``folder``.

    A loss or gradient that is not finite ends the run before the weights are touched: what was best until then is kept.

    evaluate  validation figures of the model as it is; ``config.eval.select`` chooses the best epoch
    resume    continue from ``checkpoints/last``
    adaptation  heads of a run across domains; they learn with the aligner and lie beside its best weights
    oracle    figures on the target's validation split; they choose ``checkpoints/oracle`` and nothing else
    Raises    ConfigError: an epoch has fewer batches than ``accum_freq``
    """
    if len(plan) < config.optim.accum_freq:
        raise ConfigError(
            "too few batches an epoch to accumulate", where=f"optim.accum_freq = {config.optim.accum_freq}", expected=f"at most {len(plan)}"
        )
    device = next(aligner.parameters()).device
    scaler = torch.amp.GradScaler(device.type, enabled=config.optim.precision == "amp_fp16")
    optimizer = adamw(aligner, config.optim)
    learned = list(aligner.parameters())
    if adaptation is not None and (heads := list(adaptation.parameters())):
        optimizer.add_param_group({"params": heads, "weight_decay": config.optim.wd, "ratio": 1.0})
        learned += heads
    balance = balances.build(config.loss).to(device)
    if variances := list(balance.parameters()):
        optimizer.add_param_group({"params": variances, "weight_decay": 0.0, "ratio": 1.0})
    cursor = Cursor()
    if resume:
        checkpoint.load_weights(folder / "checkpoints/last" / checkpoint.WEIGHTS, aligner)
        state = checkpoint.load_state(folder / "checkpoints/last" / checkpoint.STATE, optimizer)
        scaler.load_state_dict(state.pop("scaler"))
        balance.load_state_dict(state.pop("balance"))
        heads_then = state.pop("adaptation")
        if adaptation is not None:
            adaptation.load_state_dict(heads_then)
        cursor = Cursor(**state)
    learns = adaptation.reads if adaptation is not None and config.loss.alpha == config.loss.beta == 0 else ()
    updates = len(plan) // config.optim.accum_freq
    total = config.optim.steps or config.optim.epochs * updates
    _cut_log(folder / "metrics.jsonl", cursor.step)
    with (folder / "metrics.jsonl").open("a", buffering=1) as log:  # a line at once: others read along
        while cursor.step < total and not _out_of_patience(cursor, config.optim.patience) and not sentinel.ended(cursor.warnings):
            aligner.train()
            if adaptation is not None:
                adaptation.train()
            entries = plan.epoch(cursor.epoch)[: min(updates, total - cursor.step) * config.optim.accum_freq]
            generator = torch.Generator(device).manual_seed(config.seed * 1_000_003 + cursor.epoch)
            clock, waited = time.perf_counter(), 0.0
            cross_losses: list[float] = []
            accuracies: list[float] = []
            arriving = time.perf_counter()
            for number, batch in enumerate(load(data, entries, config.workers)):
                waited += time.perf_counter() - arriving
                set_lr(optimizer, lr_at(cursor.step, total, config.optim))
                beta = beta_at(config.loss, cursor.step / total)
                batch = batch.to(device)
                with runtime.autocast(config.optim.precision, device):
                    parts = _losses(aligner, batch, config, beta, generator, adaptation, cursor.step / total, balance)
                if sick := sentinel.stop(cursor.step + 1, parts, 0.0):
                    cursor.warnings.append(sick)
                    break
                given = {"contrastive": config.loss.alpha, "cross": beta} | (adaptation.weights if adaptation is not None else {})
                used = {WEIGHTS[name]: round(float(balance.weigh(name, weight)), 6) for name, weight in given.items()}
                balance.observe(parts, given, step.shared(aligner))
                scaler.scale(parts["total"] / config.optim.accum_freq).backward()  # type: ignore[no-untyped-call]
                if (number + 1) % config.optim.accum_freq == 0:
                    scaler.unscale_(optimizer)
                    norm = torch.nn.utils.clip_grad_norm_(learned, config.optim.grad_clip or float("inf"))
                    # a scaler skips such steps itself, and lowers its scale
                    if not scaler.is_enabled() and (sick := sentinel.stop(cursor.step + 1, {}, float(norm))):
                        cursor.warnings.append(sick)
                        break
                    scaler.step(optimizer)
                    scaler.update()
                    optimizer.zero_grad(set_to_none=True)
                    cursor.step += 1
                    facts = {k: round(v.item(), 6) for k, v in parts.items()} | used
                    facts |= {"lr": lr_at(cursor.step - 1, total, config.optim), "grad_norm": round(float(norm), 4)}
                    facts |= {"logit_scale": round(float(aligner.logit_scale().detach()), 4)}
                    cross_losses += [facts["cross"]] if "cross" in facts else []
                    accuracies += [facts["domain_accuracy"]] if "domain_accuracy" in facts else []
                    log.write(json.dumps({"step": cursor.step, "epoch": cursor.epoch, **facts}) + "\n")
                    rate = cursor.step * config.optim.batch_size * config.optim.accum_freq / (cursor.seconds + time.perf_counter() - clock)
                    on_progress(cursor.step, total, {k: facts[k] for k in parts} | {"samples/s": rate})
                arriving = time.perf_counter()
            spent = time.perf_counter() - clock
            cursor.seconds += spent
            cursor.epoch += 1
            chance = cross_loss(config.loss).chance if cross_losses else None
            found = sentinel.inspect(aligner, batch, cross_losses, chance(config.loss, config.optim.batch_size) if chance else None, learns)
            cursor.warnings = sentinel.renew(cursor.warnings, found | sentinel.adversary(accuracies), cursor.step)
            figures = evaluate(aligner)
            entry = {"step": cursor.step, "epoch": cursor.epoch - 1, "validation": dict(figures), "waiting": round(waited / spent, 3)}
            if oracle is not None:
                told = dict(oracle(aligner))
                entry["oracle"] = told
                if (score := float(told[config.eval.select])) > cursor.oracle or cursor.oracle_epoch < 0:
                    cursor.oracle, cursor.oracle_epoch = score, cursor.epoch - 1
                    _keep(folder / "checkpoints/oracle", aligner, adaptation)
            log.write(json.dumps(entry | ({"warnings": cursor.warnings} if cursor.warnings else {})) + "\n")
            score = float(figures[config.eval.select])
            if score > cursor.best or not math.isfinite(cursor.best):
                cursor.best, cursor.best_epoch = score, cursor.epoch - 1
                _keep(folder / "checkpoints/best", aligner, adaptation)
            heads_now = {} if adaptation is None else adaptation.state_dict()
            state = {"scaler": scaler.state_dict(), "adaptation": heads_now, "balance": balance.state_dict(), **vars(cursor)}
            checkpoint.save_both(folder / "checkpoints/last", aligner, optimizer, **state)
    samples = cursor.step * config.optim.batch_size * config.optim.accum_freq
    speed = samples / max(cursor.seconds, 1e-9)
    warnings, memory = tuple(cursor.warnings), peak_memory(device)
    return Fitted(cursor.step, cursor.best_epoch, cursor.best, cursor.seconds, speed, memory, warnings, cursor.oracle_epoch)


def _keep(folder: Path, aligner: Aligner, adaptation: Adaptation | None) -> None:
    """The weights of a chosen epoch."""
    checkpoint.save_weights(folder / checkpoint.WEIGHTS, aligner)
    if adaptation is not None:
        checkpoint.save_weights(folder / checkpoint.HEADS, adaptation)


def _losses(
    aligner: Aligner,
    batch: PairBatch,
    config: RunConfig,
    beta: float,
    generator: torch.Generator,
    adaptation: Adaptation | None,
    progress: float,
    balance: Balance,
) -> dict[str, torch.Tensor]:
    try:
        return step.losses(aligner, batch, config.loss, beta, generator, adaptation, progress, balance)
    except LossInputError:  # embeddings that are not finite: as sick as a loss that is not
        return {"embeddings": torch.tensor(math.nan), "total": torch.tensor(math.nan)}


def _out_of_patience(cursor: Cursor, patience: int) -> bool:
    return patience > 0 and cursor.epoch - 1 - cursor.best_epoch >= patience


def peak_memory(device: Any) -> float:
    """Peak memory in MiB: of the GPU where there is one, else of this process."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device)) / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10  # ru_maxrss counts bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _cut_log(path: Path, step_done: int) -> None:
    """Drops what a killed run logged after its last checkpoint, so that no step appears twice."""
    if path.exists():
        kept = [
            line
            for line in path.read_text("utf-8").splitlines(keepends=True)
            if line.endswith("\n") and json.loads(line)["step"] <= step_done
        ]
        path.write_text("".join(kept) if step_done else "", "utf-8")
