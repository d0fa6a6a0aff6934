"""The splits on which runs have results. Without results on a split, a run has blank cells and blocks no other run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ccaco_cli.core.data.domain_names import SOURCE_TEST
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.scoring.results import Run

REPORTED = ("test", SOURCE_TEST, "val")
"""The splits that are reported where none is named: the first one that has results."""


def splits_of(run: Run) -> list[str]:
    """The splits on which a run has results."""
    return sorted({name.partition(".")[0] for name in run.facts["metrics"]})


def default_split(runs: Iterable[Run]) -> str:
    """``test`` where a run has results on it, else the first of ``REPORTED`` that has any."""
    known = {split for run in runs for split in splits_of(run)}
    return next((split for split in REPORTED if split in known), "test")


def measured_runs(runs: Sequence[Run], split: str) -> list[Run]:
    """The runs that have results on a split.

    Raises:
        DataError: no run has.
    """
    measured = [run for run in runs if split in splits_of(run)]
    if runs and not measured:
        known = sorted({name for run in runs for name in splits_of(run)})
        subject = "this run has" if len(runs) == 1 else "these runs have"
        where = runs[0].path if len(runs) == 1 else ", ".join(run.name for run in runs)
        next_step = f"add --split {known[0]}" if known else None
        raise DataError(f"{subject} no results on {split}", where=where, expected=" or ".join(known), next=next_step)
    return measured


def missing_notes(runs: Sequence[Run], split: str) -> list[str]:
    """A sentence for each run without results on a split; [] where every run has some."""
    return [
        f"{run.name} has no results on {split}, only on {' and '.join(splits_of(run))}: its cells are blank, "
        "and tables of arms leave it out"
        for run in runs
        if split not in splits_of(run)
    ]
