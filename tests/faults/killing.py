"""Kills a piece of work at every point where it writes, starts it again, and looks whether anything was lost."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ccaco_cli.core import fault
from tests.processes import launch

Work = Callable[[Path], None]


def _noted(work: Work, folder: Path, file: Path) -> None:
    points: list[str] = []
    fault.point = points.append
    work(folder)
    file.write_text(json.dumps(points))


def _killed(work: Work, folder: Path, point: str) -> None:
    os.environ[fault.VARIABLE] = point
    work(folder)


def points(work: Work, folder: Path) -> list[str]:
    """Every point that undisturbed work comes to, as NAME:NTH."""
    assert launch(1, _noted, work, folder, folder / "points.json") == [0]
    counts: Counter[str] = Counter()
    points = []
    for name in json.loads((folder / "points.json").read_text()):
        counts[name] += 1
        points.append(f"{name}:{counts[name]}")
    return points


def everywhere(
    work: Work,
    outcome: Callable[[Path], Any],
    root: Path,
    *,
    begin: Callable[[Path], None] = Path.mkdir,
    every: int = 1,
) -> int:
    """Kills ``work(folder)`` at each of its points (or every so many), runs it again, and compares the result with
    that of undisturbed work.

    outcome  folder -> what must be equal
    begin    makes the folder in which the work starts
    every    which points are tried: every so many; each one where CCACO_EVERY_POINT is set
    Returns  how many points were tried
    """
    reference = root / "whole"
    begin(reference)
    all_points = points(work, reference)
    wanted = outcome(reference)
    tried = all_points[:: 1 if os.environ.get("CCACO_EVERY_POINT") else every]
    assert tried
    for number, point in enumerate(tried):
        folder = root / f"{number}"
        begin(folder)
        assert launch(1, _killed, work, folder, point) == [-9], f"not killed at {point}"
        assert launch(1, work, folder) == [0], f"cannot go on after {point}"
        assert outcome(folder) == wanted, f"something was lost or doubled at {point}"
        shutil.rmtree(folder)
    print(f"{len(tried)} points of failure tried, 0 losses")
    return len(tried)


def hashes(folder: Path, pattern: str = "*") -> dict[str, str]:
    """sha256 of every file under a folder; what is half-written counts as a loss."""
    from ccaco_cli.core.manifest import sha256

    return {f.relative_to(folder).as_posix(): sha256(f) for f in sorted(folder.rglob(pattern)) if f.is_file()}
