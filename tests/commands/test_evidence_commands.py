from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest

from ccaco_cli.core import manifest
from ccaco_cli.core.reporting.rows import ArmRow


@pytest.fixture
def paths(fabricate: Any) -> list[Any]:
    return [
        fabricate(f"{arm}-s{s}", skill, arm=arm, seed=s)
        for arm, skill in (("ccaco", 3.0), ("clip", 1.0))
        for s in range(2)
    ]


def test_the_same_columns_whatever_the_format(ccaco: Any, paths: list[Any]) -> None:
    listed = list(csv.DictReader(io.StringIO(ccaco("report", *paths, "--table", "ablation", "--format", "csv").out)))
    parsed = json.loads(ccaco("report", *paths, "--table", "ablation", "--format", "json").out)
    assert list(listed[0]) == list(parsed[0])
    assert [row["verdict"] for row in listed] == ["reference", "worse"]
    assert list(parsed[0])[:5] == ["dataset", "pool", "arm", "seeds", "queries"]
    assert list(parsed[0])[-13:] == [
        *("reference", "paired_seeds", "difference", "difference_low", "difference_high", "difference_covers"),
        *("p", "p_holm", "effect", "verdict", "seconds", "warnings", "failed"),
    ]
    for shown in ("table", "markdown", "latex"):
        text = ccaco("report", *paths, "--table", "ablation", "--format", shown, "--reference", "clip").out
        assert "against clip" in text
        assert "queries and" in text


def test_gates_end_with_one_and_unreadable_ones_with_two(ccaco: Any, paths: list[Any]) -> None:
    done = ccaco("report", *paths, "--format", "csv", "--fail-if", "ccaco not better than clip on text_to_image_R@1")
    assert (done.code, done.err) == (0, "")
    done = ccaco(
        "report", *paths, "--format", "csv", "--fail-if", "clip not better than ccaco on R-sum", "--fail-if", "R-sum<1"
    )
    assert done.code == 1
    assert done.err.startswith("gate: clip against ccaco on toy: worse; R-sum -")
    assert len(done.out.splitlines()) == 5, "the rows are printed all the same"
    for gate in ("ccaco nicer than clip on R-sum", "ccaco better than nobody on R-sum", "R-sum"):
        done = ccaco("report", *paths, "--fail-if", gate)
        assert (done.code, done.out, len(done.err.splitlines())) == (2, "", 1)


def test_two_runs_metric_by_metric(ccaco: Any, paths: list[Any]) -> None:
    rows = json.loads(ccaco("report", "--compare", paths[2], paths[0], "--format", "json").out)
    assert [row["metric"] for row in rows][-1] == "R-sum"
    assert {row["verdict"] for row in rows} == {"better"}
    text = ccaco("report", "--compare", paths[2], paths[0], "--format", "markdown").out
    assert text.startswith("| metric | A: clip-s0 (two-stage) | B: ccaco-s0 (two-stage) | B - A | 95 % |")
    done = ccaco("report", "--compare", *paths)
    assert (done.code, "4 runs to compare" in done.err) == (2, True)


def test_an_ablation_is_shown_with_its_evidence_and_its_failures(ccaco: Any, fabricate: Any, paths: list[Any]) -> None:
    cells = [{"name": p.name, "label": p.name[:-3], "run": manifest.open(p, kind="run").sha256} for p in paths]
    manifest.write(
        fabricate.root, "ablation", facts={"cells": [*cells, {"name": "late-s0", "label": "late", "error": "it broke"}]}
    )
    rows = list(csv.DictReader(io.StringIO(ccaco("report", fabricate.root, "--format", "csv").out)))
    assert [(row["arm"], row["verdict"], row["failed"]) for row in rows] == [
        ("ccaco", "reference", "0"),
        ("clip", "worse", "0"),
        ("late", "failed", "1"),
    ]
    text = ccaco("report", fabricate.root, "--format", "markdown").out
    assert text.splitlines()[-1].startswith("|  |  | late | 0 |")


def test_ablate_reads_sets_and_a_grid(ccaco: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from ccaco_cli.core.workflows import ablate as module

    calls: dict[str, Any] = {}

    def workflow(request: Any, folder: Any, **more: Any) -> Any:
        calls.update(vars(request), folder=folder, **more)
        row = ArmRow("clip", failed=1)
        return module.Ablation([row], [], {"clip-s0": "it broke"})

    monkeypatch.setattr(module, "ablate", workflow)
    (tmp_path / "grid.toml").write_text("[grid]\nloss.beta = [0.1, 1]\n")
    flags = (
        "--grid",
        tmp_path / "grid.toml",
        "--reference",
        "clip",
        "--metric",
        "text_to_image_R@1",
        "--logs",
        tmp_path,
        "--name",
        "x",
    )
    done = ccaco("ablate", "--arms", "clip, -contrastive,clip", "--seeds", 4, *flags, "--format", "csv")
    assert (done.code, done.out) == (1, "dataset,pool,arm,seeds,verdict,failed\n,,clip,0,failed,1\n")
    assert done.err.splitlines()[0] == "failed: clip-s0: it broke"
    assert (calls["arms"], calls["seeds"], calls["folder"], calls["grid"]) == (
        ["clip", "-contrastive"],
        4,
        tmp_path / "x",
        {"loss.beta": [0.1, 1]},
    )
    assert (calls["reference"], calls["metric"]) == ("clip", "text_to_image_R@1")
    assert ccaco("ablate", "--arms", "clpi", "--logs", tmp_path).code == 2
