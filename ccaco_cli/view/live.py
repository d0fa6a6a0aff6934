"""Sends the training log of a run to TensorBoard or Weights & Biases while it trains, under the same names."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ccaco_cli.core.errors import ConfigError
from ccaco_cli.core.types import OnProgress

Sink = Callable[[int, Mapping[str, float]], None]
"""Called with a step and its logged values."""


@contextmanager
def tensorboard(folder: Path) -> Iterator[Sink]:
    """Event files in ``folder/tensorboard``, created with the first entry."""
    try:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
    except ImportError:
        raise _not_installed("tensorboard") from None
    import time

    with ExitStack() as stack:
        writers: list[Any] = []

        def log(step: int, values: Mapping[str, float]) -> None:
            if not writers:
                writers.append(EventFileWriter(str(folder / "tensorboard"), flush_secs=10))
                stack.callback(writers[0].close)
            # not through torch's SummaryWriter, which writes one event for each value
            summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])
            writers[0].add_event(Event(wall_time=time.time(), step=step, summary=summary))

        yield log


@contextmanager
def wandb(folder: Path) -> Iterator[Sink]:
    """A run of the project ``ccaco``, started with the first entry; WANDB_MODE, WANDB_PROJECT and the like apply."""
    try:
        import wandb as library
    except ImportError:
        raise _not_installed("wandb") from None
    runs: list[Any] = []

    def log(step: int, values: Mapping[str, float]) -> None:
        if not runs:
            import os

            try:
                project = os.environ.get("WANDB_PROJECT", "ccaco")
                runs.append(
                    library.init(
                        project=project, name=folder.name, dir=str(folder), settings=library.Settings(silent=True)
                    )
                )
            except library.Error as error:
                raise ConfigError(
                    f"wandb did not start a run ({' '.join(str(error).split())[:120]})",
                    where="--report-to wandb",
                    expected="a key of WANDB_API_KEY, or WANDB_MODE=offline",
                ) from None
        runs[0].log(dict(values), step=step)

    try:
        yield log
    finally:
        for run in runs:
            run.finish()


SINKS: dict[str, Callable[[Path], AbstractContextManager[Sink]]] = {"tensorboard": tensorboard, "wandb": wandb}


def _not_installed(name: str) -> ConfigError:
    return ConfigError(f"{name} is not installed", where=f"--report-to {name}", next=f"pip install 'ccaco[{name}]'")


@contextmanager
def report_to(names: Sequence[str], folder: Path, on_progress: OnProgress) -> Iterator[OnProgress]:
    """An ``OnProgress`` for ``train`` that also sends what the run in ``folder`` has logged since the last call.

    Args:
        names: keys of ``SINKS``.
        on_progress: called with the same arguments.
    Raises:
        ConfigError: a library is not installed (raised before the run starts), or it refuses to start a run.
    """
    with ExitStack() as stack:
        sinks = [stack.enter_context(SINKS[name](folder)) for name in dict.fromkeys(names)]
        tail = Tail(folder / "metrics.jsonl")

        def send() -> None:
            for step, values in tail.read():
                for sink in sinks:
                    sink(step, values)

        def report_progress(done: int, total: int | None, facts: Mapping[str, Any]) -> None:
            on_progress(done, total, facts)
            if sinks and "what" not in facts:  # a step of training, not some preparation
                tail.first = done if tail.first is None else tail.first
                send()

        yield report_progress
        if tail.first is not None:
            send()


@dataclass
class Tail:
    """Reads the new complete lines of a growing log.

    Attributes:
        first: first step that is sent; earlier entries were sent before the run was interrupted.
        offset: bytes that were read already.
    """

    path: Path
    first: int | None = None
    offset: int = 0

    def read(self) -> list[tuple[int, dict[str, float]]]:
        """(step, name -> value) of each entry since the last call; validation metrics are named ``validation/NAME``."""
        if not self.path.is_file():
            return []
        with self.path.open("rb") as file:
            file.seek(self.offset)
            new = file.read()
        new = new[: new.rfind(b"\n") + 1]
        self.offset += len(new)
        entries = [json.loads(line) for line in new.splitlines()]
        return [(entry["step"], _numbers(entry)) for entry in entries if entry["step"] >= (self.first or 0)]


def _numbers(entry: Mapping[str, Any]) -> dict[str, float]:
    validation = {f"validation/{k}": v for k, v in (entry.get("validation") or {}).items()}
    values = {**entry, **validation}
    return {k: float(v) for k, v in values.items() if isinstance(v, int | float) and k != "step"}
