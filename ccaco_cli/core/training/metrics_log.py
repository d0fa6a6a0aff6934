"""``metrics.jsonl``: one line per step and per validation. The metrics of steps leave a GPU several steps at a time."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from ccaco_cli.core import distributed
from ccaco_cli.core.manifest import write_bytes
from ccaco_cli.core.training.state import Cursor

STEPS_PER_READ = 10
"""Steps after which their metrics are read from a GPU: the program waits for the GPU once for all of them."""
SECONDS_PER_READ = 1.0
"""Metrics of longer steps are read earlier, so that progress is shown."""
DIGITS = {"grad_norm": 4, "logit_scale": 4}
"""Decimals of the numbers of a step that have fewer than six."""


@dataclass(frozen=True)
class _UnreadStep:
    """The line of one step before its numbers are read.

    Attributes:
        entry: the line, with tensors where numbers are not known yet.
        metrics: names of the metrics of the epoch.
        tensors: names of the tensors.
        values: [tensors] float32, on their device.
    """

    entry: dict[str, Any]
    metrics: tuple[str, ...]
    tensors: tuple[str, ...]
    values: Tensor


class MetricsLog:
    """The log of a run. Every process adds the metrics of steps to its cursor; only the main process writes.

    Args:
        file: what is written to; None = nothing is written.
        cursor: receives the metrics of each step when they are read.
    """

    def __init__(self, file: IO[str] | None, cursor: Cursor):
        self.file, self.cursor = file, cursor
        self._unread: list[_UnreadStep] = []
        self._last_read = time.perf_counter()

    @classmethod
    @contextmanager
    def open(cls, path: Path, cursor: Cursor) -> Iterator[MetricsLog]:
        """Opens the log to continue at ``cursor``: lines that a killed run wrote after its last checkpoint are
        removed."""
        if not distributed.main():
            yield cls(None, cursor)
            return
        _truncate(path, cursor)
        with path.open("a", buffering=1) as file:  # line buffered: ``report --watch`` reads it during training
            yield cls(file, cursor)

    def add_step(self, entry: Mapping[str, Any], metrics: Collection[str]) -> None:
        """Adds the line of one step. Its tensors stay on their device until ``read_steps``.

        Args:
            entry: numbers, and scalar tensors of one device.
            metrics: names of those that are added to the metrics of the epoch.
        """
        tensors = {name: value.detach().float() for name, value in entry.items() if isinstance(value, Tensor)}
        self._unread.append(_UnreadStep(dict(entry), tuple(metrics), tuple(tensors), torch.stack([*tensors.values()])))

    @property
    def reading_is_due(self) -> bool:
        """Whether ``read_steps`` should be called now: after every step on a CPU, after several ones on a GPU."""
        if not self._unread:
            return False
        full = len(self._unread) >= STEPS_PER_READ or self._unread[-1].values.device.type == "cpu"
        return full or time.perf_counter() - self._last_read > SECONDS_PER_READ

    def read_steps(self) -> dict[str, float]:
        """Copies the metrics of all steps since the last call from their device at once, and writes their lines.

        Returns:
            Metrics of the last step; empty if there is none.
        """
        self._last_read = time.perf_counter()
        steps, self._unread = self._unread, []
        metrics: dict[str, float] = {}
        values = iter(torch.cat([step.values for step in steps]).tolist() if steps else ())
        for step in steps:
            line = step.entry | {name: round(next(values), DIGITS.get(name, 6)) for name in step.tensors}
            metrics = {name: line[name] for name in step.metrics}
            self.cursor.add_metrics(metrics)
            self.write(line)
        return metrics

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
