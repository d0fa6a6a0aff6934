from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ccaco_cli.core.reporting import page, report_tables
from ccaco_cli.core.reporting.report_tables import ReportRequest
from ccaco_cli.core.reporting.training_log import read_log
from ccaco_cli.core.scoring import results


def test_a_page_of_arms_without_models(fabricate: Any) -> None:
    paths = [
        fabricate(f"{arm}-{seed}", skill, arm=arm, seed=seed)
        for arm, skill in (("ccaco", 2.0), ("clip", 0.5))
        for seed in (0, 1)
    ]
    gathered = page.gather(ReportRequest(paths))
    assert [row.arm for row in gathered.arms] == ["ccaco", "clip"] and len(gathered.runs) == 4
    assert list(gathered.recalls) == ["ccaco", "clip"]
    assert gathered.model is None and any("What needs the model" in reason for reason in gathered.missing)
    summary = {metric.metric: metric for metric in gathered.summary}
    both = [results.load_result(run).metrics for run in results.find_runs(paths[:2])]
    for metric in ("R-sum", "text_to_image_R@1"):
        assert summary[metric].value == pytest.approx(np.mean([m[metric] for m in both]))
        assert summary[metric].low < summary[metric].value < summary[metric].high
    assert summary["R-sum"].covers == "queries and seeds"
    assert gathered.logs["ccaco-0"][0]["contrastive"] == 2.0


def test_runs_that_cannot_be_compared_still_have_a_page(fabricate: Any) -> None:
    paths = [fabricate("one", 2.0, arm="a"), fabricate("two", 1.0, arm="b", data="e" * 64)]
    gathered = page.gather(ReportRequest(paths))
    assert (
        len(gathered.runs) == 2 and not gathered.arms and any("table of arms" in reason for reason in gathered.missing)
    )


def test_a_page_of_a_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page.faithfulness, "PAIRS", 6)
    gathered = page.gather(ReportRequest([run]))
    assert gathered.model is not None and not gathered.missing
    model = gathered.model
    assert [ranking.direction for ranking in model.ranked] == ["text_to_image", "image_to_text"]
    assert model.thumbnails[0] and Image.open(io.BytesIO(model.thumbnails[0])).format == "WEBP"
    assert len(model.thumbnails) == len(model.ids) == len(model.labels[0]) == 25
    assert {row.method for row in model.faithfulness} == {"attention", "gradient"}
    assert model.examples and model.examples[0].image is not None
    origin = gathered.provenance[0]
    assert origin.command.split()[0] == "ccaco" and len(origin.sha256) == 64 and origin.inputs["dataset"]["sha256"]
    assert origin.config.startswith('dataset = "scenes"')
    assert gathered.title == "first" and len(report_tables.run_rows([run])) == len(gathered.runs)


def test_a_line_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"st')
    assert read_log(tmp_path) == [{"step": 1}]
    assert read_log(tmp_path / "gone") == []
