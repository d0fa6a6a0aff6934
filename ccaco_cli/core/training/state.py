"""State of a training run between two steps: position, optimiser, engine and random generators."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ccaco_cli.core import distributed
from ccaco_cli.core.config import RunConfig
from ccaco_cli.core.losses import balance as balances
from ccaco_cli.core.model import weights
from ccaco_cli.core.model.adaptation import Adaptation
from ccaco_cli.core.model.aligner import Aligner
from ccaco_cli.core.training import checkpoint, health_checks, parallel
from ccaco_cli.core.training.health_checks import HealthWarning
from ccaco_cli.core.training.optim import WeightAverage, adamw, lr_at
from ccaco_cli.core.training.step import StepLosses

CRITIC_MOMENTUM = 0.5
"""AdamW's beta1 for domain classifiers: with more, adversarial training oscillates (arXiv:1511.06434, section 3)."""


@dataclass(frozen=True)
class StageStart:
    """Where the current stage of a run began; (0, 0) for the first stage.

    Attributes:
        step: updates of the stages before.
        epoch: epochs of the stages before.
    """

    step: int = 0
    epoch: int = 0


@dataclass
class Cursor:
    """Position of a run and its history; stored in ``state.pt``.

    Attributes:
        step: updates so far.
        epoch: current epoch, from 0.
        batch: next batch of this epoch.
        samples: samples in all batches so far, over all processes; those without a partner are not counted.
        best, best_epoch: highest validation figure so far, and its epoch; -1 = the model before training.
        oracle, oracle_epoch: the same on the target's validation split.
        seconds: training time without validation.
        epoch_start: ``seconds`` at the start of this epoch.
        waiting: seconds of this epoch in which training waited for data.
        epoch_metrics: losses and metrics of the steps of this epoch.
        warnings: health warnings that hold.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    samples: int = 0
    best: float = float("-inf")
    best_epoch: int = -1
    oracle: float = float("-inf")
    oracle_epoch: int = -1
    seconds: float = 0.0
    epoch_start: float = 0.0
    waiting: float = 0.0
    epoch_metrics: dict[str, list[float]] = field(default_factory=dict)
    warnings: list[HealthWarning] = field(default_factory=list)

    @property
    def epoch_seconds(self) -> float:
        """Training time of this epoch."""
        return self.seconds - self.epoch_start

    def add_metrics(self, metrics: Mapping[str, float]) -> None:
        """Appends the metrics of one step to those of the epoch."""
        for name, value in metrics.items():
            self.epoch_metrics.setdefault(name, []).append(value)

    def next_epoch(self) -> None:
        self.epoch += 1
        self.batch, self.waiting, self.epoch_start, self.epoch_metrics = 0, 0.0, self.seconds, {}


class TrainingState:
    """Everything that a run needs to continue after a step.

    Args:
        aligner: on its device.
        updates_per_epoch: updates of a full epoch.
        adaptation: heads of a run across domains, or None.
        resume_from: a checkpoint folder to continue from, or None.
        stage: where the current stage began.
    """

    def __init__(
        self,
        aligner: Aligner,
        config: RunConfig,
        updates_per_epoch: int,
        adaptation: Adaptation | None = None,
        resume_from: Path | None = None,
        stage: StageStart = StageStart(),
    ):
        self.stage = stage
        self.aligner, self.adaptation, self.config = aligner, adaptation, config
        self.updates_per_epoch = updates_per_epoch
        self.total_steps = config.optim.steps or config.optim.epochs * updates_per_epoch
        self.device = next(aligner.parameters()).device
        self.cursor = Cursor()
        if resume_from is not None:  # before the engine shards the weights
            weights.load_weights(resume_from / weights.WEIGHTS, aligner)
        self.balance = balances.build(config.loss).to(self.device)
        self.losses = StepLosses(aligner, config.loss, config.parallel, adaptation, self.balance)
        self.engine = parallel.build_engine(self.losses, config)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.optim.precision == "amp_fp16")
        self._build_optimizer()
        trained = nn.ModuleList([aligner] if adaptation is None else [aligner, adaptation])
        self.average = WeightAverage(trained, config.optim.ema) if config.optim.ema else None
        # a generator of the CPU: it draws equal pairs on every device, and a run can be resumed on another device
        self.generator = torch.Generator()
        self.seed_epoch()
        if resume_from is not None:
            self._restore(checkpoint.load_state(resume_from / checkpoint.STATE))
        self.start_clock()

    def _build_optimizer(self) -> None:
        """AdamW of the aligner, the heads and the learned loss weights."""
        optim = self.config.optim
        critics = [] if self.adaptation is None else list(self.adaptation.domain_classifiers.parameters())
        heads = [] if self.adaptation is None else self.adaptation.predictor_parameters()
        trained = [p for p in self.aligner.parameters() if p.requires_grad]
        self.clipped_parameters = trained + critics + heads
        self.optimizer = adamw(self.aligner, optim)
        default = {"weight_decay": optim.wd, "ratio": 1.0}
        critic = default | {"ratio": self.config.domain.critic_lr, "betas": (CRITIC_MOMENTUM, optim.beta2)}
        no_decay = default | {"weight_decay": 0.0}
        for parameters, settings in (
            (heads, default),
            (critics, critic),
            (list(self.balance.parameters()), no_decay),
        ):
            if parameters:
                self.optimizer.add_param_group({"params": parameters, **settings})

    def snapshot(self) -> dict[str, Any]:
        """Arguments of ``checkpoint.save`` for this moment. All processes must call it."""
        self.stop_clock()
        tensors = weights.weights_of(self.aligner)
        optimizer = parallel.full_state(self.optimizer.state_dict())
        states = {k: distributed.gather_states(v) for k, v in checkpoint.generator_states(self.device).items()}
        generators = [{name: state[rank] for name, state in states.items()} for rank in range(distributed.world())]
        return vars(self.cursor) | {
            "weights": tensors,
            "optimizer": optimizer,
            "generators": generators,
            "scaler": self.scaler.state_dict(),
            "pair_generator": self.generator.get_state(),
            "balance": self.balance.state_dict(),
            "average": {} if self.average is None else self.average.state_dict(),
            "adaptation": {} if self.adaptation is None else self.adaptation.state_dict(),
        }

    def _restore(self, state: dict[str, Any]) -> None:
        """Restores the result of ``snapshot``, except the weights."""
        self.optimizer.load_state_dict(parallel.shard_state(state.pop("optimizer"), self.optimizer))
        generators = state.pop("generators")
        same_world = len(generators) == distributed.world()
        checkpoint.set_generator_states(generators[distributed.rank() if same_world else 0], self.device)
        self.scaler.load_state_dict(state.pop("scaler"))
        self.balance.load_state_dict(state.pop("balance"))
        average = state.pop("average", {})  # checkpoints of older versions have none
        if self.average is not None:
            self.average.load_state_dict(average)
        adaptation = state.pop("adaptation")
        if self.adaptation is not None:
            self.adaptation.load_state_dict(adaptation)
        pair_generator = state.pop("pair_generator")
        self.cursor = Cursor(**state)
        if self.cursor.batch:
            self.generator.set_state(pair_generator)
        else:
            self.seed_epoch()

    def averaged_weights(self) -> AbstractContextManager[None]:
        """Inside, the model has the weights that are validated and saved as the best: with ``optim.ema`` their moving
        average."""
        return nullcontext() if self.average is None else self.average.in_place()

    def seed_epoch(self) -> None:
        """Seeds the generator of sub-batches and hard negatives by run seed and epoch, equally on every process."""
        self.generator.manual_seed(self.config.seed * 1_000_003 + self.cursor.epoch)

    @property
    def at_start(self) -> bool:
        """Whether nothing has been trained yet, in this stage or before."""
        cursor = self.cursor
        return cursor.step == cursor.epoch == cursor.batch == 0

    @property
    def finished(self) -> bool:
        """No step is left, validation has not improved for ``optim.patience`` epochs, or a fatal warning was raised."""
        cursor, patience = self.cursor, self.config.optim.patience
        since = max(cursor.best_epoch, self.stage.epoch - 1)  # a new stage has its own patience
        mid_epoch = cursor.batch > 0  # an epoch that has begun ends with its validation, also after the last step
        out_of_steps = cursor.step >= self.total_steps and not mid_epoch
        out_of_patience = patience > 0 and cursor.epoch - 1 - since >= patience
        return out_of_steps or out_of_patience or health_checks.is_fatal(cursor.warnings)

    def progress(self) -> float:
        """Fraction of the steps of the first stage, by which losses are ramped; 1 in every later stage."""
        return 1.0 if self.stage.step else self.cursor.step / self.total_steps

    def learning_rate(self) -> float:
        """Learning rate of the next step; every stage has a schedule of its own over its steps."""
        start = self.stage.step
        return lr_at(self.cursor.step - start, self.total_steps - start, self.config.optim)

    def training_seconds(self) -> float:
        """Training time so far, without validation."""
        return self.cursor.seconds + time.perf_counter() - self._clock_start

    def start_clock(self) -> None:
        """Starts measuring training time from now."""
        self._clock_start = time.perf_counter()

    def stop_clock(self) -> None:
        """Adds the time since the clock started to the cursor, and starts it again."""
        self.cursor.seconds = self.training_seconds()
        self.start_clock()
