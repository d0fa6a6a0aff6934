from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ccaco_cli.core import manifest
from ccaco_cli.core.errors import DataError, ManifestError
from ccaco_cli.core.evaluation.calibration import reliability
from ccaco_cli.core.scoring import results
from ccaco_cli.core.scoring import strata as strata_module


def ablation(fabricate: Any, cells: list[tuple[str, str]], failed: str = "") -> Path:
    """An ablation of fabricated cells (label, name), and one that failed."""
    listed: list[dict[str, Any]] = []
    for label, name in cells:
        fabricate(name, 1.0, arm=label.partition(",")[0])
        listed.append({"name": name, "label": label, "run": manifest.open(fabricate.root / name, kind="run").sha256})
    listed += [{"name": f"{failed}-s0", "label": failed, "error": "it broke"}] if failed else []
    manifest.write(fabricate.root, "ablation", facts={"dataset": "toy", "cells": listed})
    return Path(fabricate.root)


def test_runs_of_an_ablation_are_its_cells_and_no_others(fabricate: Any) -> None:
    fabricate("stray", 1.0)
    root = ablation(fabricate, [("ccaco,beta=0.1", "ccaco,beta=0.1-s0"), ("clip", "clip-s0")], failed="vilbert")
    assert [(run.label, run.name) for run in results.find_runs([root])] == [
        ("ccaco,beta=0.1", "ccaco,beta=0.1-s0"),
        ("clip", "clip-s0"),
    ]
    assert results.failed_cells([root]) == {"vilbert": 1}
    assert results.failed_cells([root / "clip-s0"]) == {}
    assert results.only_ablations([root])
    assert not results.only_ablations([root, root / "clip-s0"])
    (root / manifest.NAME).unlink()
    assert [run.name for run in results.find_runs([root])] == ["ccaco,beta=0.1-s0", "clip-s0", "stray"], (
        "an unfinished ablation is a folder of runs"
    )


def test_a_cell_that_was_trained_anew_is_not_passed_off_as_the_old_one(fabricate: Any) -> None:
    root = ablation(fabricate, [("clip", "clip-s0")])
    fabricate("clip-s0", 2.0, arm="clip")
    with pytest.raises(ManifestError, match="trained anew"):
        results.find_runs([root])


def test_each_run_once(fabricate: Any) -> None:
    path = fabricate("a", 1.0)
    assert [run.name for run in results.find_runs([path, fabricate.root, path])] == ["a"]


def test_a_result_file_stands_alone(fabricate: Any, tmp_path: Path) -> None:
    file = fabricate("a", 1.0, seed=3) / "results/test.two-stage.json"
    (run,) = results.find_runs([file])
    assert (run.name, run.label, run.dataset, run.facts["seed"]) == ("a/test.two-stage", "ccaco", "toy", 3)
    shutil.move(file, tmp_path / "alone.json")
    (run,) = results.find_runs([tmp_path / "alone.json"])
    result = results.load_result(run)
    assert (run.name, result.metrics) == ("alone", json.loads((tmp_path / "alone.json").read_text())["metrics"])
    with pytest.raises(DataError, match=r"no results on val.*expected test"):
        results.load_result(run, "val")
    for text in ("{}", "no json", "[1]"):
        (tmp_path / "alone.json").write_text(text)
        with pytest.raises(DataError, match="no result"):
            results.find_runs([tmp_path / "alone.json"])


def test_a_missing_or_broken_result_is_named(fabricate: Any) -> None:
    path = fabricate("a", 1.0)
    (run,) = results.find_runs([path])
    with pytest.raises(DataError, match=r"no results on dev.*test or val"):
        results.load_result(run, "dev")
    file = path / "results/test.two-stage.json"
    body = json.loads(file.read_text())
    file.write_text(json.dumps({k: v for k, v in body.items() if k != "data"}))
    with pytest.raises(DataError, match=r"unreadable result \(no 'data'\)"):
        results.load_result(run)
    file.write_text("{")
    with pytest.raises(DataError, match="no results on test"):
        results.load_result(run)


def test_a_field_that_an_older_result_lacks_is_named(fabricate: Any) -> None:
    path = fabricate("a", 1.0)
    (run,) = results.find_runs([path])
    file = path / "results/test.two-stage.json"
    body = json.loads(file.read_text())
    measured = reliability([0.1, 0.9], [False, True])
    stored = measured.as_dict()
    file.write_text(json.dumps({**body, "reliability": stored}))
    assert results.load_result(run).reliability == measured
    for field in stored:
        older = {name: value for name, value in stored.items() if name != field}
        file.write_text(json.dumps({**body, "reliability": older}))
        with pytest.raises(DataError, match=rf"unreadable result \(no '{field}'\)"):
            results.load_result(run)
    for field in stored["bins"][0]:
        bins = [{name: value for name, value in part.items() if name != field} for part in stored["bins"]]
        file.write_text(json.dumps({**body, "reliability": {**stored, "bins": bins}}))
        with pytest.raises(DataError, match=rf"unreadable result \(no '{field}'\)"):
            results.load_result(run)


def test_one_arm_is_one_config(fabricate: Any) -> None:
    paths = [fabricate("a-s0", 1.0), fabricate("a-s1", 1.0, seed=1, config={"device": "cpu"})]
    measured = [results.load_result(run) for run in results.find_runs(paths)]
    assert list(results.by_arm(measured)["ccaco"]) == [0, 1]
    with pytest.raises(DataError, match=r"two runs of arm ccaco with seed 0: .*a-s0 and .*a-s0"):
        results.by_arm([measured[0], measured[0]])
    other = [
        results.load_result(run) for run in results.find_runs([fabricate("b", 1.0, seed=2, config={"loss.beta": 0.9})])
    ]
    with pytest.raises(DataError, match=r"trained unlike: .*a-s0 and .*b differ in loss\.beta"):
        results.by_arm(measured + other)


def test_strata_of_several_pools_follow_the_pools(fabricate: Any) -> None:
    (run,) = results.find_runs([fabricate("a", 1.0)])
    first = results.load_result(run)
    a_to_b, b_to_a = first.evaluation.a_to_b[0], first.evaluation.b_to_a[0]
    halves = [
        [strata_module._select(part, [start <= g < start + 30 for g in part.query_group]) for start in (30, 0)]
        for part in (a_to_b, b_to_a)
    ]
    folded = replace(first.evaluation, a_to_b=tuple(halves[0]), b_to_a=tuple(halves[1]))
    values = ["late"] * 30 + ["early"] * 30  # in the order of the pools: the second half of the pictures comes first
    parts = strata_module.strata(replace(first, evaluation=folded, strata={"half": values}), "half")
    assert list(parts) == ["early", "late"]
    assert set(parts["early"].evaluation.b_to_a[0].query_group) == set(range(30))
    assert parts["late"].metrics["image_to_text_R@1"] == pytest.approx(a_to_b.hits(1)[30:].mean())


def test_choices_outside_of_a_small_pool_have_their_stratum(fabricate: Any) -> None:
    items = {"binding_role": [1, 0, 1, 1], "binding_role_row": [3, 19, 25, 59]}
    strata = {"relation": ["on"] * 20 + ["left"] * 10 + ["on"] * 30}
    (run,) = results.find_runs([fabricate("a", 1.0, small=True, items=items)])
    small = replace(results.load_result(run, "test", results.SMALL), strata=strata)
    (part,) = strata_module.strata(small, "relation").values()  # the 20 ranked rows have one relation
    assert len(part.evaluation.a_to_b[0].rank) == 20
    assert (part.items["binding_role_row"], part.metrics["binding_role_accuracy"]) == ([3, 19, 59], 2 / 3)
    with pytest.raises(DataError, match="10 values of relation for 20 rows"):
        strata_module.strata(replace(small, strata={"relation": ["on"] * 10}), "relation")
    with pytest.raises(DataError, match="61 values of relation for 60 rows"):
        strata_module.strata(replace(results.load_result(run), strata={"relation": ["on"] * 61}), "relation")


def test_a_mean_over_seeds_hides_no_missing_figure(fabricate: Any) -> None:
    (run,) = results.find_runs([fabricate("a", 1.0)])
    first = results.load_result(run)
    other = replace(first, metrics={"R-sum": 100.0, "text_to_image_R@1": None})
    means = results.mean_metrics([first, other])
    assert means["R-sum"] == pytest.approx((first.metrics["R-sum"] + 100) / 2)  # type: ignore[operator]
    assert means["text_to_image_R@1"] is None
    assert means["image_to_text_R@1"] is None
