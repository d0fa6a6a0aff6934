from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ccaco_cli.core.errors import ConfigError, DataError
from ccaco_cli.core.evaluation import significance
from ccaco_cli.core.evaluation.significance import NOT_SEPARABLE
from ccaco_cli.core.experiments.fairness import check_fair
from ccaco_cli.core.reporting.comparison import DatasetVerdict, arm_rows, comparison_rows, verdicts
from ccaco_cli.core.reporting.rows import Cells, as_dicts
from ccaco_cli.core.scoring import results
from ccaco_cli.core.scoring.strata import strata


def arms(measured: list[results.Run], **options: Any) -> list[Cells]:
    """The rows as CSV and JSON have them."""
    return as_dicts(arm_rows(measured, **options))


def pair(measured: list[results.Run]) -> list[Cells]:
    return as_dicts(comparison_rows(measured))


def verdict(measured: list[results.Run], name: str, reference: str, metric: str) -> DatasetVerdict:
    """The verdict on the first data set."""
    return verdicts(measured, name, reference, metric)[0]


def runs(fabricate: Any, skills: dict[str, float], seeds: int = 3, **more: Any) -> list[results.Run]:
    for arm, skill in skills.items():
        for seed in range(seeds):
            fabricate(f"{arm}-s{seed}", skill, arm=arm, seed=seed, **more)
    return results.find_runs([fabricate.root / f"{arm}-s{seed}" for arm in skills for seed in range(seeds)])


def test_one_row_an_arm_with_what_speaks_for_a_difference(fabricate: Any) -> None:
    run_list = runs(fabricate, {"clip": 1.5, "ccaco": 3.0, "twin": 3.0, "dull": 0.0})
    rows = {row["arm"]: row for row in arms(run_list)}
    assert list(rows) == ["clip", "ccaco", "twin", "dull"]
    assert len({tuple(row) for row in rows.values()}) == 1, "the same columns in the same order"
    assert rows["ccaco"]["verdict"] == "reference"
    assert rows["ccaco"]["difference"] is None
    assert {row["reference"] for row in rows.values()} == {"ccaco"}
    assert (rows["clip"]["verdict"], rows["dull"]["verdict"]) == ("worse", "worse")
    assert (rows["twin"]["verdict"], rows["twin"]["p"], rows["twin"]["effect"], rows["twin"]["difference"]) == (
        NOT_SEPARABLE,
        1.0,
        0.0,
        0.0,
    )
    clip = rows["clip"]
    measured = {r.label: [results.load_result(run) for run in run_list if run.label == r.label] for r in run_list}
    plain, full = ([run.evaluation.metrics["R-sum"] for run in measured[arm]] for arm in ("clip", "ccaco"))
    assert clip["R-sum"] == pytest.approx(sum(plain) / 3)
    assert clip["value"] == pytest.approx(clip["R-sum"])
    assert clip["difference"] == pytest.approx(sum(plain) / 3 - sum(full) / 3)
    assert clip["difference_low"] < clip["difference"] < clip["difference_high"] < 0
    assert clip["low"] <= clip["query_low"] < clip["value"] < clip["query_high"] <= clip["high"]
    assert clip["covers"] == "queries and seeds"
    assert clip["seed_sd"] > 0
    assert (clip["seeds"], clip["paired_seeds"], clip["seconds"], clip["warnings"], clip["failed"]) == (
        3,
        3,
        11.0,
        [],
        0,
    )
    assert clip["p_holm"] == pytest.approx(3 * clip["p"]), "the smallest of three is corrected threefold"

    against = {row["arm"]: row for row in arms(run_list, metric="text_to_image_R@1", reference="clip")}
    assert (against["ccaco"]["verdict"], against["clip"]["verdict"]) == ("better", "reference")
    assert against["ccaco"]["value"] == pytest.approx(against["ccaco"]["text_to_image_R@1"])
    assert against["ccaco"]["difference"] > 0


def test_only_seeds_that_both_have_are_paired(fabricate: Any) -> None:
    paths = [fabricate(f"ccaco-s{s}", 2.0, seed=s) for s in (2, 0, 1)]
    paths += [fabricate(f"clip-s{s}", 2.0, arm="clip", seed=s) for s in (1, 5)]
    paths += [fabricate("cross-s7", 2.0, arm="cross", seed=7)]
    rows = {row["arm"]: row for row in arms(results.find_runs(paths))}
    assert (rows["clip"]["seeds"], rows["clip"]["paired_seeds"]) == (2, 1)
    assert rows["clip"]["difference"] == 0, "seed 1 of both is the same run; another pairing would differ"
    assert rows["clip"]["difference_covers"] == "queries only: one seed"
    assert rows["clip"]["covers"] == "queries and seeds"
    assert (rows["cross"]["verdict"], rows["cross"]["difference"]) == ("no seed in common", None)
    assert rows["cross"]["covers"] == "queries only: one seed"


def test_an_arm_that_failed_stays_in_the_table(fabricate: Any) -> None:
    run_list = runs(fabricate, {"ccaco": 2.0, "clip": 1.0}, seeds=2)
    rows = {row["arm"]: row for row in arms(run_list, failed={"clip": 1, "vilbert": 2}, reference="vilbert")}
    assert (rows["clip"]["failed"], rows["vilbert"]["failed"]) == (1, 2)
    assert (rows["vilbert"]["seeds"], rows["vilbert"]["verdict"], rows["vilbert"]["R-sum"]) == (0, "failed", None)
    assert rows["clip"]["reference"] == "ccaco", "the reference that failed is replaced, and the row says by what"
    with pytest.raises(DataError, match=r"reference arm: nobody; expected ccaco | clip"):
        arms(run_list, reference="nobody")


def test_slow_arms_are_compared_on_the_gallery_that_all_share(fabricate: Any) -> None:
    run_list = runs(fabricate, {"ccaco": 3.0, "clip": 2.0}, seeds=2, small=True)
    for seed in range(2):
        path = fabricate(f"vilbert-s{seed}", 1.0, arm="vilbert", seed=seed, stage="small", small=True)
        run_list += results.find_runs([path])
    rows = [(row["pool"], row["arm"], row["queries"], row["verdict"] == "reference") for row in arms(run_list)]
    assert rows == [
        ("full", "ccaco", 180, True),
        ("full", "clip", 180, False),
        ("first-20", "vilbert", 60, False),
        ("first-20", "ccaco", 60, True),
        ("first-20", "clip", 60, False),
    ]
    assert verdict(run_list, "ccaco", "vilbert", "R-sum").verdict == "better"
    assert pair([run_list[0], run_list[-1]])[0]["reference"] == "ccaco-s0 (small)"


@pytest.mark.parametrize(
    ("setting", "rule", "next_to"),
    [
        ({"optim.epochs": 3}, "step budget", "epochs = 3"),
        ({"optim.batch_size": 3}, "step budget", "batch_size = 3"),
        ({"eval.protocol": "coco-1k"}, "evaluation pool", "coco-1k"),
        ({"eval.select": "text_to_image_R@1"}, "selection rule", "text_to_image_R@1"),
        ({"optim.patience": 4}, "selection rule", "patience = 4"),
    ],
)
def test_unequal_arms_are_refused_by_name(fabricate: Any, setting: dict[str, Any], rule: str, next_to: str) -> None:
    run_list = runs(fabricate, {"ccaco": 2.0}, seeds=1) + results.find_runs(
        [fabricate("clip-s0", 1.0, arm="clip", config=setting)]
    )
    with pytest.raises(ConfigError, match=rf"differ in {rule}: ccaco .*; clip .*{next_to}"):
        arms(run_list)
    with pytest.raises(ConfigError, match=rule):
        verdict(run_list, "ccaco", "clip", "R-sum")
    assert verdict(run_list, "ccaco-s0", "clip-s0", "R-sum"), "two runs by name may be set side by side"


def test_epochs_do_not_matter_where_steps_are_set() -> None:
    check_fair(
        {
            "a": {"optim": {"steps": 5, "epochs": 1}},
            "b": {"optim": {"steps": 5, "epochs": 2}},
            "a result without config": {},
        }
    )
    with pytest.raises(ConfigError, match="step budget"):
        check_fair({"a": {"optim": {"steps": 5, "epochs": 1}}, "b": {"optim": {"steps": 6, "epochs": 1}}})


def test_strata_divide_queries_and_not_galleries(fabricate: Any) -> None:
    things = [2] * 30 + [3] * 29 + [5]
    run_list = runs(fabricate, {"ccaco": 2.5, "clip": 1.0}, seeds=2, strata={"things": things})
    rows = arms(run_list, by="things")
    assert [(row["things"], row["arm"], row["queries"]) for row in rows] == [
        (value, arm, n) for value, n in ((2, 90), (3, 87), (5, 3)) for arm in ("ccaco", "clip")
    ]
    result = results.load_result(run_list[0])
    parts = strata(result, "things")
    assert {part.evaluation.a_to_b[0].gallery for part in parts.values()} == {120}
    assert parts[3].evaluation.b_to_a[0].query_group.tolist() == [g for g in range(30, 59) for _ in range(2)]
    hits = result.evaluation.b_to_a[0].hits(1)
    assert parts[2].metrics["text_to_image_R@1"] == pytest.approx(hits[:60].mean())
    both = [strata(results.load_result(run), "things")[2].metrics["text_to_image_R@1"] for run in run_list[:2]]
    assert rows[0]["text_to_image_R@1"] == pytest.approx(sum(both) / 2)
    assert rows[1]["verdict"] == "worse"
    assert (rows[5]["verdict"], rows[5]["low"]) == ("too few queries", None)
    with pytest.raises(DataError, match=r"0 values of size for 60 rows.*strata: things"):
        arms(run_list, by="size")


def test_choices_are_tested_by_picture(fabricate: Any) -> None:
    items = {"binding": [1, 0] * 20, "binding_row": [i // 2 for i in range(40)], "matching": [1] * 120}
    with_nan = {"binding": [0, 0] * 20, "binding_row": items["binding_row"], "matching": [1, 0] * 60}
    paths = [fabricate("ccaco-s0", 1.0, items=items), fabricate("clip-s0", 1.0, arm="clip", items=with_nan)]
    rows = arms(results.find_runs(paths), metric="binding_accuracy")
    assert [(row["value"], row["difference"]) for row in rows] == [(0.5, None), (0.0, -0.5)]
    assert verdict(results.find_runs(paths), "ccaco", "clip", "matching_accuracy").verdict == "better"
    with pytest.raises(ConfigError, match="no such metric: sign_accuracy"):
        arms(results.find_runs(paths), metric="sign_accuracy")


def test_two_runs_metric_by_metric(fabricate: Any) -> None:
    run_list = results.find_runs(
        [fabricate("a", 1.0, seed=0), fabricate("b", 2.5, arm="clip", seed=1, config={"optim.epochs": 2})]
    )
    rows = {row["metric"]: row for row in pair(run_list)}
    assert list(rows)[:6] == [
        *(f"image_to_text_{m}" for m in ("R@1", "R@5", "R@10", "mAP", "mean_rank")),
        "text_to_image_R@1",
    ]
    assert list(rows)[-1] == "R-sum"
    assert {row["verdict"] for row in rows.values()} == {"better"}
    assert rows["text_to_image_mean_rank"]["difference"] < 0, "a lower rank is better"
    assert all(row["p_holm"] >= row["p"] for row in rows.values())
    recall = rows["text_to_image_R@1"]
    assert (recall["reference"], recall["other"]) == ("a (two-stage)", "b (two-stage)")
    assert recall["difference"] == pytest.approx(recall["other_value"] - recall["reference_value"])
    direct = significance.compare(*([results.load_result(run).per_query("text_to_image_R@1")] for run in run_list))
    assert recall["p"] == direct.p
    assert {row["difference"] for row in pair([run_list[0], run_list[0]])} == {0.0}


def test_verdicts(fabricate: Any) -> None:
    run_list = runs(fabricate, {"ccaco": 3.0, "clip": 1.0, "twin": 3.0}, seeds=2)
    first = verdict(run_list, "ccaco", "clip", "text_to_image_R@1")
    assert (first.dataset, first.verdict) == ("toy", "better")
    assert verdict(run_list, "clip", "ccaco", "R-sum").verdict == "worse"
    assert verdict(run_list, "ccaco", "twin", "R-sum").verdict == NOT_SEPARABLE
    assert verdict(run_list, "ccaco-s0", "clip-s1", "R-sum").verdict == "better"
    other = results.find_runs(
        [fabricate("clip-s9", 1.0, arm="solo", seed=9), fabricate("far", 1.0, arm="far", dataset="sea")]
    )
    with pytest.raises(DataError, match="no seed in common"):
        verdict(run_list + other, "ccaco", "solo", "R-sum")
    with pytest.raises(DataError, match="never measured on the same data set"):
        verdict(run_list + other, "ccaco", "far", "R-sum")
    with pytest.raises(DataError, match=r"no such arm or run here: cliff; expected ccaco \| clip"):
        verdict(run_list, "cliff", "clip", "R-sum")
    with pytest.raises(ConfigError, match="no such metric"):
        verdict(run_list, "ccaco", "clip", "R@1")


def test_a_figure_that_is_not_a_number_is_reported(fabricate: Any) -> None:
    run_list = runs(fabricate, {"clip": 1.0}, seeds=1)
    facts = {"metrics": {"test.two-stage": {"R-sum": None}}}
    run_list += results.find_runs([fabricate("sick-s0", 1.0, arm="sick", facts=facts)])
    assert verdict(run_list, "sick", "clip", "R-sum").verdict == "NaN"


def test_other_test_pools_are_refused(fabricate: Any, tmp_path: Path) -> None:
    run_list = runs(fabricate, {"ccaco": 1.0}, seeds=1)
    other = results.find_runs([fabricate("clip-s0", 1.0, arm="clip", data="e" * 64)])
    for compare in (arms, pair, lambda both: verdict(both, "ccaco", "clip", "R-sum")):
        with pytest.raises(DataError, match=r"different test pools .*toy (d{12}; .*toy e{12}|e{12}; .*toy d{12});"):
            compare(run_list + other)
    elsewhere = results.find_runs([fabricate("clip-s0", 1.0, arm="clip", dataset="sea", root=tmp_path)])
    assert [(row["dataset"], row["verdict"]) for row in arms(run_list + elsewhere)] == [
        ("toy", "reference"),
        ("sea", "reference"),
    ]


def test_choices_are_divided_by_their_picture(fabricate: Any) -> None:
    rows = [i // 2 for i in range(40)]
    right = [int(row < 5) for row in rows]
    run = fabricate(
        "ccaco-s0", 1.0, items={"binding": right, "binding_row": rows}, strata={"things": [2] * 10 + [3] * 50}
    )
    table = arms(results.find_runs([run]), by="things", metric="binding_accuracy")
    assert [(row["things"], row["binding_accuracy"], row["value"]) for row in table] == [(2, 0.5, 0.5), (3, 0.0, 0.0)]
