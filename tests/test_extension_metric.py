"""A new metric is one entry of ``METRICS``: it is computed, stored, tested for significance and shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ccaco_cli.core.evaluation.metric_table import METRICS, Metric, Shown, Unit
from ccaco_cli.core.reporting import comparison
from ccaco_cli.core.reporting.report_tables import run_rows
from ccaco_cli.core.scoring import results
from ccaco_cli.core.scoring.results import load_result

TOP_HALF = Metric(
    Unit.FRACTION,
    frozenset({Shown.RUNS, Shown.COMPARE}),
    values=lambda ranks: (ranks.rank <= ranks.gallery / 2).astype(np.float64),
)


@pytest.fixture
def top_half(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METRICS, "top_half", TOP_HALF)


def runs(fabricate: Any) -> list[results.Run]:
    return results.find_runs([fabricate("good-s0", 2.0, arm="good"), fabricate("bad-s0", 0.0, arm="bad")])


def test_it_is_computed_and_stored(top_half: None, fabricate: Any) -> None:
    path = runs(fabricate)[0].path
    result = load_result(results.find_runs([path])[0])
    stored = json.loads((path / "results" / "test.two-stage.json").read_text())["metrics"]
    for direction, (ranks,) in result.evaluation.directions().items():
        expected = float((ranks.rank <= ranks.gallery / 2).mean())
        assert stored[f"{direction}_top_half"] == result.metrics[f"{direction}_top_half"] == pytest.approx(expected)
    (row,) = run_rows([path])
    assert row.as_dict()["text_to_image_top_half"] == stored["text_to_image_top_half"]


def test_it_is_tested_for_significance(top_half: None, fabricate: Any) -> None:
    both = runs(fabricate)
    (verdict,) = comparison.verdicts(both, "bad", "good", "text_to_image_top_half")
    assert verdict.verdict == "worse"
    metrics = {row.metric: row for row in comparison.comparison_rows(both)}
    assert metrics["image_to_text_top_half"].comparison.value < 0


def test_it_is_shown_in_percent(top_half: None, fabricate: Any, ccaco: Any) -> None:
    path: Path = runs(fabricate)[0].path
    value = load_result(results.find_runs([path])[0]).metrics["text_to_image_top_half"]
    assert value is not None
    wide = ccaco("report", path, "--format", "markdown").out
    assert "t2i top half" in wide and f"{100 * value:.1f}" in wide
    assert json.loads(ccaco("report", path, "--format", "json").out)[0]["text_to_image_top_half"] == value


def test_without_the_entry_there_is_no_such_metric(fabricate: Any) -> None:
    result = load_result(runs(fabricate)[0])
    assert not [name for name in result.metrics if "top_half" in name]
