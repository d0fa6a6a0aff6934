from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ccaco_cli.core import manifest
from ccaco_cli.core.errors import ConfigError, DataError, GateError
from ccaco_cli.core.reporting import report_tables
from ccaco_cli.core.reporting.report_tables import ReportRequest
from ccaco_cli.core.reporting.rows import Cells, as_dicts
from ccaco_cli.core.workflows.report import failed_gates


def rows(paths: list[Path]) -> list[Cells]:
    """The rows as CSV and JSON have them."""
    return as_dicts(report_tables.run_rows(paths))


def table(request: ReportRequest, name: str | None = None) -> list[Cells]:
    return as_dicts(report_tables.table(request, name))


def runs(fabricate: Any, **skills: float) -> ReportRequest:
    return ReportRequest(
        [fabricate(f"{arm}-s{seed}", skill, arm=arm, seed=seed) for arm, skill in skills.items() for seed in range(2)]
    )


def test_columns_do_not_depend_on_which_run_comes_first(fabricate: Any) -> None:
    plain = fabricate("clip", 1.0, arm="clip")
    full = fabricate("full", 1.0)
    (full / "metrics.jsonl").write_text('{"step": 1, "contrastive": 2.0, "cross": 0.5, "total": 2.5}\n')
    plain_first, full_first = rows([plain, full]), rows([full, plain])
    assert [list(row) for row in plain_first] == [list(row) for row in full_first]
    assert list(plain_first[0])[:6] == ["run", "dataset", "arm", "seed", "stage", "weight"]
    assert list(plain_first[0])[-8:-5] == ["loss_cross", "loss_total", "parameters"]
    assert (plain_first[0]["loss_cross"], plain_first[1]["loss_cross"]) == (None, 0.5)


def test_runs_divided_by_a_stratum(fabricate: Any) -> None:
    path = fabricate("a", 1.0, strata={"things": [2, 3] * 30})
    table_rows = table(ReportRequest([path], by="things"))
    assert [(row["run"], row["things"], row["queries"]) for row in table_rows] == [("a", 2, 90), ("a", 3, 90)]
    all_rows = rows([path])[0]
    assert sum(row["text_to_image_R@1"] for row in table_rows) / 2 == pytest.approx(all_rows["text_to_image_R@1"])


def test_retrieval_and_matching_by_data_set_and_arm(fabricate: Any) -> None:
    request = runs(fabricate, ccaco=2.0, clip=1.0)
    with pytest.raises(DataError, match="no such figures"):
        table(request, "matching")
    extra = {"metrics": {"test.two-stage": {"matching_accuracy": 0.75, "R-sum": 300.0}}}
    request = ReportRequest([*request.paths, fabricate("sea", 2.0, dataset="sea", facts=extra)])
    table_rows = table(request, "retrieval")
    assert [(row["dataset"], row["arm"], row["seeds"]) for row in table_rows] == [
        ("toy", "ccaco", 2),
        ("toy", "clip", 2),
        ("sea", "ccaco", 1),
    ]
    each = [row["R-sum"] for row in rows(request.paths)]
    assert table_rows[0]["R-sum"] == pytest.approx(sum(each[:2]) / 2)
    assert table_rows[0]["R-sum_seed_sd"] == pytest.approx(abs(each[0] - each[1]) / 2**0.5)
    assert table_rows[2]["R-sum_seed_sd"] is None
    assert [row["matching_accuracy"] for row in table(request, "matching")] == [None, None, 0.75]


def test_which_table_an_ablation_gets(fabricate: Any) -> None:
    request = runs(fabricate, ccaco=2.0, clip=1.0)
    cells = [{"name": p.name, "label": p.name[:-3], "run": manifest.open(p, kind="run").sha256} for p in request.paths]
    broke = {"name": "late-s0", "label": "late", "error": "it broke"}
    manifest.write(fabricate.root, "ablation", facts={"cells": [*cells, broke]})
    table_rows = table(ReportRequest([fabricate.root], reference="clip"))
    assert [(row["arm"], row["verdict"]) for row in table_rows] == [
        ("ccaco", "better"),
        ("clip", "reference"),
        ("late", "failed"),
    ]
    assert [row["run"] for row in table(ReportRequest([fabricate.root], stages=True))] == [
        "ccaco-s0",
        "ccaco-s1",
        "clip-s0",
        "clip-s1",
    ]
    assert len(table(ReportRequest([fabricate.root]), "runs")) == 4
    with pytest.raises(ConfigError, match=r"no such table: pies; expected runs"):
        table(request, "pies")


def test_two_runs_to_compare_and_no_more(fabricate: Any) -> None:
    request = runs(fabricate, ccaco=3.0, clip=1.0)
    first_path, _, _, last_path = request.paths
    assert {row["verdict"] for row in table(ReportRequest([last_path, first_path]), "compare")} == {"better"}
    stages = [first_path / "results/test.two-stage.json", last_path / "results/test.two-stage.json"]
    assert table(ReportRequest(stages), "compare")[0]["reference"] == "ccaco-s0/test.two-stage"
    for paths in ([first_path], request.paths[:3], [fabricate.root]):
        with pytest.raises(DataError, match="runs to compare"):
            table(ReportRequest(paths), "compare")


def test_gates_that_claim(fabricate: Any) -> None:
    request = runs(fabricate, ccaco=3.0, clip=1.0, twin=3.0)
    assert (
        failed_gates(
            request, ["ccaco not better than clip on text_to_image_R@1", "clip better than ccaco on R-sum", "R-sum<10"]
        )
        == []
    )
    (line,) = failed_gates(request, ["ccaco not better than twin on R-sum"])
    assert "ccaco against twin on toy: not separable" in line
    assert "(ccaco not better than twin on R-sum)" in line
    assert (
        len(
            failed_gates(
                request,
                [
                    "clip worse than ccaco on R-sum",
                    "clip not worse than ccaco on R-sum",
                    "ccaco-s0 better than clip-s1 on R-sum",
                ],
            )
        )
        == 2
    )
    assert len(failed_gates(request, ["R-sum<590"])) == 6


def test_nan_fails_a_claim_either_way(fabricate: Any) -> None:
    with_nan = {"metrics": {"test.two-stage": {"R-sum": None}}}
    request = ReportRequest([fabricate("clip", 1.0, arm="clip"), fabricate("sick", 1.0, arm="sick", facts=with_nan)])
    assert (
        len(
            failed_gates(request, ["sick better than clip on R-sum", "sick not better than clip on R-sum", "R-sum>1e9"])
        )
        == 3
    )


@pytest.mark.parametrize(
    "gate",
    ["ccaco better", "ccaco nicer than clip on R-sum", "ccaco not better than clip", "ccaco better than clip on R@1"],
)
def test_claims_that_cannot_be_read(fabricate: Any, gate: str) -> None:
    with pytest.raises(GateError):
        failed_gates(runs(fabricate, ccaco=2.0, clip=1.0), [gate])


def test_tables_of_stored_results_load_no_torch(fabricate: Any) -> None:
    """``ccaco report`` starts fast where it only reads results."""
    request = runs(fabricate, ccaco=2.0, clip=1.0)
    code = """
import sys
from ccaco_cli.app import main
sys.argv = ["ccaco", "report", *sys.argv[1:], "--table", "ablation", "--format", "csv", "--fail-if", "R-sum<1"]
try:
    main()
finally:
    heavy = {"torch", "datasets", "pandas", "matplotlib"} & sys.modules.keys()
    assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code, *request.paths], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr, len(done.stdout.splitlines())) == (0, "", 3)


def test_swapped_twins_by_kind_and_relation_with_chance_and_interval(fabricate: Any) -> None:
    colour, role = [1] * 20, [1, 0] * 10
    items = {
        **{"binding": colour + role, "binding_row": list(range(40))},
        **{"binding_colour": colour, "binding_colour_row": list(range(20))},
        **{"binding_role": role, "binding_role_row": list(range(20, 40))},
        # a choice between captions, with one image: no interval
        **{"choice_add_obj": [1, 1], "choice_add_obj_row": [3, 3]},
    }
    strata = {"relation": ["left"] * 30 + ["on"] * 30}
    run = fabricate("ccaco-s0", 1.0, items=items, strata=strata)
    by_kind = {row["kind"]: row for row in table(ReportRequest([run]), "choices")}
    assert list(by_kind) == [
        *("binding_colour", "binding_role", "binding", "binding_colour/left", "binding_role/left", "binding_role/on"),
        "add_obj",
    ]
    assert [by_kind[kind]["items"] for kind in ("binding", "binding_role/left", "binding_role/on")] == [40, 10, 10]
    role_row = by_kind["binding_role"]
    assert (role_row["choice_accuracy"], role_row["chance"]) == (0.5, 0.5)
    assert 0.2 < role_row["low"] < 0.45 < 0.55 < role_row["high"] < 0.8
    assert by_kind["add_obj"]["low"] is None
    twins = ReportRequest([run], by="relation")
    assert [(row["relation"], row["binding_role_accuracy"]) for row in table(twins, "runs")] == [
        ("left", 0.5),
        ("on", 0.5),
    ]


def test_the_mean_over_kinds_of_choices_has_an_interval(fabricate: Any) -> None:
    items = {
        **{"choice_roles_alike": [1] * 30 + [0] * 10, "choice_roles_alike_row": list(range(40))},
        **{"choice_roles_unlike": [1, 0, 0, 0], "choice_roles_unlike_row": [0, 1, 2, 2]},
    }
    facts = {"metrics": {"test.two-stage": {"choice_accuracy": 0.5, "choice_bigram_accuracy": 0.6}}}
    run = fabricate("ccaco-s0", 1.0, items=items, facts=facts)
    mean = table(ReportRequest([run]), "choices")[-1]
    assert (mean["kind"], mean["items"], mean["bigram_accuracy"]) == ("mean", 44, 0.6)
    assert mean["choice_accuracy"] == pytest.approx(0.5), "both kinds count alike: (0.75 + 0.25) / 2"
    assert 0 < mean["low"] < 0.45 < 0.55 < mean["high"] < 1
