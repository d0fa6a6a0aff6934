from __future__ import annotations

from dataclasses import replace

import pytest

from ccaco_cli.core.evaluation.significance import Comparison, Estimate
from ccaco_cli.core.reporting.rows import ArmEvidence, ArmRow, Stratum
from ccaco_cli.view import progress, results


def comparison(value: float, low: float, high: float, verdict_p: float = 0.002) -> Comparison:
    """A difference over three seeds."""
    intervals = {"query_low": low, "query_high": high, "query_se": 0.01, "seed_sd": 0.01}
    counts = {"seeds": 3, "clusters": 60, "confidence": 0.95}
    return Comparison(value, low, high, **intervals, **counts, p=0.001, p_holm=verdict_p, effect=-0.4)


EVIDENCE = ArmEvidence(
    metric="text_to_image_R@1",
    value=0.251,
    estimate=Estimate(0.251, 0.2, 0.3, 0.21, 0.29, 0.02, 0.01, seeds=3, clusters=60, confidence=0.95),
    reference="ccaco",
    paired_seeds=3,
    comparison=comparison(-0.05, -0.1, -0.001),
    verdict="worse",
    seconds=12.0,
    warnings=["constant"],
)
METRICS = {"text_to_image_R@1": 0.251, "text_to_image_R@5": 0.5, "text_to_image_mean_rank": 7.0, "R-sum": 301.26}
ARM = ArmRow("clip", "toy", "full", seeds=3, queries=180, metrics=METRICS, evidence=EVIDENCE)
LOST = ArmRow("late", failed=2)
COLUMNS = (
    *("dataset", "pool", "arm", "seeds", "queries", *METRICS, "metric", "value", "low", "high", "query_low"),
    *("query_high", "seed_sd", "covers", "reference", "paired_seeds", "difference", "difference_low"),
    *("difference_high", "difference_covers", "p", "p_holm", "effect", "verdict", "seconds", "warnings", "failed"),
)


def shown(capsys: pytest.CaptureFixture[str], rows: list[ArmRow], format: str = "markdown") -> list[str]:
    results.show(rows, format, "t")
    return capsys.readouterr().out.splitlines()


def test_an_arm_is_laid_out_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    head, _, line = shown(capsys, [ARM])
    assert [cell.strip() for cell in head.strip("|").split("|")] == [
        *(
            "dataset",
            "pool",
            "arm",
            "seeds",
            "t2i R@5",
            "R-sum",
            "t2i R@1",
            "t2i R@1 95 %",
            "covers",
            "change against ccaco",
        ),
        *("p (Holm)", "effect", "verdict", "time (s)", "warnings"),
    ]
    assert [cell.strip() for cell in line.strip("|").split("|")] == [
        *(
            "toy",
            "full",
            "clip",
            "3",
            "50.0",
            "301.3",
            "25.1",
            "[20.0, 30.0]",
            "queries and seeds",
            "-5.0 [-10.0, -0.1]",
        ),
        *("0.002", "-0.4", "worse", "12", "constant"),
    ]


def test_an_arm_without_evidence(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys, [ARM, LOST])
    assert [cell.strip() for cell in lines[-1][2:-2].split(" | ")] == [
        "",
        "",
        "late",
        "0",
        *[""] * 8,
        "failed",
        "",
        "",
        "2",
    ]
    (only,) = shown(capsys, [LOST])[2:]
    assert only == "| late | 0 | failed | 2 |"


def test_a_table_says_once_what_all_rows_share(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys, [ARM, LOST], "table")
    assert lines[0].strip() == "t; toy; pool full; 95 % intervals cover queries and seeds"
    assert "covers" not in "".join(lines[1:])
    assert "pool" in "".join(shown(capsys, [ARM, replace(ARM, pool="first-200")], "table")[1:5])


def test_csv_keeps_everything_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    head, line = shown(capsys, [ARM], "csv")
    assert head == ",".join(COLUMNS)
    assert ",0.251," in line
    assert ",-0.05,-0.1,-0.001," in line


def test_a_stratum_is_a_column(capsys: pytest.CaptureFixture[str]) -> None:
    row = replace(ARM, stratum=Stratum("things", 4))
    assert "| arm | things | seeds |" in shown(capsys, [row])[0]


def test_time_left_is_shown_as_such(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "xterm")
    with progress.bar("ablate") as report_progress:
        report_progress(1, 2, {"cell": "clip-s0 (1 of 2)", "total": 2.5, "left": 3725.4})
    error_output = capsys.readouterr().err
    assert "total 2.500  all done in 1:02:05" in error_output
    assert "left" not in error_output
