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
from ccaco_cli.core.reporting import faithfulness, inspection, report_tables
from ccaco_cli.core.reporting.inspection import LoadedRun
from ccaco_cli.core.scoring import results, two_stage
from tests.manifests import edited


@pytest.fixture(scope="module")
def loaded(run: Path) -> LoadedRun:
    return inspection.open_run(results.find_runs([run])[0])


def changed(run: Path, copy: Path, **body: Any) -> Path:
    shutil.copytree(run, copy)
    with edited(copy) as facts:
        facts |= body
    return copy


@pytest.mark.parametrize("scoring", ["cosine", "two-stage", "cross"])
def test_queries_have_the_ranks_that_results_have(loaded: LoadedRun, scoring: str) -> None:
    by_kind = replace(loaded, scoring=scoring, weight=2.0)
    a, b = loaded.encodings.a, loaded.encodings.b
    groups = loaded.groups()
    stored = {
        "cosine": lambda: two_stage.two_stage(loaded.aligner, a, b, groups, loaded.config.eval, 0.0),
        "two-stage": lambda: two_stage.two_stage(loaded.aligner, a, b, groups, loaded.config.eval, 2.0),
        "cross": lambda: two_stage.exhaustive(loaded.aligner, a, b, groups, "full"),
    }[scoring]()
    for query_side, direction in ((0, "image_to_text"), (1, "text_to_image")):
        ranked = inspection.rank_queries(by_kind, query_side=query_side)
        assert ranked.direction == direction
        assert ranked.rank.tolist() == stored.directions()[direction][0].rank.tolist()
        assert ranked.correct[:, 0].tolist() == (ranked.rank == 1).tolist()
        assert (np.diff(ranked.score) <= 1e-6).all()
        assert ranked.correct.any(1).tolist() == (ranked.rank <= 5).tolist()


def test_the_ranks_are_those_of_the_runs_own_result(loaded: LoadedRun) -> None:
    stored = results.load_result(loaded.run).evaluation
    assert inspection.rank_queries(loaded, query_side=1).rank.tolist() == stored.b_to_a[0].rank.tolist()
    limited = inspection.rank_queries(loaded, query_side=1, max_queries=10)
    assert len(limited.queries) == 10 and limited.rank.tolist() == stored.b_to_a[0].rank[limited.queries].tolist()


def test_a_batch_is_of_true_pairs_and_the_map_of_all(loaded: LoadedRun) -> None:
    items_a, items_b, table = inspection.similarity_matrix(loaded, 6)
    assert loaded.encodings.row_b[items_b].tolist() == loaded.encodings.row_a[items_a].tolist()
    assert table[2, 4] == pytest.approx(
        float(loaded.encodings.b.z[items_b[2]] @ loaded.encodings.a.z[items_a[4]]), abs=1e-6
    )
    rows, points, others = inspection.embedding_map(loaded, 12)
    assert points.shape == others.shape == (12, 2) and len(set(rows.tolist())) == 12


def test_scenes_are_divided_by_place(loaded: LoadedRun) -> None:
    name, row_class = inspection.row_classes(loaded)
    assert name == "place" and row_class[3] == loaded.split.meta(3)["place"]
    names, table = inspection.confusion_matrix(loaded)
    assert names == sorted(set(row_class)) and table.sum(1) == pytest.approx([1.0] * len(names))


def test_faithfulness_rows(loaded: LoadedRun) -> None:
    pairs = faithfulness.explain_pairs(loaded, "attention", 30)
    assert len(pairs) == 30 and all(pair.text in loaded.split.captions for pair in pairs)
    rows = faithfulness.faithfulness_rows(loaded, pairs)
    gains = [pair.explanation.trial.deletion_gain for pair in pairs]
    assert rows[0].measure == "deletion" and rows[0].value == pytest.approx(np.mean(gains))
    assert rows[0].low < rows[0].value < rows[0].high
    for row in rows:
        assert row.verdict == ("better" if row.low > 0 else "worse" if row.high < 0 else faithfulness.NOT_SEPARABLE)
    assert all(row.verdict == "too few cases" for row in faithfulness.faithfulness_rows(loaded, pairs[:5]))
    points = faithfulness.pointing_rows(loaded, pairs)
    assert points[0].word == "" and points[0].cases == sum(row.cases for row in points[1:]) > 20
    assert {row.word for row in points[1:]} <= {
        box["word"] for r in range(len(loaded.split)) for box in loaded.split.meta(r)["boxes"]
    }
    assert 0 < points[0].random < 0.5


def test_synonyms_point_to_the_same_box() -> None:
    assert (
        faithfulness.CANONICAL["kitty"] == "cat"
        and faithfulness.CANONICAL["couch"] == "sofa"
        and faithfulness.CANONICAL["dog"] == "dog"
    )


def test_what_cannot_be_inspected_says_why(run: Path, tmp_path: Path, loaded: LoadedRun) -> None:
    inputs = json.loads((run / manifest.NAME).read_text())["inputs"]
    gone = changed(run, tmp_path / "gone", inputs={"dataset": inputs["dataset"] | {"path": "nowhere"}})
    with pytest.raises(DataError, match="not where it was: nowhere"):
        inspection.open_run(results.find_runs([gone])[0])
    other = changed(run, tmp_path / "other", inputs={"dataset": inputs["dataset"] | {"sha256": "0" * 64}})
    with pytest.raises(ManifestError, match="prepared anew"):
        inspection.open_run(results.find_runs([other])[0])
    with pytest.raises(DataError, match="no model to look into"):
        inspection.open_run(results.find_runs([next((run / "results").glob("test.*.json"))])[0])
    alone = replace(loaded, config=replace(loaded.config, loss=replace(loaded.config.loss, beta=0.0)))
    with pytest.raises(DataError, match="no cross branch"):
        faithfulness.explain_pairs(alone, "attention")


def test_the_table_of_faithfulness(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faithfulness, "PAIRS", 8)
    rows = report_tables.table(report_tables.ReportRequest([run]), "faithfulness")
    assert {row.method for row in rows} == {"attention", "gradient"}
    assert [row.measure for row in rows if row.method == "gradient"][:3] == ["deletion", "insertion", "pointing"]
