from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ccaco_cli.core import manifest
from ccaco_cli.core.errors import DataError, ManifestError
from ccaco_cli.core.reporting import inspection, report_tables
from ccaco_cli.core.reporting.inspection import LoadedRun
from ccaco_cli.core.retrieval import rerank
from ccaco_cli.core.scoring import results
from tests.manifests import edited


@pytest.fixture(scope="module")
def looked(run: Path) -> LoadedRun:
    return inspection.open_run(results.find([run])[0])


def changed(run: Path, copy: Path, **body: Any) -> Path:
    shutil.copytree(run, copy)
    with edited(copy) as found:
        found |= body
    return copy


@pytest.mark.parametrize("how", ["cosine", "two-stage", "cross"])
def test_answers_have_the_ranks_that_results_have(looked: LoadedRun, how: str) -> None:
    mine = replace(looked, how=how, weight=2.0)
    one, other = looked.found.a, looked.found.b
    groups = looked.groups()
    stored = {
        "cosine": lambda: rerank.two_stage(looked.aligner, one, other, *groups, looked.config.eval, 0.0),
        "two-stage": lambda: rerank.two_stage(looked.aligner, one, other, *groups, looked.config.eval, 2.0),
        "cross": lambda: rerank.exhaustive(looked.aligner, one, other, *groups, "full"),
    }[how]()
    for backwards, direction in ((True, "image_to_text"), (False, "text_to_image")):
        found = inspection.answers(mine, backwards=backwards)
        assert found.direction == direction
        assert found.rank.tolist() == stored.directions()[direction][0].rank.tolist()
        assert found.right[:, 0].tolist() == (found.rank == 1).tolist()
        assert (np.diff(found.score) <= 1e-6).all()
        assert found.right.any(1).tolist() == (found.rank <= 5).tolist()


def test_the_ranks_are_those_of_the_runs_own_result(looked: LoadedRun) -> None:
    stored = results.result(looked.run).evaluation
    assert inspection.answers(looked, backwards=False).rank.tolist() == stored.b_to_a[0].rank.tolist()
    few = inspection.answers(looked, backwards=False, most=10)
    assert len(few.items) == 10 and few.rank.tolist() == stored.b_to_a[0].rank[few.items].tolist()


def test_a_batch_is_of_true_pairs_and_the_map_of_all(looked: LoadedRun) -> None:
    one, other, table = inspection.similarity(looked, 6)
    assert looked.found.row_b[other].tolist() == looked.found.row_a[one].tolist()
    assert table[2, 4] == pytest.approx(float(looked.found.b.z[other[2]] @ looked.found.a.z[one[4]]), abs=1e-6)
    rows, points, others = inspection.plane(looked, 12)
    assert points.shape == others.shape == (12, 2) and len(set(rows.tolist())) == 12


def test_scenes_are_divided_by_place(looked: LoadedRun) -> None:
    name, of_row = inspection.classes(looked)
    assert name == "place" and of_row[3] == looked.split.meta(3)["place"]
    names, table = inspection.confusion(looked)
    assert names == sorted(set(of_row)) and table.sum(1) == pytest.approx([1.0] * len(names))


def test_what_is_told_of_faithfulness(looked: LoadedRun) -> None:
    pairs = inspection.explained(looked, "attention", 30)
    assert len(pairs) == 30 and all(pair.said in looked.split.captions for pair in pairs)
    rows = inspection.faithfulness(looked, pairs)
    gains = [pair.why.trial.deletion_gain for pair in pairs]
    assert rows[0]["measure"] == "deletion" and rows[0]["value"] == pytest.approx(np.mean(gains))
    assert rows[0]["low"] < rows[0]["value"] < rows[0]["high"]
    for row in rows:
        assert row["verdict"] == (
            "better" if row["low"] > 0 else "worse" if row["high"] < 0 else inspection.NOT_SEPARABLE
        )
    assert all(row["verdict"] == "too few cases" for row in inspection.faithfulness(looked, pairs[:5]))
    points = inspection.pointing(looked, pairs)
    assert points[0]["word"] == "" and points[0]["cases"] == sum(row["cases"] for row in points[1:]) > 20
    assert {row["word"] for row in points[1:]} <= {
        box["word"] for r in range(len(looked.split)) for box in looked.split.meta(r)["boxes"]
    }
    assert 0 < points[0]["random"] < 0.5


def test_synonyms_point_to_the_same_box() -> None:
    assert (
        inspection.CANONICAL["kitty"] == "cat"
        and inspection.CANONICAL["couch"] == "sofa"
        and inspection.CANONICAL["dog"] == "dog"
    )


def test_what_cannot_be_looked_into_says_why(run: Path, tmp_path: Path, looked: LoadedRun) -> None:
    inputs = json.loads((run / manifest.NAME).read_text())["inputs"]
    gone = changed(run, tmp_path / "gone", inputs={"dataset": inputs["dataset"] | {"path": "nowhere"}})
    with pytest.raises(DataError, match="not where it was: nowhere"):
        inspection.open_run(results.find([gone])[0])
    other = changed(run, tmp_path / "other", inputs={"dataset": inputs["dataset"] | {"sha256": "0" * 64}})
    with pytest.raises(ManifestError, match="prepared anew"):
        inspection.open_run(results.find([other])[0])
    with pytest.raises(DataError, match="no model to look into"):
        inspection.open_run(results.find([next((run / "results").glob("test.*.json"))])[0])
    alone = replace(looked, config=replace(looked.config, loss=replace(looked.config.loss, beta=0.0)))
    with pytest.raises(DataError, match="no cross branch"):
        inspection.explained(alone, "attention")


def test_the_table_of_faithfulness(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "PAIRS", 8)
    rows = report_tables.table(report_tables.ReportRequest([run]), "faithfulness")
    assert {row["method"] for row in rows} == {"attention", "gradient"}
    assert [row["measure"] for row in rows if row["method"] == "gradient"][:3] == ["deletion", "insertion", "pointing"]
