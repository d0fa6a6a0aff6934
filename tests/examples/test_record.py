"""The one part of the benchmarks that others build on: sections are replaced in place."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "examples/benchmarks"


@pytest.fixture(scope="module")
def record() -> ModuleType:
    spec = importlib.util.spec_from_file_location("record", BENCHMARKS / "record.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["record"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_a_section_is_replaced_in_place_and_the_others_stay(record: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "RESULTS.md"
    for topic, body in (
        ("One", "first\n"),
        ("Two", "second\n"),
        ("One more", "third\n"),
        ("One", "again \\1 \n## not a head\n"),
    ):
        record.write(topic, body.replace("## not", "### not"), file)
    heads = [line for line in file.read_text().splitlines() if line.startswith("## ")]
    assert heads == ["## One", "## Two", "## One more"]
    text = file.read_text()
    assert "again \\1" in text
    assert "first" not in text
    assert "second" in text
    assert "third" in text


def test_pairs_are_run_in_turn_and_the_first_does_not_count(record: ModuleType) -> None:
    order: list[str] = []
    row = record.alternate("x", lambda: order.append("ours"), lambda: order.append("peer"), 3)
    assert order == ["ours", "peer"] * 4
    assert len(row.factors) == 3


def test_slow_pairs_are_run_fewer_times(record: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    monkeypatch.setattr(
        record.time, "perf_counter", lambda: 10.0 * next(clock)
    )  # every look at the clock is ten seconds later
    assert record.pairs(lambda turn: turn, 100) == [1, 2]
    monkeypatch.setattr(record, "ENOUGH", 1.0)
    assert record.pairs(lambda turn: turn, 100) == [0]  # the only one counts


def test_memory_counts_what_comes_after_the_line(record: ModuleType) -> None:
    used = record.memory("kept = bytearray(100 << 20)\n# begin\nmore = bytearray(50 << 20)")
    assert 45 < used < 80
    with pytest.raises(RuntimeError, match="no_such"):
        record.memory("# begin\nno_such")


def test_a_gpu_has_sections_of_its_own(record: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "RESULTS.md"
    options = argparse.Namespace(device="cpu", quick=False)
    monkeypatch.setattr(record, "stamp", lambda device: device)
    monkeypatch.setattr(record, "RESULTS", file)
    monkeypatch.setattr(record.write, "__defaults__", (file,))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: f"GPU {device}")
    record.finish("Topic", [record.Row("x", "1 s", "2 s", [2.0])], options)
    options.device = "cuda:1"
    for ours in ("3 s", "4 s"):
        record.finish("Topic", [record.Row("x", ours, "5 s", [1.0])], options)
    text = file.read_text()
    assert [line for line in text.splitlines() if line.startswith("## ")] == ["## Topic", "## Topic on GPU cuda:1"]
    assert "| 1 s |" in text
    assert "| 4 s |" in text
    assert "| 3 s |" not in text


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()], ids=repr)
def test_a_peer_that_runs_out_of_memory_is_a_row(record: ModuleType, error: Exception, tmp_path: Path) -> None:
    def peer() -> None:
        raise error

    row = record.alternate("x", lambda: None, peer, 3, wanted=2.0, limit=1e-9)
    assert row.peer == "out of memory"
    assert not row.factors
    assert row.over_limit > 0
    options = argparse.Namespace(device="cpu", quick=True)
    record.finish("Topic", [row], options)  # prints the row


def test_another_error_of_a_peer_ends_the_script(record: ModuleType) -> None:
    def peer() -> None:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        record.alternate("x", lambda: None, peer, 3)


def test_every_topic_is_in_a_script_that_runs_all() -> None:
    shell_script = (BENCHMARKS / "run.sh").read_text() + (BENCHMARKS / "gpu.sh").read_text()
    for script in BENCHMARKS.glob("*.py"):
        if "record.finish(" in script.read_text() and script.stem != "record":
            assert script.stem in shell_script, script.stem
