"""What a run is between two steps: where it stands, what it holds, how it is logged, saved and taken up again."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch

from ccaco_cli.core import distributed, interrupts
from ccaco_cli.core.config import RunConfig
from ccaco_cli.core.losses import balance as balances
from ccaco_cli.core.manifest import write_bytes
from ccaco_cli.core.model import weights
from ccaco_cli.core.model.adaptation import Adaptation
from ccaco_cli.core.model.aligner import Aligner
from ccaco_cli.core.training import checkpoint, parallel, sentinel, step
from ccaco_cli.core.training.optim import adamw

STARVED = 0.1
"""Share of the time that may go into waiting for data before the log says so."""


CRITIC_MOMENTUM = 0.5
"""AdamW's beta1 for domain classifiers: with more the two sides of the game swing past each other (arXiv:1511.06434, sec. 3)."""


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


class TrainingState:
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
            weights.load_weights(found / weights.WEIGHTS, aligner)
        self.balance = balances.build(config.loss).to(self.device)
        self.losses = step.Losses(aligner, config.loss, config.parallel, adaptation, self.balance)
        self.engine = parallel.engine(self.losses, config)
        critics, others = (
            ([], []) if adaptation is None else (list(adaptation.critics.parameters()), adaptation.others())
        )
        self.parameters = [p for p in aligner.parameters() if p.requires_grad] + critics + others
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.optim.precision == "amp_fp16")
        self.optimizer = adamw(aligner, config.optim)
        decays = {"weight_decay": config.optim.wd, "ratio": 1.0}
        still = decays | {"weight_decay": 0.0}
        quick = decays | {"ratio": config.domain.critic_lr, "betas": (CRITIC_MOMENTUM, config.optim.beta2)}
        for learned, how in ((others, decays), (critics, quick), (list(self.balance.parameters()), still)):
            if learned:
                self.optimizer.add_param_group({"params": learned, **how})
        self.generator = torch.Generator(self.device)
        self.reseed()
        if found:
            self._restore(checkpoint.load_state(found / checkpoint.STATE))
            if distributed.main():
                checkpoint.prune(self.checkpoints, self.saving.keep)
        self.began = self.saved = time.perf_counter()
        self.best_at = -1  # the step whose weights lie in ``checkpoints/best``, if this process has put them there
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
        left = (
            cursor.step < self.total or cursor.batch > 0
        )  # an epoch that has begun ends with its validation, after the last step too
        return left and not _out_of_patience(cursor, self.config.optim.patience) and not sentinel.ended(cursor.warnings)

    def seconds(self) -> float:
        """Of training so far, validation left out."""
        return self.cursor.seconds + time.perf_counter() - self.began

    def pause(self) -> None:
        """Stops the clock of training."""
        self.cursor.seconds = self.seconds()
        self.began = time.perf_counter()

    def judge(
        self, found: Mapping[str, str], figures: Mapping[str, float], oracle: Mapping[str, float] | None = None
    ) -> None:
        """Ends an epoch: what validation says of it (and the oracle), and whether it is the best so far."""
        cursor = self.cursor
        cursor.warnings = sentinel.renew(cursor.warnings, found, cursor.step)
        share = round(cursor.waited / max(cursor.seconds - cursor.before, 1e-9), 3)
        entry = {"step": cursor.step, "epoch": cursor.epoch, "validation": dict(figures), "waiting": share}
        if advice := starved(cursor.waited, cursor.seconds - cursor.before, self.config.workers):
            entry["advice"] = advice
        if oracle is not None:
            entry["oracle"] = dict(oracle)
            told = distributed.broadcast(float(oracle[self.config.eval.select]))
            if told > cursor.oracle or cursor.oracle_epoch < 0:
                cursor.oracle, cursor.oracle_epoch = told, cursor.epoch
                self.keep("oracle")
        self.write(entry | ({"warnings": cursor.warnings} if cursor.warnings else {}))
        score = distributed.broadcast(float(figures[self.config.eval.select]))
        if score > cursor.best or not math.isfinite(cursor.best):
            cursor.best, cursor.best_epoch = score, cursor.epoch
            self.keep("best")
            self.best_at = cursor.step
        cursor.epoch += 1
        cursor.batch, cursor.waited, cursor.before, cursor.cross, cursor.critics = 0, 0.0, cursor.seconds, [], []
        self.reseed()
        self.began = time.perf_counter()

    def keep(self, name: str) -> None:
        """The weights of this moment under a name; all processes take part, the first one writes."""
        tensors = weights.weights_of(self.aligner)
        heads = None if self.adaptation is None else weights.weights_of(self.adaptation)
        if distributed.main():
            checkpoint.save_best(self.checkpoints, tensors, heads, name)

    def answer(self, asked: interrupts.StopSignal) -> None:
        """Between two steps: saves when it is time to, and ends the run when somebody asked for it."""
        due = 0 < self.saving.minutes * 60 <= time.perf_counter() - self.saved and distributed.main()
        code = int(distributed.all_reduce_max(asked.signal or int(due)))
        if code:
            self.save()
        if code > 1:
            raise interrupts.ended(
                code, f"saved at step {self.cursor.step} of {self.total}; go on with --resume latest"
            )

    def save(self) -> None:
        """A checkpoint of this moment. All processes take part, the first one writes."""
        self.pause()
        self.saved = self.began
        tensors = weights.weights_of(self.aligner)
        optimizer = parallel.gathered(self.optimizer.state_dict())
        mine = checkpoint.generators()
        every = {name: distributed.gather_states(state) for name, state in mine.items()}
        drawn = [{name: states[number] for name, states in every.items()} for number in range(distributed.world())]
        if self.lines is not None:
            self.lines.flush()
            os.fsync(self.lines.fileno())
            state = vars(self.cursor) | {"scaler": self.scaler.state_dict(), "pairs": self.generator.get_state()}
            state |= {
                "balance": self.balance.state_dict(),
                "adaptation": {} if self.adaptation is None else self.adaptation.state_dict(),
            }
            stored = self.checkpoints / "best" / weights.WEIGHTS if self.best_at == self.cursor.step else None
            checkpoint.save(self.checkpoints, tensors, optimizer, drawn, self.saving.keep, stored, **state)


def starved(waited: float, spent: float, workers: int) -> str:
    """What to do about steps that wait for data more than a tenth of the time (seconds of an epoch); "" when they do not."""
    if waited <= STARVED * spent or spent < 5:  # of a shorter epoch the share says little
        return ""
    return f"waiting for data {100 * waited / spent:.0f} % of the time; next: --workers {workers + 2}, or prepare with --image-size"


def _out_of_patience(cursor: Cursor, patience: int) -> bool:
    return patience > 0 and cursor.epoch - 1 - cursor.best_epoch >= patience


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
