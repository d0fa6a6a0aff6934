"""The loop around the step: epochs, accumulation, clipping, validation, best and last checkpoint, resume."""

from __future__ import annotations

import json
import math
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch

from ccaco_cli.core import distributed, interrupts, runtime
from ccaco_cli.core.config import RunConfig
from ccaco_cli.core.data.loader import PairDataset, PairPlan, load, part
from ccaco_cli.core.errors import ConfigError, DataError, LossInputError
from ccaco_cli.core.losses import balance as balances
from ccaco_cli.core.losses.balance import beta_at
from ccaco_cli.core.losses.total import check_losses, cross_loss, part_weights
from ccaco_cli.core.manifest import write_bytes
from ccaco_cli.core.model.adaptation import Adaptation
from ccaco_cli.core.model.aligner import Aligner
from ccaco_cli.core.training import checkpoint, parallel, sentinel, step
from ccaco_cli.core.training.optim import adamw, lr_at, set_lr
from ccaco_cli.core.types import OnProgress, PairBatch

Evaluate = Callable[[Aligner], Mapping[str, float]]
WEIGHTS = {"contrastive": "alpha", "cross": "beta", "taught": "teach", "domain": "domain_weight", "label": "label_weight"}
"""Loss part -> the name of its weight in ``metrics.jsonl``."""
STARVED = 0.1
"""Share of the time that may go into waiting for data before the log says so."""


@dataclass
class Cursor:
    """Where a run is; all of it is in ``state.pt``.

    batch           of this epoch, the next one
    seconds         of training (without validation); ``before`` = until this epoch, ``waited`` = of it, for data in this epoch
    cross           cross losses of this epoch, ``critics`` how often the domain classifiers were right in it
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    best: float = float("-inf")
    best_epoch: int = -1
    seconds: float = 0.0
    before: float = 0.0
    waited: float = 0.0
    cross: list[float] = field(default_factory=list)
    critics: list[float] = field(default_factory=list)
    oracle: float = float("-inf")
    oracle_epoch: int = -1
    warnings: list[sentinel.Warning] = field(default_factory=list)


@dataclass(frozen=True)
class Saving:
    """How often a run is saved, besides the end of each epoch: every so many ``minutes`` (0 = not); ``keep`` of the newest stay."""

    minutes: float = 0.0
    keep: int = 1


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
    parallel.check(config)
    balances.build(config.loss)
    if config.loss.beta > 0:
        check_losses(config.loss)
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
    saving: Saving | None = None,
    adaptation: Adaptation | None = None,
    oracle: Evaluate | None = None,
    on_progress: OnProgress,
) -> Fitted:
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
            "too few batches an epoch to accumulate", where=f"optim.accum_freq = {config.optim.accum_freq}", expected=f"at most {len(plan)}"
        )
    run = _Run(aligner, config, folder, saving or Saving(), resume, len(plan) // config.optim.accum_freq, adaptation)
    learns = adaptation.reads if adaptation is not None and config.loss.alpha == config.loss.beta == 0 else ()
    with interrupts.listening() as asked, run.log():
        while run.goes_on():
            batch = _epoch(run, data, plan, asked, on_progress)
            cross = run.cursor.cross
            chance = cross_loss(config.loss).chance if cross else None
            run.pause()
            with run.engine.whole():
                found = sentinel.inspect(aligner, batch, cross, chance(config.loss, config.optim.batch_size) if chance else None, learns)
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
    return Fitted(cursor.step, cursor.best_epoch, cursor.best, cursor.seconds, speed, memory, warnings, cursor.oracle_epoch)


def _epoch(run: _Run, data: PairDataset, plan: PairPlan, asked: interrupts.Asked, on_progress: OnProgress) -> PairBatch:
    """One epoch, or what is left of it; returns its last batch."""
    aligner, config, cursor, often = run.aligner, run.config, run.cursor, run.config.optim.accum_freq
    run.losses.train()
    begun = cursor.step - cursor.batch // often  # the step before this epoch
    entries = plan.epoch(cursor.epoch)[: min(run.updates, run.total - begun) * often][cursor.batch :]
    own = [part(entry, distributed.rank(), distributed.world()) for entry in entries]
    arriving = time.perf_counter()
    batches = iter(load(data, own, config.workers, config.seed * 1_000_003 + cursor.epoch))
    if not entries:  # stopped between its last step and its validation
        batch = data[part(plan.epoch(cursor.epoch)[cursor.batch - 1], distributed.rank(), distributed.world())].to(run.device)
    for number in range(len(entries)):
        batch = _next(batches)
        cursor.waited += time.perf_counter() - arriving
        set_lr(run.optimizer, lr_at(cursor.step, run.total, config.optim))
        beta = beta_at(config.loss, cursor.step / run.total)
        batch = batch.to(run.device)
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


class _Run:
    """What an unfinished run holds between its steps, and how it is saved."""

    def __init__(
        self,
        aligner: Aligner,
        config: RunConfig,
        folder: Path,
        saving: Saving,
        resume: bool,
        updates: int,
        adaptation: Adaptation | None = None,
    ):
        self.adaptation = adaptation
        self.aligner, self.config, self.folder, self.saving, self.updates = aligner, config, folder, saving, updates
        self.total = config.optim.steps or config.optim.epochs * updates
        self.device = next(aligner.parameters()).device
        self.cursor, self.checkpoints = Cursor(), folder / "checkpoints"
        found = checkpoint.latest(self.checkpoints) if resume else None
        if found:
            checkpoint.load_weights(found / checkpoint.WEIGHTS, aligner)
        self.balance = balances.build(config.loss).to(self.device)
        self.losses = step.Losses(aligner, config.loss, config.parallel, adaptation, self.balance)
        self.engine = parallel.engine(self.losses, config)
        heads = [] if adaptation is None else list(adaptation.parameters())
        self.parameters = [p for p in aligner.parameters() if p.requires_grad] + heads
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.optim.precision == "amp_fp16")
        self.optimizer = adamw(aligner, config.optim)
        for learned, decay in ((heads, config.optim.wd), (list(self.balance.parameters()), 0.0)):
            if learned:
                self.optimizer.add_param_group({"params": learned, "weight_decay": decay, "ratio": 1.0})
        self.generator = torch.Generator(self.device)
        self.reseed()
        if found:
            self._restore(checkpoint.load_state(found / checkpoint.STATE))
            if distributed.main():
                checkpoint.prune(self.checkpoints, self.saving.keep)
        self.began = self.saved = time.perf_counter()
        self.lines: IO[str] | None = None

    def _restore(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(parallel.spread(state.pop("optimizer"), self.optimizer))
        drawn = state.pop("drawn")
        checkpoint.set_generators(drawn[distributed.rank() if len(drawn) == distributed.world() else 0])
        self.scaler.load_state_dict(state.pop("scaler"))
        self.balance.load_state_dict(state.pop("balance"))
        heads = state.pop("adaptation")
        if self.adaptation is not None:
            self.adaptation.load_state_dict(heads)
        pairs = state.pop("pairs")
        self.cursor = Cursor(**state)
        if self.cursor.batch:
            self.generator.set_state(pairs)
        else:
            self.reseed()

    def reseed(self) -> None:
        """The generator of sub-batches and hard negatives is a function of seed and epoch, alike on every process."""
        self.generator.manual_seed(self.config.seed * 1_000_003 + self.cursor.epoch)

    @contextmanager
    def log(self) -> Iterator[None]:
        """The run's log, open: what a killed run logged after its last checkpoint is dropped, so that no step appears twice."""
        if not distributed.main():
            yield
            return
        path = self.folder / "metrics.jsonl"
        _cut_log(path, self.cursor)
        with path.open("a", buffering=1) as self.lines:  # a line at once: others read along
            yield

    def write(self, entry: Mapping[str, Any]) -> None:
        if self.lines is not None:
            self.lines.write(json.dumps(entry) + "\n")

    def goes_on(self) -> bool:
        cursor = self.cursor
        left = cursor.step < self.total or cursor.batch > 0  # an epoch that has begun ends with its validation, after the last step too
        return left and not _out_of_patience(cursor, self.config.optim.patience) and not sentinel.ended(cursor.warnings)

    def seconds(self) -> float:
        """Of training so far, validation left out."""
        return self.cursor.seconds + time.perf_counter() - self.began

    def pause(self) -> None:
        """Stops the clock of training."""
        self.cursor.seconds = self.seconds()
        self.began = time.perf_counter()

    def judge(self, found: Mapping[str, str], figures: Mapping[str, float], oracle: Mapping[str, float] | None = None) -> None:
        """Ends an epoch: what validation says of it (and the oracle), and whether it is the best so far."""
        cursor = self.cursor
        cursor.warnings = sentinel.renew(cursor.warnings, found, cursor.step)
        share = round(cursor.waited / max(cursor.seconds - cursor.before, 1e-9), 3)
        entry = {"step": cursor.step, "epoch": cursor.epoch, "validation": dict(figures), "waiting": share}
        if advice := starved(cursor.waited, cursor.seconds - cursor.before, self.config.workers):
            entry["advice"] = advice
        if oracle is not None:
            entry["oracle"] = dict(oracle)
            told = distributed.said(float(oracle[self.config.eval.select]))
            if told > cursor.oracle or cursor.oracle_epoch < 0:
                cursor.oracle, cursor.oracle_epoch = told, cursor.epoch
                self.keep("oracle")
        self.write(entry | ({"warnings": cursor.warnings} if cursor.warnings else {}))
        score = distributed.said(float(figures[self.config.eval.select]))
        if score > cursor.best or not math.isfinite(cursor.best):
            cursor.best, cursor.best_epoch = score, cursor.epoch
            self.keep("best")
        cursor.epoch += 1
        cursor.batch, cursor.waited, cursor.before, cursor.cross, cursor.critics = 0, 0.0, cursor.seconds, [], []
        self.reseed()
        self.began = time.perf_counter()

    def keep(self, name: str) -> None:
        """The weights of this moment under a name; all processes take part, the first one writes."""
        weights = checkpoint.weights_of(self.aligner)
        heads = None if self.adaptation is None else checkpoint.weights_of(self.adaptation)
        if distributed.main():
            checkpoint.save_best(self.checkpoints, weights, heads, name)

    def answer(self, asked: interrupts.Asked) -> None:
        """Between two steps: saves when it is time to, and ends the run when somebody asked for it."""
        due = 0 < self.saving.minutes * 60 <= time.perf_counter() - self.saved and distributed.main()
        code = int(distributed.largest(asked.signal or int(due)))
        if code:
            self.save()
        if code > 1:
            raise interrupts.ended(code, f"saved at step {self.cursor.step} of {self.total}; go on with --resume latest")

    def save(self) -> None:
        """A checkpoint of this moment. All processes take part, the first one writes."""
        self.pause()
        self.saved = self.began
        weights = checkpoint.weights_of(self.aligner)
        optimizer = parallel.gathered(self.optimizer.state_dict())
        mine = checkpoint.generators()
        every = {name: distributed.gather_states(state) for name, state in mine.items()}
        drawn = [{name: states[number] for name, states in every.items()} for number in range(distributed.world())]
        if self.lines is not None:
            self.lines.flush()
            os.fsync(self.lines.fileno())
            state = vars(self.cursor) | {"scaler": self.scaler.state_dict(), "pairs": self.generator.get_state()}
            state |= {"balance": self.balance.state_dict(), "adaptation": {} if self.adaptation is None else self.adaptation.state_dict()}
            checkpoint.save(self.checkpoints, weights, optimizer, drawn, self.saving.keep, **state)


def _losses(engine: parallel.Engine, batch: PairBatch, beta: float, generator: torch.Generator, progress: float) -> dict[str, torch.Tensor]:
    try:
        return engine(batch, beta, generator, progress)
    except LossInputError:  # embeddings that are not finite: as sick as a loss that is not
        return {"embeddings": torch.tensor(math.nan), "total": torch.tensor(math.nan)}


def starved(waited: float, spent: float, workers: int) -> str:
    """What to do about steps that wait for data more than a tenth of the time (seconds of an epoch); "" when they do not."""
    if waited <= STARVED * spent or spent < 5:  # of a shorter epoch the share says little
        return ""
    return f"waiting for data {100 * waited / spent:.0f} % of the time; next: --workers {workers + 2}, or prepare with --image-size"


def _out_of_patience(cursor: Cursor, patience: int) -> bool:
    return patience > 0 and cursor.epoch - 1 - cursor.best_epoch >= patience


def peak_memory(device: Any) -> float:
    """Peak memory in MiB: of the GPU where there is one, else of this process."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device)) / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10  # ru_maxrss counts bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _cut_log(path: Path, cursor: Cursor) -> None:
    """Drops what a killed run logged after its last checkpoint, so that no step and no validation appears twice."""
    if path.exists():
        kept = []
        for line in path.read_text("utf-8").splitlines(keepends=True):
            if line.endswith("\n"):
                entry = json.loads(line)
                if entry["step"] <= cursor.step and ("validation" not in entry or entry["epoch"] < cursor.epoch):
                    kept.append(line)
        write_bytes(path, "".join(kept if cursor.step else ()).encode())
