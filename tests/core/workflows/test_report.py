from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from ccaco_cli.core import manifest
from ccaco_cli.core.errors import DataError, GateError
from ccaco_cli.core.reporting.report_tables import run_rows
from ccaco_cli.core.reporting.rows import as_dicts
from ccaco_cli.core.scoring import results
from ccaco_cli.core.workflows.report import failed_rows

TABLE = [
    {"run": "a", "arm": "clip", "R": 0.5, "loss": 2, "weight": None, "samples/s": 10.0},
    {"run": "b", "arm": "x", "R": 0.25, "loss": 3, "weight": 1.0},
]


def test_a_row_is_what_the_run_measured(run: Path) -> None:
    facts = manifest.open(run, kind="run").facts
    (row,) = as_dicts(run_rows([run]))
    assert row["stage"] == facts["headline"]
    assert (row["run"], row["arm"], row["seed"]) == ("first", "ccaco", 0)
    last = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines() if "total" in line][-1]
    assert (row["loss_total"], row["loss_contrastive"], row["loss_cross"]) == (
        last["total"],
        last["contrastive"],
        last["cross"],
    )
    both = as_dicts(run_rows([run], every_stage=True))
    assert [r["stage"] for r in both] == ["cosine", "two-stage"]
    for r in both:
        assert facts["metrics"][f"test.{r['stage']}"].items() <= r.items()
    assert run_rows([run], split="val")[0].metrics["R-sum"] == facts["metrics"][f"val.{facts['headline']}"]["R-sum"]
    assert row["steps"] == 6
    assert row["seconds"] > 0


def test_folders_of_runs_and_what_is_none(run: Path, data_root: Path, tmp_path: Path) -> None:
    for name in ("b", "a"):
        shutil.copytree(run, tmp_path / "many" / name)
    (tmp_path / "many/unfinished").mkdir()
    (tmp_path / "many/broken").mkdir()
    (tmp_path / "many/broken/manifest.json").write_text("{")
    assert [run.path.name for run in results.find_runs([tmp_path / "many"])] == ["a", "b"]
    assert len(run_rows([tmp_path / "many", run])) == 3
    for path in (
        tmp_path / "gone",
        data_root / "scenes",
        data_root,
        tmp_path / "many/broken",
        tmp_path / "many/unfinished",
    ):
        with pytest.raises(DataError, match=r"no finished run here.*ccaco train"):
            run_rows([path])
    with pytest.raises(DataError, match=r"no results on dev.*test or val"):
        run_rows([run], split="dev")


@pytest.mark.parametrize(
    ("gate", "lines"),
    [
        ("R<0.4", ["b"]),
        ("R < 0.6", ["a", "b"]),
        ("R<=0.25", ["b"]),
        ("R>=5e-1", ["a"]),
        ("R>0.5", []),
        ("loss==3", ["b"]),
        ("loss>-1", ["a", "b"]),
        ("weight<0", ["a"]),
    ],
)
def test_gates(gate: str, lines: list[str]) -> None:
    failures = failed_rows(TABLE, gate)
    assert [line[0] for line in failures] == lines
    assert all(gate in line for line in failures)


@pytest.mark.parametrize("value", [math.nan, None])
@pytest.mark.parametrize("sign", ["<", ">"])
def test_nan_fails_every_gate(value: Any, sign: str) -> None:
    assert len(failed_rows([{"run": "a", "R": value}], f"R{sign}0")) == 1


@pytest.mark.parametrize("gate", ["", "R", "R<", "R<x", "R=0.4", "<0.4", "R<1e", "R<-", "R<0.4 and R>0", "R<1..2"])
def test_a_condition_that_cannot_be_read(gate: str) -> None:
    with pytest.raises(GateError, match="cannot read"):
        failed_rows(TABLE, gate)


def test_a_column_that_is_not_there_or_no_number() -> None:
    with pytest.raises(GateError, match=r"no column Q.*R, loss"):
        failed_rows(TABLE, "Q<1")
    with pytest.raises(GateError, match="no column arm"):
        failed_rows(TABLE, "arm<1")
    with pytest.raises(GateError, match="no column samples/s"):
        failed_rows(TABLE, "samples/s<1")
