"""How reliable the probabilities of runs are: the reliability curve, its error, and the Brier score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ccaco_cli.core.errors import DataError
from ccaco_cli.core.reporting.rows import Cells, ReportRow
from ccaco_cli.core.scoring import results
from ccaco_cli.core.scoring.results import Run

ALL = "all"
"""The row over all bins."""


@dataclass(frozen=True)
class CalibrationRow(ReportRow):
    """One interval of the probabilities of a run, or all of them together.

    The pairs are true pairs of the split and as many others: half drawn at random from other groups, half alike
    (``pair_sampling.calibration_pairs``). The calibration was fitted on validation.

    Attributes:
        probability: the interval, such as ``0.1-0.2``, or ``all``.
        n: number of pairs in it.
        predicted: mean probability. observed: share of true pairs. None in an empty interval.
        ece: expected calibration error, 0..1. brier: mean squared error, 0..1. Both over all pairs only.
        accuracy: share of pairs on the right side of ``threshold``, which was chosen on validation.
    """

    run: str
    dataset: str
    arm: str
    seed: int
    stage: str
    probability: str
    n: int
    predicted: float | None
    observed: float | None
    ece: float | None = None
    brier: float | None = None
    threshold: float | None = None
    accuracy: float | None = None

    def sections(self) -> tuple[Cells, ...]:
        cells: Cells = {"run": self.run, "dataset": self.dataset, "arm": self.arm, "seed": self.seed}
        cells |= {"stage": self.stage, "probability": self.probability, "n": self.n}
        cells |= {"predicted": self.predicted, "observed": self.observed, "ECE": self.ece, "Brier": self.brier}
        return (cells | {"threshold": self.threshold, "accuracy": self.accuracy},)


def calibration_rows(runs: Sequence[Run], split: str, every_stage: bool = False) -> list[CalibrationRow]:
    """Rows of each run: one for each interval, and one over all.

    Raises:
        DataError: no run has measured its probabilities on the split.
    """
    rows = []
    for run in runs:
        stages = [name.partition(".")[2] for name in run.facts["metrics"] if name.partition(".")[0] == split]
        for stage in stages if every_stage else [run.facts["headline"]]:
            rows += _rows(run, split, stage)
    if not rows:
        raise DataError(
            f"these runs have no probabilities on {split}",
            where=", ".join(str(run.path) for run in runs),
            expected="runs that were scored on val, which calibrates, and on another split, which measures",
            next="--split test",
        )
    return rows


def _rows(run: Run, split: str, stage: str) -> list[CalibrationRow]:
    measured = results.load_result(run, split, stage).reliability
    if measured is None:
        return []
    identity = (run.name, run.dataset, run.label, int(run.facts["seed"]), stage)
    bins = [
        CalibrationRow(*identity, f"{part.low:.1f}-{part.high:.1f}", part.n, part.predicted, part.observed)
        for part in measured.bins
    ]
    filled = [part for part in measured.bins if part.predicted is not None and part.observed is not None]
    n = sum(part.n for part in filled)
    predicted, observed = (
        sum(part.n * (getattr(part, name) or 0.0) for part in filled) / n for name in ("predicted", "observed")
    )
    error = (measured.ece, measured.brier, measured.threshold, measured.accuracy)
    return [*bins, CalibrationRow(*identity, ALL, n, predicted, observed, *error)]
