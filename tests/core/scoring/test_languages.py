from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ccaco_cli.core.config import RunConfig
from ccaco_cli.core.evaluation.protocols import Evaluation, by_similarity, evaluate, join_pools
from ccaco_cli.core.evaluation.significance import per_query
from ccaco_cli.core.scoring import results, split_scorer
from ccaco_cli.core.scoring.languages import PROTOCOL, evaluate_by_language
from ccaco_cli.core.scoring.split_scorer import SplitEncodings, SplitScorer
from ccaco_cli.core.scoring.strata import strata
from ccaco_cli.core.types import Embedding, EncodedSamples
from tests.conftest import edited


def test_each_language_is_a_pool_and_the_metrics_are_means() -> None:
    torch.manual_seed(0)
    images, texts = (F.normalize(torch.randn(n, 6), dim=-1) for n in (4, 12))
    group, group_b = np.arange(4), np.repeat(np.arange(4), 3)
    language = np.array(["de", "en", "en"] * 4)

    def ranked(items: np.ndarray, protocol: str = "full") -> Evaluation:
        groups = group, group_b[items]
        return evaluate(protocol, *groups, by_similarity(images, texts[items], *groups))

    joined = evaluate_by_language(language, ranked)
    alone = {name: ranked(np.flatnonzero(language == name)) for name in ("de", "en")}
    assert joined.pool_names == ("de", "en") and joined.pools == ((4, 4), (4, 8)) and joined.protocol == "languages"
    assert joined.metrics_of_pools() == {name: evaluation.metrics for name, evaluation in alone.items()}
    for name, value in joined.metrics.items():
        assert value == pytest.approx((alone["de"].metrics[name] + alone["en"].metrics[name]) / 2)
    for name in ("image_to_text_R@1", "text_to_image_R@5", "text_to_image_mAP", "R-sum"):  # as tables of tests show it
        assert per_query(name, joined.directions()).mean == pytest.approx(joined.metrics[name])
    stored = Evaluation.from_dict(joined.as_dict())
    assert stored.pool_names == joined.pool_names and stored.metrics_of_pools() == joined.metrics_of_pools()
    assert Evaluation.from_dict(alone["de"].as_dict()).pool_names == ()


def _store(run: Path, evaluations: Mapping[str, Evaluation]) -> None:
    """Replaces the test result of a run by one with a pool for each language."""
    file = run / "results" / "test.two-stage.json"
    joined = join_pools(PROTOCOL, evaluations)
    file.write_text(json.dumps(json.loads(file.read_text()) | joined.as_dict()))
    with edited(run) as body:
        body["facts"]["metrics"]["test.two-stage"] = joined.metrics


def test_a_report_divides_a_result_by_language(ccaco: Callable[..., Any], fabricate: Any) -> None:
    names, things = ("en", "zh"), {"things": [2, 3] * 30}
    runs = [fabricate(arm, 1.0, arm=arm, strata=things) for arm in ("clip", "ccaco")]
    measured = {}
    for number, run in enumerate(runs):
        measured[run.name] = {name: fabricate.evaluation(1.5 + number, i, 60) for i, name in enumerate(names)}
        _store(run, measured[run.name])
    rows = json.loads(ccaco("report", *runs, "--table", "runs", "--by", "language", "--format", "json").out)
    assert [(row["run"], row["language"]) for row in rows] == [(run.name, name) for run in runs for name in names]
    for row in rows:
        expected = measured[row["run"]][row["language"]].metrics
        assert {name: row[name] for name in ("R-sum", "text_to_image_R@1")} == pytest.approx(
            {name: expected[name] for name in ("R-sum", "text_to_image_R@1")}
        )
        assert row["queries"] == 60 + 60 * fabricate.CAPTIONS
    table = ccaco("report", *runs, "--table", "ablation", "--by", "language", "--format", "csv").out
    arms = [(row["arm"], row["language"]) for row in csv.DictReader(io.StringIO(table))]
    assert sorted(arms) == sorted((arm, name) for arm in ("clip", "ccaco") for name in names)
    lowest = min(row["text_to_image_R@1"] for row in rows)
    gate = ccaco("report", *runs, "--by", "language", "--table", "runs", "--fail-if", f"text_to_image_R@1<={lowest}")
    assert gate.code == 1 and gate.err.count("text_to_image_R@1 = ") == 1 and "(language " in gate.err
    # every language ranks all rows, which have the other properties
    (result,) = (results.load_result(run) for run in results.find_runs([runs[0]]))
    parts = strata(result, "things")
    assert [len(part.evaluation.a_to_b[0].rank) for part in parts.values()] == [60, 60]
    kinds = [measured[runs[0].name][name].a_to_b[0].hits(1)[::2].mean() for name in names]
    assert parts[2].metrics["image_to_text_R@1"] == pytest.approx(np.mean(kinds))
    done = ccaco("report", runs[0], "--by", "langage")
    assert done.code == 2 and "did you mean language?" in done.err


def test_captions_of_one_language_are_ranked_as_those_of_a_data_set_without(fabricate: Any) -> None:
    calls = []

    def ranked(items: np.ndarray, protocol: str) -> Evaluation:
        calls.append((items.tolist(), protocol))
        return fabricate.evaluation(1.0, 0, 20, protocol)

    only = evaluate_by_language(np.array(["zh"] * 40), ranked, "flickr-1k")
    assert calls == [(list(range(40)), "flickr-1k")] and (only.protocol, only.pool_names) == ("flickr-1k", ("zh",))


def test_shortlists_among_captions_of_all_languages_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    z = torch.eye(4)
    images, texts = (EncodedSamples(Embedding(rows, rows)) for rows in (z, z.repeat(2, 1)))
    language = np.repeat(["en", "zh"], 4)
    encodings = SplitEncodings(images, texts, np.arange(4), np.tile(np.arange(4), 2), language=language)
    shortlists: Any = ("of all", "languages")
    known = []

    def ranked(aligner: Any, a: EncodedSamples, b: EncodedSamples, groups: Any, *others: Any) -> Evaluation:
        known.append((len(b.z), others[-1]))
        return evaluate("full", *groups, by_similarity(a.z, b.z, *groups))

    monkeypatch.setattr(split_scorer, "two_stage", ranked)
    split: Any = SimpleNamespace(group=np.arange(4))
    scorer = SplitScorer(("image", "text"), split, encodings, object(), RunConfig(), 1.0, True, shortlists)  # type: ignore[arg-type]
    assert scorer._evaluate("two-stage", encodings, "full").pool_names == ("en", "zh")
    assert known == [(4, None), (4, None)]
