"""A new loss part is one entry of ``LOSS_PARTS``, for training, balance, logs, health checks, reports and charts."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from ccaco_cli.core.config import LossConfig
from ccaco_cli.core.experiments.request import TrainRequest
from ccaco_cli.core.losses import balance
from ccaco_cli.core.losses.parts import LOSS_PARTS, LossPart
from ccaco_cli.core.losses.total import LossInputs
from ccaco_cli.core.reporting.report_tables import run_rows
from ccaco_cli.core.reporting.training_log import read_log
from ccaco_cli.core.workflows.train import train
from ccaco_cli.view import charts, page
from ccaco_cli.view.watch import snapshot

WEIGHT = 0.5


def uniformity(inputs: LossInputs, config: LossConfig) -> Tensor | None:
    """Uniformity of the first modality's embeddings on the sphere (arXiv:2005.10242, eq. 2)."""
    if inputs.alignment is None:
        return None
    distances = torch.pdist(inputs.alignment.a.z)
    return (-2 * distances.square()).exp().mean().log()


PART = LossPart(
    "uniformity",
    "uniformity_weight",
    lambda config, beta, heads: WEIGHT,
    uniformity,
    lambda config, batch, words: -99.0,
)


def test_new_loss_part_is_one_entry(
    data_root: Path, small: dict[str, Any], run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LOSS_PARTS, PART.name, PART)
    folder = tmp_path / "extended"
    settings = small | {"optim.epochs": 1, "loss.balance": "gradnorm"}
    finished = train(TrainRequest("scenes", explicit=settings), folder, data_root=data_root)

    # trained and logged: the total is the weighted sum with the new part
    steps = [entry for entry in read_log(folder) if "validation" not in entry]
    for entry in steps:
        parts = {part.weight_key: entry[name] for name, part in LOSS_PARTS.items() if name in entry}
        assert entry["total"] == pytest.approx(sum(entry[key] * loss for key, loss in parts.items()), abs=1e-4)

    # balanced: it has its own learned weight
    assert len(balance.build(LossConfig(balance="gradnorm")).get_buffer("multiplier")) == len(LOSS_PARTS)
    assert steps[0]["uniformity_weight"] == WEIGHT
    assert len({entry["uniformity_weight"] for entry in steps}) == len(steps) > 1

    # checked against its chance level
    assert any("the uniformity loss is at" in warning["what"] for warning in finished.facts["warnings"])

    # reported beside a run without it, charted, shown during training, and hidden on the page like the other losses
    rows = [row.as_dict() for row in run_rows([run, folder])]
    assert [row["loss_uniformity"] for row in rows] == [None, steps[-1]["uniformity"]]
    with charts.style():
        titles = [axis.get_title() for axis in charts.curves({"run": read_log(folder)}).axes]
    assert titles[: titles.index("logit_scale")] == [
        *("total", "contrastive", "cross", "separation", "uniformity"),
        *("alpha", "beta", "separation_weight", "uniformity_weight"),
    ]
    shown = io.StringIO()
    Console(file=shown, width=200).print(snapshot([folder]))
    assert "uniformity" in shown.getvalue()
    table = page.results_table(run_rows([folder]), hidden=page.hidden_columns())
    assert table is not None and "uniformity" not in json.dumps(table)
