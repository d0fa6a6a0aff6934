"""The training loop: epochs, gradient accumulation, clipping, validation, checkpoints, resuming."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ccaco_cli.core import distributed, runtime
from ccaco_cli.core.config import RunConfig
from ccaco_cli.core.data.gpu_decoding import decoded
from ccaco_cli.core.data.loader import PairDataset, PairPlan, count_samples, load, part
from ccaco_cli.core.errors import ConfigError, DataError, LossInputError
from ccaco_cli.core.interrupts import StopSignal, catch_stop_signals
from ccaco_cli.core.losses.balance import beta_at
from ccaco_cli.core.losses.parts import LOSS_PARTS, TOTAL, part_weights
from ccaco_cli.core.memory import PeakMemory
from ccaco_cli.core.model.adaptation import Adaptation
from ccaco_cli.core.model.aligner import Aligner
from ccaco_cli.core.training import checkpoint, health_checks, parallel, step
from ccaco_cli.core.training.augment import augment
from ccaco_cli.core.training.checkpoint_saver import CheckpointOptions, CheckpointSaver
from ccaco_cli.core.training.device_batches import device_batches, worker_count
from ccaco_cli.core.training.health_checks import HealthWarning
from ccaco_cli.core.training.metrics_log import MetricsLog
from ccaco_cli.core.training.optim import set_lr
from ccaco_cli.core.training.state import TrainingState
from ccaco_cli.core.types import OnProgress, PairBatch, no_progress

Evaluate = Callable[[Aligner], Mapping[str, float]]
BEFORE_TRAINING = -1
"""The epoch of the validation before the first step, and the best epoch where training improved nothing."""
MAX_WAITING = 0.1
"""Fraction of the training time that may be spent waiting for data without a warning."""


@dataclass(frozen=True)
class TrainingData:
    """The samples of a run and the batches of each epoch."""

    dataset: PairDataset
    plan: PairPlan


@dataclass(frozen=True)
class TrainingCallbacks:
    """What the training loop calls.

    Attributes:
        evaluate: validation figures of the model; ``config.eval.select`` names the one that chooses the best epoch.
        evaluate_oracle: figures on the target's validation split; they choose ``checkpoints/oracle`` only.
        report_progress: called after every step.
    """

    evaluate: Evaluate
    evaluate_oracle: Evaluate | None = None
    report_progress: OnProgress = no_progress


@dataclass(frozen=True)
class TrainingSummary:
    """Facts of a finished run.

    Attributes:
        best: highest validation figure; ``best_epoch`` is its epoch, -1 = the pretrained model before the first step.
        seconds: training time without validation.
        samples_per_second: samples that were in the batches, per second of training; a sample with several captions
            counts once.
        memory: peak in MiB (``PeakMemory``), without the pages of mapped files such as cached tokens.
        warnings: health warnings that hold at the end.
        epochs: epochs that were trained, over all stages.
        oracle_epoch: best epoch on the target's validation split; -1 = none.
    """

    steps: int
    best_epoch: int
    best: float
    seconds: float
    samples_per_second: float
    memory: float
    warnings: tuple[HealthWarning, ...] = ()
    oracle_epoch: int = -1
    epochs: int = 0


def fit(
    aligner: Aligner,
    data: TrainingData,
    config: RunConfig,
    folder: Path,
    callbacks: TrainingCallbacks,
    adaptation: Adaptation | None = None,
    options: CheckpointOptions | None = None,
) -> TrainingSummary:
    """Trains an aligner; writes ``checkpoints/best``, the last ``checkpoints/STEP-EPOCH`` and ``metrics.jsonl``.

    A loss or gradient that is not finite ends the run before the weights are changed. The best weights so far are kept.
    Of several processes each reads its part of every batch; the main process writes files and reports progress.

    Args:
        aligner: on its device; the result of the last step when the run ends.
        data: samples and the batches of each epoch.
        folder: the run folder.
        callbacks: validation and progress.
        adaptation: heads of a run across domains; they are trained and saved with the aligner.
        options: when to save, and whether to continue from the latest checkpoint (on a CPU exact to the bit, also in
            mid-epoch).
    Raises:
        ConfigError: an epoch has fewer batches than ``accum_freq``.
        DataError: the disk is full, or a data loader process died.
        Interrupted: a stop signal arrived; the state is saved.
    """
    options = options or CheckpointOptions()
    checkpoints = folder / "checkpoints"
    accum_freq = config.optim.accum_freq
    if len(data.plan) < accum_freq:
        raise ConfigError(
            "too few batches an epoch to accumulate",
            where=f"optim.accum_freq = {accum_freq}",
            expected=f"at most {len(data.plan)}",
        )
    resume_from = checkpoint.latest(checkpoints) if options.resume else None
    state = TrainingState(aligner, config, len(data.plan) // accum_freq, adaptation, resume_from, options.stage)
    with (
        PeakMemory(state.device) as peak,
        catch_stop_signals() as stop_signal,
        MetricsLog.open(folder / "metrics.jsonl", state.cursor) as log,
    ):
        saver = CheckpointSaver(checkpoints, state, log, options)
        trainer = Trainer(state, data, callbacks, log, saver, stop_signal)
        if config.model.spec and state.at_start:
            trainer.validate_start()
        while not state.finished:
            batch = trainer.train_epoch()
            trainer.validate(batch)
            saver.save()
            saver.save_if_due(stop_signal)
    return _summary(state, peak)


@dataclass
class Trainer:
    """Trains and validates single epochs."""

    state: TrainingState
    data: TrainingData
    callbacks: TrainingCallbacks
    log: MetricsLog
    saver: CheckpointSaver
    stop_signal: StopSignal
    metrics: list[dict[str, Tensor]] = field(default_factory=list)
    """Losses and metrics of the batches since the last update."""

    @property
    def workers(self) -> int:
        """Processes that load data."""
        return worker_count(self.state.config.workers, self.state.device)

    def train_epoch(self) -> PairBatch:
        """Trains one epoch, or what remains of it; returns its last batch."""
        state, cursor, config = self.state, self.state.cursor, self.state.config
        state.losses.train()
        entries = self._remaining_entries()
        local_entries = [part(entry, distributed.rank(), distributed.world()) for entry in entries]
        waiting_since = time.perf_counter()
        seed = config.seed * 1_000_003 + cursor.epoch
        on_gpu = state.device.type == "cuda"
        loaded = load(self.data.dataset, local_entries, self.workers, seed, pin_memory=on_gpu)
        columns = (self.data.dataset.a, self.data.dataset.b)
        decode = partial(decoded, columns=columns, device=state.device)
        batches = device_batches(loaded, state.device, decode)
        if not entries:  # stopped between the last step and its validation
            last_entry = self.data.plan.epoch(cursor.epoch)[cursor.batch - 1]
            batch = decode(self.data.dataset[part(last_entry, distributed.rank(), distributed.world())])
            batch = batch.to(state.device)
        for number, entry in enumerate(entries, start=1):
            batch = _next_batch(batches)
            cursor.waiting += time.perf_counter() - waiting_since
            cursor.samples += count_samples(entry, distributed.world())
            batch = augment(batch, config.model, state.aligner.modalities, state.generator)
            if not self._train_batch(batch, update=number % config.optim.accum_freq == 0):
                break
            waiting_since = time.perf_counter()
        self._report()
        return batch

    def _remaining_entries(self) -> list[Any]:
        """Batches of the plan that remain in this epoch: full updates only, and none beyond the last step."""
        state, cursor, accum_freq = self.state, self.state.cursor, self.state.config.optim.accum_freq
        epoch_start = cursor.step - cursor.batch // accum_freq
        updates = min(state.updates_per_epoch, state.total_steps - epoch_start)
        return self.data.plan.epoch(cursor.epoch)[: updates * accum_freq][cursor.batch :]

    def _train_batch(self, batch: PairBatch, *, update: bool) -> bool:
        """Adds the gradients of a batch, and updates the weights after the last batch of an update.

        Returns:
            False if the run must end, since a loss or gradient is not finite.
        """
        state, cursor, config = self.state, self.state.cursor, self.state.config
        progress = state.progress()
        beta = beta_at(config.loss, progress)
        with nullcontext() if update else state.engine.accumulate():
            try:
                with runtime.autocast(config.optim.precision, state.device):
                    losses = state.engine(batch, beta, state.generator, progress)
            except LossInputError:  # embeddings that are not finite are treated like such a loss
                nan = torch.tensor(math.nan)
                return not self._must_end([{"embeddings": nan, TOTAL: nan}])
            self.metrics.append(distributed.mean(losses))
            head_weights = {} if state.adaptation is None else state.adaptation.weights
            weights = part_weights(config.loss, beta, head_weights)
            logged_weights = {}
            for name, weight in weights.items():
                scaled = state.balance.scaled_weight(name, weight)
                logged_weights[LOSS_PARTS[name].weight_key] = scaled if isinstance(scaled, Tensor) else round(scaled, 6)
            state.balance.observe(losses, weights, step.shared_parameters(state.aligner))
            state.scaler.scale(losses[TOTAL] / config.optim.accum_freq).backward()  # type: ignore[no-untyped-call]
        cursor.batch += 1
        return not update or self._update(logged_weights)

    def _update(self, logged_weights: Mapping[str, Tensor | float]) -> bool:
        """Updates the weights and logs the step; False if a loss or gradient is not finite.

        This check is the only place of a step that waits for a GPU; the log waits once for several steps.
        """
        state, cursor, optim = self.state, self.state.cursor, self.state.config.optim
        metrics, self.metrics = self.metrics, []
        lr = state.learning_rate()
        set_lr(state.optimizer, lr)
        state.engine.reduce_remaining()
        state.scaler.unscale_(state.optimizer)
        norm = parallel.clip_gradients(state.clipped_parameters, optim.grad_clip)
        # an enabled scaler skips steps with such gradients itself, and lowers its scale
        if self._must_end([*metrics, {} if state.scaler.is_enabled() else {"gradients": norm}]):
            return False
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.optimizer.zero_grad(set_to_none=True)
        if state.average is not None:
            state.average.update()
        cursor.step += 1
        settings = {**logged_weights, "lr": lr, "grad_norm": norm, "logit_scale": state.aligner.logit_scale()}
        self.log.add_step({"step": cursor.step, "epoch": cursor.epoch, **metrics[-1], **settings}, metrics[-1].keys())
        if self.log.reading_is_due:
            self._report()
        self.saver.save_if_due(self.stop_signal)
        return True

    def _report(self) -> None:
        """Reads the metrics of the steps since the last report, writes them to the log, and reports progress."""
        state, cursor = self.state, self.state.cursor
        if values := self.log.read_steps():
            speed = cursor.samples / max(state.training_seconds(), 1e-9)
            self.callbacks.report_progress(cursor.step, state.total_steps, {**values, "samples/s": speed})

    def _must_end(self, values: Sequence[Mapping[str, Tensor]]) -> bool:
        cursor = self.state.cursor
        warning = health_checks.not_finite(cursor.step + 1, values)
        cursor.warnings += [warning] if warning else []
        return warning is not None

    def validate_start(self) -> None:
        """Validates a pretrained model before the first step: it is the first candidate for the best weights."""
        state = self.state
        with state.engine.full_parameters():
            figures, oracle = self._evaluate()
        self.log.write({"step": 0, "epoch": BEFORE_TRAINING, "validation": figures})
        self._save_if_best(figures, oracle, BEFORE_TRAINING)
        state.start_clock()

    def validate(self, batch: PairBatch) -> None:
        """Ends an epoch: health checks, validation figures, log entry, best weights."""
        with self.state.averaged_weights():
            self._validate_epoch(batch)

    def _validate_epoch(self, batch: PairBatch) -> None:
        state, cursor = self.state, self.state.cursor
        state.stop_clock()
        with state.engine.full_parameters():
            problems = self._check_health(batch)
            figures, oracle = self._evaluate()
        cursor.warnings = health_checks.update_warnings(cursor.warnings, problems, cursor.step)
        entry = {"step": cursor.step, "epoch": cursor.epoch, "validation": figures}
        entry["waiting"] = round(cursor.waiting / max(cursor.epoch_seconds, 1e-9), 3)
        if advice := waiting_advice(cursor.waiting, cursor.epoch_seconds, self.workers):
            entry["advice"] = advice
            facts = {"waiting": cursor.waiting / cursor.epoch_seconds}
            self.callbacks.report_progress(cursor.step, state.total_steps, facts)
        entry |= {} if oracle is None else {"oracle": oracle}
        self.log.write(entry | ({"warnings": cursor.warnings} if cursor.warnings else {}))
        self._save_if_best(figures, oracle, cursor.epoch)
        cursor.next_epoch()
        state.seed_epoch()
        state.start_clock()

    def _evaluate(self) -> tuple[dict[str, float], dict[str, float] | None]:
        """The validation figures of the model, and those on the target domain if there is one."""
        aligner, evaluate_oracle = self.state.aligner, self.callbacks.evaluate_oracle
        figures = dict(self.callbacks.evaluate(aligner))
        return figures, None if evaluate_oracle is None else dict(evaluate_oracle(aligner))

    def _save_if_best(self, figures: Mapping[str, float], oracle: Mapping[str, float] | None, epoch: int) -> None:
        cursor, select = self.state.cursor, self.state.config.eval.select
        if oracle is not None:
            score = distributed.broadcast(float(oracle[select]))
            if score > cursor.oracle or cursor.oracle == -math.inf:
                cursor.oracle, cursor.oracle_epoch = score, epoch
                self.saver.save_weights("oracle")
        score = distributed.broadcast(float(figures[select]))
        # on locked towers a decoder learns while the figures of retrieval stay equal: the last one is the best
        improved = score >= cursor.best if self.state.aligner.decoder is not None else score > cursor.best
        if improved or not math.isfinite(cursor.best):
            cursor.best, cursor.best_epoch = score, epoch
            self.saver.save_weights("best")

    def _check_health(self, batch: PairBatch) -> dict[str, str]:
        config, adaptation, metrics = self.state.config, self.state.adaptation, self.state.cursor.epoch_metrics
        decoder = self.state.aligner.decoder
        words = 0 if decoder is None else decoder.vocabulary_size
        chance_levels = {
            name: chance
            for name, loss_part in LOSS_PARTS.items()
            if loss_part.chance and metrics.get(name)
            if (chance := loss_part.chance(config.loss, config.optim.batch_size, words)) is not None
        }
        heads_only = adaptation is not None and config.loss.alpha == config.loss.beta == 0
        trained_modalities = adaptation.modalities if adaptation is not None and heads_only else ()
        problems = health_checks.check_model(self.state.aligner, batch, metrics, chance_levels, trained_modalities)
        return problems | health_checks.check_domain_classifier(metrics.get(step.DOMAIN_ACCURACY, ()))


def waiting_advice(waiting: float, elapsed: float, workers: int) -> str:
    """Advice if an epoch spends more than a tenth of its time (in seconds) waiting for data; "" otherwise."""
    if waiting <= MAX_WAITING * elapsed or elapsed < 5:  # in a shorter epoch the fraction is not reliable
        return ""
    share = 100 * waiting / elapsed
    return f"waiting for data {share:.0f} % of the time; next: --workers {workers + 2}, or prepare with --image-size"


def _next_batch(batches: Iterator[PairBatch]) -> PairBatch:
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


def _summary(state: TrainingState, peak: PeakMemory) -> TrainingSummary:
    cursor = state.cursor
    return TrainingSummary(
        steps=cursor.step,
        best_epoch=cursor.best_epoch,
        best=cursor.best,
        seconds=cursor.seconds,
        samples_per_second=cursor.samples / max(cursor.seconds, 1e-9),
        memory=peak.mib,
        warnings=tuple(cursor.warnings),
        oracle_epoch=cursor.oracle_epoch,
        epochs=cursor.epoch,
    )
