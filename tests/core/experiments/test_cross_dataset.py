from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ccaco_cli.core.data import shards
from ccaco_cli.core.data.preparation import prepare
from ccaco_cli.core.data.shards import WriteOptions
from ccaco_cli.core.data.sources.sugarcrepe import TYPES
from ccaco_cli.core.errors import DataError
from ccaco_cli.core.experiments import cross_dataset
from ccaco_cli.core.experiments.cross_dataset import ScoreOptions
from ccaco_cli.core.reporting import comparison, report_tables
from ccaco_cli.core.reporting.rows import as_dicts
from ccaco_cli.core.scoring import results
from ccaco_cli.core.types import PairRecord


@pytest.fixture(scope="module")
def runs(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the run that all tests share."""
    folder = tmp_path_factory.mktemp("scored") / "first"
    shutil.copytree(run, folder)
    return folder


@pytest.fixture(scope="module")
def crepe(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root of data sets that holds ``sugarcrepe``: pictures of scenes, 4 items of each kind."""
    root = tmp_path_factory.mktemp("crepe")
    scenes = shards.open(data_root / "scenes").split("test")
    (root / "source" / "val2017").mkdir(parents=True)
    for row in range(8):
        (root / "source" / "val2017" / f"{row}.jpg").write_bytes(scenes.media("image", [row])[0])
    for number, name in enumerate(TYPES):
        rows = [(number + i) % 8 for i in range(4)]
        captions = {row: scenes.captions[scenes.caption_start[row]] for row in rows}
        items = {
            str(row): {
                "filename": f"{row}.jpg",
                "caption": captions[row],
                "negative_caption": f"{captions[row]} {name}",
            }
            for row in rows
        }
        (root / "source" / f"{name}.json").write_text(json.dumps(items))
    prepare("sugarcrepe", source_path=root / "source", out=root / "sugarcrepe", write=WriteOptions(workers=0))
    return root


def test_a_run_is_scored_once_on_another_data_set(runs: Path, crepe: Path) -> None:
    files = cross_dataset.score_on([runs], "sugarcrepe", ScoreOptions(every_stage=True, device="cpu"), data_root=crepe)
    stages = {file.stem for file in files}
    assert "test.cosine" in stages and all(file.parent.parent == runs / "results" / "on" for file in files)
    when = [file.stat().st_mtime_ns for file in files]
    (result,) = cross_dataset.score_on([runs], "sugarcrepe", ScoreOptions(device="cpu"), data_root=crepe)
    body = json.loads(result.read_text())
    assert result in files and [file.stat().st_mtime_ns for file in files] == when
    assert (
        body["data_protocol"].startswith("sugarcrepe: 28 choices")
        and body["dataset"] == "sugarcrepe"
        and body["run"] == "first"
    )
    (trained_run,) = results.find_runs([runs])
    assert result.stem == f"test.{trained_run.facts['headline']}" and body["weight"] == trained_run.facts["weight"]
    assert 0 <= body["metrics"]["matching_binary_accuracy"] <= 1, "by the threshold of the run's own validation split"
    table = as_dicts(report_tables.table(report_tables.ReportRequest([result])))
    assert [row["kind"] for row in table] == [*sorted(TYPES), "mean"] and [row["items"] for row in table] == [4] * 7 + [
        28
    ]
    assert all(0 <= row[f"{how}_accuracy"] <= 1 for row in table for how in ("choice", "text_only", "shuffled"))
    assert table[-1]["choice_accuracy"] == pytest.approx(sum(row["choice_accuracy"] for row in table[:-1]) / 7)


def test_choices_are_compared_one_by_one(runs: Path, crepe: Path, tmp_path: Path) -> None:
    (result,) = cross_dataset.score_on([runs], "sugarcrepe", ScoreOptions(device="cpu"), data_root=crepe)
    body = json.loads(result.read_text())
    for kind in TYPES:
        body["per_item"][f"choice_{kind}"] = [1 - right for right in body["per_item"][f"choice_{kind}"]]
        body["metrics"][f"choice_{kind}_accuracy"] = 1 - body["metrics"][f"choice_{kind}_accuracy"]
    (tmp_path / "other.json").write_text(json.dumps(body))
    measured = results.find_runs([result, tmp_path / "other.json"])
    rows = {row["metric"]: row for row in as_dicts(comparison.comparison_rows(measured))}
    for kind in TYPES:
        row = rows[f"choice_{kind}_accuracy"]
        assert row["reference_value"] + row["other_value"] == pytest.approx(1.0)


def test_other_modalities_and_splits_are_refused(runs: Path, crepe: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no split 'val'"):
        cross_dataset.score_on([runs], "sugarcrepe", ScoreOptions("val", device="cpu"), data_root=crepe)
    pairs = (PairRecord(str(i), str(i), "test", {"smell": b"v", "taste": b"a"}) for i in range(3))
    shards.write(
        pairs,
        tmp_path / "av",
        shards.DatasetInfo(name="av", modalities=("smell", "taste")),
        shards.WriteOptions(workers=0),
    )
    with pytest.raises(DataError, match="aligns other modalities"):
        cross_dataset.score_on([runs], "av", ScoreOptions(device="cpu"), data_root=tmp_path)


def test_the_command_scores_shows_and_gates(ccaco: Callable[..., Any], runs: Path, crepe: Path) -> None:
    arguments = ("report", runs, "--on", "sugarcrepe", "--data", crepe, "--device", "cpu", "--format", "json")
    done = ccaco(*arguments)
    assert (done.code, done.err) == (0, "") and {row["kind"] for row in json.loads(done.out)} == {*TYPES, "mean"}
    done = ccaco(*arguments, "--table", "runs", "--fail-if", "choice_accuracy<=1")
    assert done.code == 1 and "choice_accuracy = " in done.err
    assert json.loads(done.out)[0]["run"] == "first"
    done = ccaco("report", runs, "--table", "languages")
    assert done.code == 2 and "these results have no languages" in done.err
