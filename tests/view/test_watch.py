from __future__ import annotations

import io
import json
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from ccaco_cli.core import manifest
from ccaco_cli.core.errors import DataError
from ccaco_cli.view.watch import snapshot, sparkline, watch


def shown(paths: list[Path]) -> str:
    out = io.StringIO()
    Console(file=out, width=180).print(snapshot(paths))
    return out.getvalue()


def test_bars_are_means_of_bins() -> None:
    assert sparkline([0, 1]) == "▁█"
    assert sparkline([5, 5, 5]) == "▁▁▁"
    assert sparkline([0, 0, 10, 10], width=2) == "▁█"
    assert sparkline([0.0, float("nan"), 1.0]) == "▁ █"
    assert sparkline([]) == ""
    assert len(sparkline(range(1000))) <= 24


def test_runs_that_train_and_runs_that_are_done(run: Path, tmp_path: Path) -> None:
    young = tmp_path / "runs/young"
    young.mkdir(parents=True)
    (young / "config.toml").write_text("")
    assert "starting" in shown([tmp_path / "runs"])
    lines = [{"step": 1, "total": 2.0}, {"step": 2, "total": 1.0}, {"step": 2, "validation": {"R-sum": 12.5}}]
    (young / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 3, "tot')
    text = shown([young, run])
    assert "█▁ 1.000" in text and "12.5" in text and "s ago" in text and "finished" in text
    with pytest.raises(DataError, match="no run has begun here"):
        snapshot([tmp_path / "gone"])


def test_it_ends_with_the_run(tmp_path: Path) -> None:
    young = tmp_path / "young"
    young.mkdir()
    (young / "config.toml").write_text("")
    ending = threading.Timer(0.3, lambda: manifest.write(young, "run", facts={}))
    ending.start()
    clock = time.perf_counter()
    watch([young], seconds=0.05)
    assert 0.2 < time.perf_counter() - clock < 10
    ending.join()
