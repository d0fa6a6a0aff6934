from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ccaco_cli.core import manifest
from ccaco_cli.core.data import shards
from ccaco_cli.core.encoding.columns import columns
from ccaco_cli.core.errors import ConfigError
from ccaco_cli.core.experiments import ensemble
from ccaco_cli.core.experiments.cross_dataset import ScoreOptions, score_on
from ccaco_cli.core.experiments.grid import AblationRequest
from ccaco_cli.core.experiments.request import TrainRequest
from ccaco_cli.core.experiments.run_folder import load_run
from ccaco_cli.core.experiments.split_encoding import SplitEncoder
from ccaco_cli.core.reporting.report_tables import ReportRequest, table
from ccaco_cli.core.reporting.rows import as_dicts
from ccaco_cli.core.scoring import results
from ccaco_cli.core.workflows.ablate import ablate


def test_every_set_of_seeds_once() -> None:
    assert ensemble.members([0, 1, 2], 2) == {0: (0, 1), 1: (1, 2), 2: (2, 0)}
    assert ensemble.members([3, 5], 2) == {3: (3, 5)}
    assert len(ensemble.members(range(5), 3)) == 5


def test_cosines_of_two_models_are_added(small: dict[str, Any], data_root: Path, tmp_path: Path) -> None:
    request, folder = TrainRequest("scenes", explicit=small | {"optim.steps": 3}), tmp_path / "abl"
    ablation = ablate(AblationRequest(request, ["ccaco", "clip"], 2, ensemble=2), folder, data_root=data_root)
    rows = {row["arm"]: row for row in as_dicts(ablation.table)}
    assert list(rows) == ["ccaco", "clip", "clip,ensemble=2"], "an arm with a cross branch is no control"
    assert rows["clip,ensemble=2"]["seeds"] == 1 and rows["clip,ensemble=2"]["verdict"]

    data, cosines = shards.open(data_root / "scenes"), 0.0
    for seed in (0, 1):
        aligner, towers, config, _ = load_run(folder / f"clip-s{seed}", "cpu")
        encoded = SplitEncoder(data, config, aligner, towers).encode(
            "test", columns(data, "test", aligner, towers, config.model)
        )
        cosines = cosines + (encoded.a.z.double() @ encoded.b.z.double().T).numpy()
    split = data.split("test")
    positives = split.group[encoded.row_a][:, None] == split.group[encoded.row_b]
    best_own = np.where(positives, cosines, -np.inf)
    first = (best_own.max(0) > np.where(positives, -np.inf, cosines).max(0)).mean()
    assert rows["clip,ensemble=2"]["text_to_image_R@1"] == pytest.approx(first)

    ensemble = next(run for run in results.find_runs([folder]) if run.label == "clip,ensemble=2")
    assert (
        ensemble.facts["parameters"]
        == 2 * next(r for r in results.find_runs([folder]) if r.label == "clip").facts["parameters"]
    )
    notes: list[str] = []
    scored = score_on([folder], "scenes", ScoreOptions(device="cpu"), data_root=data_root, on_note=notes.append)
    assert len(scored) == 4, "an ensemble cannot be scored on a data set, and does not keep its models from it"
    assert notes == ["ensembles have no model of their own and are left out: clip,ensemble=2-s0"]
    before = ensemble.path.stat().st_mtime_ns
    turned = ablate(
        AblationRequest(request, ["ccaco", "clip"], 2, ensemble=2, reference="clip,ensemble=2"),
        folder,
        data_root=data_root,
    )
    assert {row["arm"]: row["verdict"] for row in as_dicts(turned.table)}["clip,ensemble=2"] == "reference"
    again = ablate(AblationRequest(request, ["ccaco", "clip"], 2, ensemble=2), folder, data_root=data_root)
    assert repr(again.table) == repr(ablation.table) and ensemble.path.stat().st_mtime_ns == before, "scored once"
    assert [row["run"] for row in as_dicts(again.rows) if "ensemble" in row["run"]] == ["clip,ensemble=2-s0"]
    assert {row["arm"] for row in as_dicts(table(ReportRequest([folder])))} == set(rows), "the report has it too"
    assert len(manifest.open(folder, kind="ablation", verify="full").files) == 1
    ensemble.path.write_text(ensemble.path.read_text().replace("cosine", "Cosine", 1))
    with pytest.raises(Exception, match=r"test\.cosine\.json"):
        manifest.open(folder, kind="ablation", verify="full")
    ensemble.path.write_text("{")
    mended = ablate(AblationRequest(request, ["ccaco", "clip"], 2, ensemble=2), folder, data_root=data_root)
    assert repr(mended.table) == repr(ablation.table), "a damaged result is made again"


def test_an_ensemble_of_nothing_is_refused_before_training(
    small: dict[str, Any], data_root: Path, tmp_path: Path
) -> None:
    request = TrainRequest("scenes", explicit=small | {"optim.steps": 1})
    with pytest.raises(ConfigError, match="no ensemble of 3"):
        ablate(AblationRequest(request, ["clip"], 2, ensemble=3), tmp_path / "a", data_root=data_root)
    with pytest.raises(ConfigError, match="no arm to make an ensemble of"):
        ablate(AblationRequest(request, ["ccaco"], 2, ensemble=2), tmp_path / "a", data_root=data_root)
    assert not (tmp_path / "a").exists()
