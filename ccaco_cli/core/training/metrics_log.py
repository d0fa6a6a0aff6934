"""``metrics.jsonl``: one line per step and per validation."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from ccaco_cli.core import distributed
from ccaco_cli.core.manifest import write_bytes
from ccaco_cli.core.training.state import Cursor


class MetricsLog:
    """The log of a run. Only the main process writes."""

    def __init__(self, file: IO[str] | None):
        self.file = file

    @classmethod
    @contextmanager
    def open(cls, path: Path, cursor: Cursor) -> Iterator[MetricsLog]:
        """Opens the log to continue at ``cursor``: lines that a killed run wrote after its last checkpoint are
        removed."""
        if not distributed.main():
            yield cls(None)
            return
        _truncate(path, cursor)
        with path.open("a", buffering=1) as file:  # line buffered: ``report --watch`` reads it during training
            yield cls(file)

    def write(self, entry: Mapping[str, Any]) -> None:
        """Appends one line."""
        if self.file is not None:
            self.file.write(json.dumps(entry) + "\n")

    def flush(self) -> None:
        """Writes all lines to the disk."""
        if self.file is not None:
            self.file.flush()
            os.fsync(self.file.fileno())


def _truncate(path: Path, cursor: Cursor) -> None:
    if not path.exists():
        return
    lines = []
    for line in path.read_text("utf-8").splitlines(keepends=True):
        if line.endswith("\n"):  # a killed process may leave an incomplete line
            entry = json.loads(line)
            if entry["step"] <= cursor.step and ("validation" not in entry or entry["epoch"] < cursor.epoch):
                lines.append(line)
    write_bytes(path, "".join(lines if cursor.step else ()).encode())
