"""``ccaco report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ccaco_cli.commands import options


def report(
    runs: Annotated[list[Path], typer.Argument(help="Runs, ablations, or folders that hold runs.")],
    split: Annotated[str, typer.Option("--split", help="Which results.")] = "test",
    stages: Annotated[bool, typer.Option("--stages", help="Cosine and two-stage rows, not only the run's own score.")] = False,
    fail_if: Annotated[list[str] | None, typer.Option("--fail-if", metavar="CONDITION", help="Exit 1 when it holds, e.g. 'text_to_image_R@1<0.40'.", show_default=False)] = None,
    shown: options.Shown = None,
) -> None:
    """Set finished runs side by side: recalls, mAP, losses, time and memory.

    [bold]Examples[/bold]

    ccaco report runs/first

    ccaco report runs/first --format json --fail-if 'text_to_image_R@1<0.05'
    """
    from ccaco_cli.core.workflows import report as workflow
    from ccaco_cli.view import progress, results

    rows = workflow.rows(runs, split=split, every_stage=stages)
    results.show(rows, shown, f"Results on {split}")
    broken = [line for gate in fail_if or () for line in workflow.failed(rows, gate)]
    for line in broken:
        progress.note(f"gate: {line}")
    if broken:
        raise typer.Exit(1)
