from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ccaco_cli.core.errors import DataError
from ccaco_cli.core.reporting.calibration_table import ALL
from ccaco_cli.core.reporting.report_tables import ReportRequest, table
from ccaco_cli.core.scoring import results


def test_the_table_is_what_the_result_stores(run: Path) -> None:
    rows = table(ReportRequest([run], stages=True), "calibration")
    (loaded,) = results.find_runs([run])
    for stage in ("cosine", "two-stage"):
        measured = results.load_result(loaded, "test", stage).reliability
        assert measured is not None
        *bins, total = [row for row in rows if row.stage == stage]  # type: ignore[attr-defined]
        assert [(row.n, row.predicted, row.observed) for row in bins] == [  # type: ignore[attr-defined]
            (part.n, part.predicted, part.observed) for part in measured.bins
        ]
        cells = total.as_dict()
        assert (cells["probability"], cells["n"]) == (ALL, sum(part.n for part in measured.bins))
        assert (cells["ECE"], cells["Brier"]) == (measured.ece, measured.brier)
        assert cells["observed"] == pytest.approx(0.5)  # as many true pairs as others


def test_validation_does_not_measure_itself(run: Path) -> None:
    with pytest.raises(DataError, match="no probabilities on val"):
        table(ReportRequest([run], split="val"), "calibration")


def test_the_command_and_the_figure(ccaco: Callable[..., Any], run: Path, tmp_path: Path) -> None:
    figure = tmp_path / "curve.svg"
    done = ccaco("report", run, "--table", "calibration", "--figure", "calibration", figure)
    assert done.code == 0, done.err
    rows = list(csv.DictReader(io.StringIO(done.out)))
    assert len(rows) == 11 and rows[-1]["probability"] == ALL and float(rows[-1]["Brier"]) > 0
    assert "predicted probability" in figure.read_text()
    shown = ccaco("report", run, "--table", "calibration", "--format", "table")
    assert "0.9-1.0" in shown.out and "ECE" in shown.out
