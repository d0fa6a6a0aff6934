"""``ccaco report --wise``: mixes of runs with the models that they started from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

TITLE = "Mixes of the start (0) and the run (1)"


def report_mixes(
    runs: Sequence[Path],
    mixes: str,
    on: str | None,
    score_options: Mapping[str, Any],
    data: Path,
    gates: Iterable[str],
    show: Mapping[str, Any],
) -> None:
    """Scores the mixes, prints their table, and checks the gates on the chosen ones.

    Args:
        mixes: shares such as ``0,0.5,1``.
        score_options: fields of ``ScoreOptions``.
        show: keyword arguments ``output_format`` and ``wide``.
    """
    from ccaco_cli.core.experiments import cross_dataset
    from ccaco_cli.core.experiments.interpolation import parse_shares
    from ccaco_cli.core.reporting.mix_table import mix_rows
    from ccaco_cli.core.workflows import report as workflow
    from ccaco_cli.view import progress, results

    shares, options_on = parse_shares(mixes), cross_dataset.ScoreOptions(**score_options)
    with progress.bar("mixes") as report_progress:
        rows = mix_rows(runs, shares, on, options_on, data_root=data, on_progress=report_progress)
    chosen = [row for row in rows if row.chosen]
    failed_gates = workflow.failed_mixes(chosen, gates)
    results.show(rows, show["output_format"], TITLE, wide=show["wide"])
    for row in chosen:
        progress.note(f"mix {row.mix} of {row.run} was chosen on validation; it is a run: {row.folder}")
    end_with_gates(failed_gates)


def end_with_gates(failed_gates: Sequence[str]) -> None:
    """Notes each failed gate; raises ``typer.Exit`` with code 1 when there are any."""
    from ccaco_cli.view import progress

    for line in failed_gates:
        progress.note(f"gate: {line}")
    if failed_gates:
        raise typer.Exit(1)


def refuse_with_mixes(**values: object) -> None:
    """Raises ConfigError: an option that has no effect on the table of mixes was used, too."""
    from ccaco_cli.core.errors import ConfigError

    for name, value in values.items():
        if value:
            raise ConfigError("mixes have a table of their own", where=f"--wise and --{name}", expected="one of them")
