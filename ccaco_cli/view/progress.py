"""Progress bars on stderr; none are drawn when stderr is not a terminal, or in CI."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from ccaco_cli.core.runtime import launcher_rank
from ccaco_cli.core.types import OnProgress, no_progress
from ccaco_cli.view.streams import write_message


@contextmanager
def bar(title: str) -> Iterator[OnProgress]:
    """An ``OnProgress`` that draws one bar for each task, with its rate and the time left.

    ``facts["what"]`` and ``facts["cell"]`` name the task. ``facts["left"]`` is the time in seconds until all tasks are
    done, where there are more than this one.
    """
    if not sys.stderr.isatty() or os.environ.get("CI") or launcher_rank()[0]:
        yield no_progress
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    shape = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[facts]}"),
    )
    # results that are printed meanwhile stay on stdout, which may be a file
    with Progress(*shape, console=Console(stderr=True), transient=True, redirect_stdout=False) as progress:
        tasks: dict[str, Any] = {}

        def report_progress(done: int, total: int | None, facts: Mapping[str, Any]) -> None:
            name = " ".join(str(facts[k]) for k in ("cell", "what") if k in facts) or title
            if name not in tasks:
                for task in tasks.values():
                    progress.update(task, visible=False)
                tasks[name] = progress.add_task(name, facts="")
            numbers = {k: v for k, v in facts.items() if isinstance(v, int | float) and k != "left"}
            text = "  ".join(f"{k} {v:,.0f}" if v >= 100 else f"{k} {v:.3f}" for k, v in numbers.items())
            if "left" in facts:
                text += f"  all done in {timedelta(seconds=round(facts['left']))}"
            progress.update(tasks[name], completed=done, total=total, facts=text, visible=True)

        yield report_progress


def note(line: str) -> None:
    """Prints one line on stderr, of the main process of a launcher only."""
    write_message(line)
