"""Tables on a terminal of 80 and 160 characters: they fit, no word is broken, and the columns that decide are there."""

from __future__ import annotations

import re
import sys
from dataclasses import fields
from typing import Any

import pytest

from ccaco_cli.core.evaluation.significance import NOT_SEPARABLE, Comparison, Estimate
from ccaco_cli.core.reporting.breakdown_rows import ChoiceRow, ClassRow, LanguageRow
from ccaco_cli.core.reporting.rows import (
    ArmEvidence,
    ArmMeanRow,
    ArmRow,
    ComparisonRow,
    DomainRow,
    FaithfulnessRow,
    ReportRow,
    RunCost,
    RunRow,
    SplitRow,
    Stratum,
)
from ccaco_cli.view import layouts, results, terminal_table

RECALLS = {f"{d}_R@{k}": 0.123 * k / 2 for d in ("image_to_text", "text_to_image") for k in (1, 5, 10)}
METRICS: dict[str, float | None] = {
    "image_to_text_mAP": 0.4,
    **RECALLS,
    "text_to_image_mAP": 0.5,
    "R-sum": 301.26,
    "matching_accuracy": 0.987,
    "binding_accuracy": 0.802,
}
COST = RunCost(1_500_000, 6000, 1230.7, 812.0, 1534.6, fitted=True)
SPREAD = {"query_low": 0.0, "query_high": 1.0, "query_se": 0.1, "seed_sd": 0.1, "seeds": 3, "clusters": 60}


def estimate(scale: float = 1.0) -> Estimate:
    return Estimate(0.25 * scale, 0.2 * scale, 0.3 * scale, confidence=0.95, **SPREAD)


def difference(low: float, high: float) -> Comparison:
    return Comparison((low + high) / 2, low, high, confidence=0.95, p=0.5, p_holm=0.75, effect=0.1, **SPREAD)


def run(name: str, stage: str) -> RunRow:
    losses = {"loss_contrastive": 0.875, "loss_cross": 0.354, "loss_total": 1.2}
    return RunRow(name, "scenes", "ccaco", 0, stage, None, METRICS, losses, COST, ["constant"])


def arm(name: str, verdict: str, stratum: Stratum | None = None) -> ArmRow:
    reference = verdict == "reference"
    evidence = ArmEvidence(
        metric="R-sum",
        value=301.26,
        estimate=estimate(1000),
        reference="ccaco",
        paired_seeds=3,
        comparison=None if reference else difference(-15.2, 4.9),
        verdict=verdict,
        seconds=1230.7,
        warnings=[],
    )
    return ArmRow(name, "scenes", "full", 3, 6000, stratum, METRICS, evidence)


def domain(name: str) -> DomainRow:
    oracle, distances = 0.4, (0.5, 0.625, 1.5)
    figures = ("R-sum", 250.1, 240.0, 260.5, -5.5, "source-only", 300.3, 0.98, oracle, *distances)
    return DomainRow("squares", "paper,colour", "felt", name, 3, *figures)


def comparison(metric: str) -> ComparisonRow:
    return ComparisonRow(metric, "first (two-stage)", "second (two-stage)", 0.53, 0.54, difference(-0.1, 0.1))


def faithfulness(measure: str, word: str) -> FaithfulnessRow:
    return FaithfulnessRow(
        "first", "attention", measure, word, 0.5, 0.4, 0.6, 0.1, 0.3, 123, "not separable with these cases"
    )


def split(name: str) -> SplitRow:
    counts = {"samples": 1000, "groups": 1000, "captions": 5000, "rejects": 12}
    ranges = dict.fromkeys(("captions_per_group", "words", "width", "height", "audio_seconds"), (10.0, 64.5, 640.0))
    return SplitRow(name, counts, ranges, ["no caption 10", "broken file 2"], "full")


TABLES: dict[str, list[ReportRow]] = {
    "runs": [run("scenes-ccaco-s0", "cosine"), run("scenes-ccaco-s0", "two-stage")],
    "strata": [
        RunRow("first", "scenes", "ccaco", 0, "two-stage", 0.5, METRICS, stratum=Stratum("things", n)) for n in (2, 3)
    ],
    "arms": [arm("ccaco", "reference"), arm("-contrastive", NOT_SEPARABLE), ArmRow("late", failed=1)],
    "arms by stratum": [arm(name, "worse", Stratum("things", n)) for name in ("ccaco", "clip") for n in (2, 3)],
    "arm means": [ArmMeanRow(d, "full", "ccaco", 3, METRICS, "R-sum", 2.5) for d in ("scenes", "flickr8k")],
    "comparison": [comparison(name) for name in ("text_to_image_R@1", "text_to_image_mean_rank", "R-sum")],
    "domains": [domain("source-only"), domain("+adabn")],
    "choices": [
        ChoiceRow("first", "sugarcrepe", "ccaco", 0, "cosine", k, 9, 0.75, 0.5, 0.9, 0.5, 0.5, 0.5)
        for k in ("add_obj", "mean")
    ],
    "languages": [
        LanguageRow("first", "xm3600", "ccaco", 0, "cosine", name, 9, 18, {"R-sum": 300.0, "text_to_image_R@1": 0.5})
        for name in ("de", "mean")
    ],
    "classes": [ClassRow("first", "squares", "ccaco", 0, name, 0.5) for name in ("red", "light blue")],
    "faithfulness": [faithfulness("deletion", ""), faithfulness("pointing", "sofa")],
}


@pytest.fixture(params=[80, 160])
def width(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Characters per line of the terminal."""
    monkeypatch.setattr(terminal_table, "terminal_width", lambda: request.param)
    return int(request.param)


def printed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()


def words_of(cells: Any) -> set[str]:
    return {word for row in cells for value in row.values() if isinstance(value, str) for word in value.split()}


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("name", TABLES)
def test_tables_fit_and_no_word_is_broken(
    name: str, wide: bool, width: int, capsys: pytest.CaptureFixture[str]
) -> None:
    results.show(TABLES[name], "table", "Results on test", wide=wide)
    lines = printed(capsys)
    assert max(map(len, lines)) <= width
    text = " ".join(lines)
    for row in TABLES[name]:
        cells = layouts.layout_of(row).cells(row)
        keys = layouts.layout_of(row).keys
        assert all(str(cells[key]) in text for key in keys if cells[key])
    if wide:
        words = {w for w in words_of(layouts.layout_of(r).cells(r) for r in TABLES[name]) if NOT_SEPARABLE not in w}
        missing = {word for word in words if word not in text}
        assert not missing - set(NOT_SEPARABLE.split())


@pytest.mark.parametrize("name", ["runs", "arms", "arms by stratum"])
def test_80_characters_show_the_columns_that_decide(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(terminal_table, "terminal_width", lambda: 80)
    results.show(TABLES[name], "table", "Results on test")
    lines = printed(capsys)
    rule = next(number for number, line in enumerate(lines) if set(line) == {"─"})
    heading = " ".join(lines[1:rule]).split()
    assert [heading.count(word) for word in ("R@1", "R@5", "R@10", "R-sum", "i2t", "t2i", "(s)")] == [
        2,
        2,
        2,
        1,
        3,
        3,
        1,
    ]
    assert heading.count("verdict") == name.startswith("arms")
    assert "--wide" in " ".join(lines[rule:])
    assert "t2i: text to image" in " ".join(lines[rule:])


@pytest.mark.parametrize("name", TABLES)
def test_wide_shows_every_column(name: str, width: int, capsys: pytest.CaptureFixture[str]) -> None:
    results.show(TABLES[name], "table", "t", wide=True)
    text = " ".join(printed(capsys))
    cells = [layouts.layout_of(row).cells(row) for row in TABLES[name]]
    shared = layouts.shared_values(cells)
    for column in layouts.columns_of(cells):
        values = [row[column] for row in cells if isinstance(row.get(column), str)]
        assert column in shared or all(value.split()[0] in text for value in values if value)
    assert "--wide" not in text


def test_a_prepared_data_set_is_shown_whole(width: int, capsys: pytest.CaptureFixture[str]) -> None:
    prepared = [split(name) for name in ("train", "val", "test")]
    results.show_prepared(prepared, "table", "data/scenes")
    lines = printed(capsys)
    assert max(map(len, lines)) <= width
    text = " ".join(lines)
    assert text.count("64.5 (10 to 640.0)") == 15 and text.count("1,000") == 6 and text.startswith("data/scenes: full")


def test_the_width_is_that_of_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for columns, wanted in (("100", 100), ("40", 80)):
        monkeypatch.setenv("COLUMNS", columns)
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        assert terminal_table.terminal_width() == wanted
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False)
    assert terminal_table.terminal_width() == 160


def test_names_are_never_cut(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(terminal_table, "terminal_width", lambda: 80)
    long_name = "a-run-with-a-name-" * 4 + "that-is-long"
    results.show([run(long_name, "cosine")], "table", "t")
    lines = printed(capsys)
    assert any(line.startswith(f"{long_name}  301.3") for line in lines), "the name and R-sum, which are never left out"


def test_every_kind_of_row_has_a_layout_and_says_what_it_holds() -> None:
    modules = [vars(module) for name, module in sys.modules.items() if name.startswith("ccaco_cli.core.reporting.")]
    values = [value for names in modules for value in names.values()]
    kinds = {kind for kind in values if isinstance(kind, type) and issubclass(kind, ReportRow)}
    assert kinds - {ReportRow} == set(layouts.LAYOUTS)
    assert all(fields(kind) for kind in layouts.LAYOUTS)
