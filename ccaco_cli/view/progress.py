"""Progress bars on stderr; they vanish when it is no terminal, or in CI."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from ccaco_cli.core.escape import printable
from ccaco_cli.core.runtime import launcher_rank
from ccaco_cli.core.types import OnProgress, no_progress


@contextmanager
def bar(title: str) -> Iterator[OnProgress]:
    """An ``OnProgress`` that draws one bar for each thing it is told of (``facts["what"]``, ``facts["cell"]``), with rate and time left.

    ``facts["left"]`` are seconds until the whole work is done, where that is more than this bar.
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
    with Progress(*shape, console=Console(stderr=True), transient=True) as progress:
        tasks: dict[str, Any] = {}

        def tell(done: int, total: int | None, facts: Mapping[str, Any]) -> None:
            name = " ".join(str(facts[k]) for k in ("cell", "what") if k in facts) or title
            if name not in tasks:
                for old in tasks.values():
                    progress.update(old, visible=False)
                tasks[name] = progress.add_task(name, facts="")
            numbers = {k: v for k, v in facts.items() if isinstance(v, int | float) and k != "left"}
            shown = "  ".join(f"{k} {v:,.0f}" if v >= 100 else f"{k} {v:.3f}" for k, v in numbers.items())
            if "left" in facts:
                shown += f"  all done in {timedelta(seconds=round(facts['left']))}"
            progress.update(tasks[name], completed=done, total=total, facts=shown, visible=True)

        yield tell


def note(line: str) -> None:
    """One line on stderr for the person at the terminal."""
    if not launcher_rank()[0]:  # of several processes the first one speaks
        print(printable(line), file=sys.stderr, flush=True)
