"""When checkpoints of a run are saved: after every epoch, every few minutes, and after a stop signal."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from ccaco_cli.core import distributed, interrupts
from ccaco_cli.core.interrupts import StopSignal
from ccaco_cli.core.model import weights
from ccaco_cli.core.training import checkpoint
from ccaco_cli.core.training.metrics_log import MetricsLog
from ccaco_cli.core.training.state import StageStart, TrainingState


@dataclass(frozen=True)
class CheckpointOptions:
    """When a run is saved, and whether it continues an earlier one.

    Attributes:
        minutes: also save after so many minutes; 0 = only after each epoch.
        keep: how many of the newest checkpoints are kept.
        resume: continue from the latest checkpoint, if there is one.
        stage: where the current stage of the run began.
    """

    minutes: float = 0.0
    keep: int = 1
    resume: bool = False
    stage: StageStart = field(default_factory=StageStart)


class CheckpointSaver:
    """Saves checkpoints of a run. All processes call its methods; the main process writes."""

    def __init__(self, folder: Path, state: TrainingState, log: MetricsLog, options: CheckpointOptions):
        self.folder, self.state, self.log, self.options = folder, state, log, options
        self.last_save = time.perf_counter()
        self.best_step = -1  # the step whose weights are in ``best``, if this process has saved them
        if options.resume and distributed.main():
            checkpoint.prune(folder, options.keep)

    def save(self) -> None:
        """Saves a checkpoint of the current state."""
        self.log.read_steps()
        snapshot = self.state.snapshot()
        self.last_save = time.perf_counter()
        if distributed.main():
            self.log.flush()
            # with an average or low-rank updates, ``best`` holds other tensors than the checkpoint
            same = self.state.average is None and not self.state.aligner.low_rank
            best_is_current = same and self.best_step == self.state.cursor.step
            same_weights = self.folder / "best" / weights.WEIGHTS if best_is_current else None
            checkpoint.save(self.folder, keep=self.options.keep, same_weights=same_weights, **snapshot)

    def save_weights(self, name: str) -> None:
        """Saves the current weights under a name such as "best", without low-rank updates: they are merged."""
        tensors = weights.weights_of(self.state.aligner, merged=True)
        heads = None if self.state.adaptation is None else weights.weights_of(self.state.adaptation)
        if distributed.main():
            checkpoint.save_best(self.folder, tensors, heads, name)
        if name == "best":
            self.best_step = self.state.cursor.step

    def save_if_due(self, stop_signal: StopSignal) -> None:
        """Saves after ``minutes``, or after a stop signal.

        Raises:
            Interrupted: a process has received a stop signal; the state is saved.
        """
        elapsed = time.perf_counter() - self.last_save
        due = 0 < self.options.minutes * 60 <= elapsed and distributed.main()
        # one number for all processes: 0 = continue, 1 = save, above 1 = the signal
        code = int(distributed.all_reduce_max(stop_signal.signal or int(due)))
        if code:
            self.save()
        if code > 1:
            cursor, total = self.state.cursor, self.state.total_steps
            raise interrupts.interrupted(code, f"saved at step {cursor.step} of {total}; go on with --resume latest")
