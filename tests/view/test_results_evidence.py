from __future__ import annotations

from typing import Any

import pytest

from ccaco_cli.view import progress, results

ARM: dict[str, Any] = {
    "dataset": "toy", "pool": "full", "arm": "clip", "seeds": 3, "queries": 180, "text_to_image_R@1": 0.251, "text_to_image_R@5": 0.5,
    "text_to_image_mean_rank": 7.0, "R-sum": 301.26, "metric": "text_to_image_R@1", "value": 0.251, "low": 0.2, "high": 0.3,
    "query_low": 0.21, "query_high": 0.29, "seed_sd": 0.01, "covers": "queries and seeds", "reference": "ccaco", "paired_seeds": 3,
    "difference": -0.05, "difference_low": -0.1, "difference_high": -0.001, "difference_covers": "queries and seeds",
    "p": 0.001, "p_holm": 0.002, "effect": -0.4, "verdict": "worse", "seconds": 12.0, "warnings": ["constant"], "failed": 0,
}  # fmt: skip


def shown(capsys: pytest.CaptureFixture[str], rows: list[dict[str, Any]], format: str = "markdown") -> list[str]:
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
        *("p (Holm)", "effect", "verdict", "seconds", "warnings"),
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
    lost = dict.fromkeys(ARM) | {"arm": "late", "seeds": 0, "verdict": "failed", "failed": 2}
    lines = shown(capsys, [ARM, lost])
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
    (only,) = shown(capsys, [lost])[2:]
    assert only == "| late | 0 | failed | 2 |"


def test_a_table_says_once_what_all_rows_share(capsys: pytest.CaptureFixture[str]) -> None:
    lost = dict.fromkeys(ARM) | {"arm": "late", "seeds": 0, "verdict": "failed", "failed": 2}
    lines = shown(capsys, [ARM, lost], "table")
    assert lines[0].strip() == "t; toy; pool full; 95 % intervals cover queries and seeds"
    assert "covers" not in "".join(lines[1:])
    assert "pool" in "".join(shown(capsys, [ARM, ARM | {"pool": "first-200"}], "table")[1:5])


def test_csv_keeps_everything_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    head, line = shown(capsys, [ARM], "csv")
    assert head == ",".join(ARM)
    assert ",0.251," in line
    assert ",-0.05,-0.1,-0.001," in line


def test_a_stratum_is_a_column(capsys: pytest.CaptureFixture[str]) -> None:
    row = {
        k: v for key, value in ARM.items() for k, v in ({key: value} | ({"things": 4} if key == "arm" else {})).items()
    }
    assert "| arm | things | seeds |" in shown(capsys, [row])[0]


def test_time_left_is_shown_as_such(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "xterm")
    with progress.bar("ablate") as tell:
        tell(1, 2, {"cell": "clip-s0 (1 of 2)", "total": 2.5, "left": 3725.4})
    told = capsys.readouterr().err
    assert "total 2.500  all done in 1:02:05" in told
    assert "left" not in told
