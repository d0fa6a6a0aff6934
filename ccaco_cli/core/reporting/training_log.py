"""The training log of a run: one JSON object per line in ``metrics.jsonl``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

NAME = "metrics.jsonl"


def read_log(run: Path) -> list[dict[str, Any]]:
    """The entries of a run's log; [] without a log. The last line is left out while it is still being written."""
    file = run / NAME
    lines = file.read_text("utf-8").splitlines(keepends=True) if file.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]
