from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ccaco_cli.core import runtime
from ccaco_cli.core.data.loader import count_samples
from ccaco_cli.core.training.checkpoint_saver import CheckpointOptions
from ccaco_cli.core.training.loop import TrainingCallbacks, TrainingData, TrainingSummary, fit


def train(
    toy: Any, config: Any, folder: Path, rates: list[float] | None = None, stop_after: int = 0, resume: bool = False
) -> TrainingSummary:
    """Trains the toy model, and fails after ``stop_after`` validations if it is not 0."""
    folder.mkdir(exist_ok=True)
    runtime.seed(config.seed)
    calls: list[int] = []

    def evaluate(model: Any) -> dict[str, float]:
        calls.append(1)
        if len(calls) == stop_after:
            raise KeyboardInterrupt
        return {"R-sum": 1.0}

    def report_progress(done: int, total: int | None, facts: Any) -> None:
        if rates is not None:
            rates.append(facts["samples/s"])

    data = TrainingData(*toy.data(config))
    callbacks = TrainingCallbacks(evaluate, report_progress=report_progress)
    return fit(toy.aligner(config), data, config, folder, callbacks, options=CheckpointOptions(resume=resume))


@pytest.mark.parametrize(
    ("settings", "samples"),
    [
        ({}, 3 * 24),
        ({"optim__batch_size": 1000}, 3 * 24),  # one batch of all 24 rows, not of 1000
        ({"optim__batch_size": 5}, 3 * 20),  # the incomplete last batch is left out
        ({"optim__batch_size": 6, "optim__accum_freq": 2}, 3 * 24),
        ({"optim__batch_size": 5, "optim__accum_freq": 3}, 3 * 15),
        ({"optim__captions": 2}, 3 * 24),  # a sample with two captions counts once
        ({"optim__batch_size": 64, "optim__captions": 2}, 3 * 24),
    ],
)
def test_throughput_counts_the_samples_of_the_batches(
    toy: Any, tmp_path: Path, settings: dict[str, Any], samples: int
) -> None:
    rates: list[float] = []
    summary = train(toy, toy.config(**settings), tmp_path / "a", rates)
    assert summary.samples_per_second * summary.seconds == pytest.approx(samples)
    # progress is reported before the last epoch ends, so its rate is not below that of the summary
    assert rates[-1] == pytest.approx(summary.samples_per_second, rel=0.5)


def test_throughput_of_a_resumed_run_counts_the_samples_before_it(toy: Any, tmp_path: Path) -> None:
    config = toy.config(optim__batch_size=100)
    with pytest.raises(KeyboardInterrupt):
        train(toy, config, tmp_path / "a", stop_after=2)
    summary = train(toy, config, tmp_path / "a", resume=True)
    assert summary.samples_per_second * summary.seconds == pytest.approx(3 * 24)


@pytest.mark.parametrize(("rows", "world", "samples"), [(24, 1, 24), (24, 5, 20), (3, 2, 2), (3, 4, 0)])
def test_throughput_of_several_processes_counts_their_equal_parts(rows: int, world: int, samples: int) -> None:
    entry = np.arange(rows), np.arange(rows), np.arange(rows)
    assert count_samples(entry, world) == samples
