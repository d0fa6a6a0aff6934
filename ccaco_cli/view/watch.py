"""A table of runs that are still training, redrawn until they end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ccaco_cli.core import manifest
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.losses.parts import TOTAL, listed_parts
from ccaco_cli.core.reporting.training_log import read_log

BARS = "▁▂▃▄▅▆▇█"
WIDTH = 24


def watch(paths: Sequence[Path], seconds: float = 1.0) -> None:
    """Redraws ``snapshot`` on stderr until every run is finished.

    Raises:
        DataError: there is no run at a path.
    """
    from rich.console import Console
    from rich.live import Live

    with Live(snapshot(paths), console=Console(stderr=True), auto_refresh=False) as live:
        while not all(manifest.exists(run) for run in running(paths)):
            time.sleep(seconds)
            live.update(snapshot(paths), refresh=True)
        live.update(snapshot(paths), refresh=True)


def running(paths: Sequence[Path]) -> list[Path]:
    """The runs at the paths, finished or not.

    Args:
        paths: run folders, or folders (ablations too) that hold some.
    Raises:
        DataError: there is no run at a path.
    """
    runs: list[Path] = []
    for path in paths:
        is_run = (path / "config.toml").is_file()
        runs_here = [path] if is_run else sorted(file.parent for file in path.glob("*/config.toml"))
        if not runs_here:
            raise DataError(
                "no run has begun here", where=path, expected="a run folder", next="ccaco train --dataset scenes"
            )
        runs += runs_here
    return runs


def snapshot(paths: Sequence[Path]) -> Any:
    """A Rich table with one row per run: step, losses and validation as sparklines, age of the last log line."""
    from rich.table import Table

    logs = {run: read_log(run) for run in running(paths)}
    losses = (TOTAL, *listed_parts(name for entries in logs.values() for entry in entries for name in entry))
    table = Table(header_style="bold")
    for name in ("run", "step", *losses, "validation R-sum", "state"):
        table.add_column(name, overflow="fold", no_wrap=name in ("step", "state"))
    for run, entries in logs.items():
        steps = [entry for entry in entries if "validation" not in entry]
        best = [
            entry["validation"]["R-sum"] for entry in entries if entry.get("validation", {}).get("R-sum") is not None
        ]
        table.add_row(
            run.name,
            f"{entries[-1]['step']:,}" if entries else "",
            *(_line([entry[name] for entry in steps if name in entry], 3) for name in losses),
            _line(best, 1),
            _state(run),
        )
    return table


def sparkline(values: Sequence[float], width: int = WIDTH) -> str:
    """Values as bars of eight heights, averaged into at most ``width`` bars; a value that is not finite is a gap."""
    size = max(1, -(-len(values) // width))
    means = [sum(part) / len(part) for i in range(0, len(values), size) if (part := values[i : i + size])]
    finite = [v for v in means if abs(v) < float("inf")]
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
    return "".join(
        BARS[round((v - low) / (high - low or 1) * (len(BARS) - 1))] if abs(v) < float("inf") else " " for v in means
    )


def _line(values: Sequence[float], digits: int) -> str:
    return f"{sparkline(values)} {values[-1]:.{digits}f}" if values else ""


def _state(run: Path) -> str:
    if manifest.exists(run):
        return "finished"
    file = run / "metrics.jsonl"
    return f"{max(0, round(time.time() - file.stat().st_mtime))} s ago" if file.is_file() else "starting"
