"""``ccaco train``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ccaco_cli.commands import options
from ccaco_cli.commands.config_options import ConfigSettings, config_options


class ReportTo(StrEnum):
    """Where a run can be watched."""

    tensorboard = "tensorboard"
    wandb = "wandb"


@config_options()
def train(
    settings: ConfigSettings,
    dataset: options.Dataset = "scenes",
    arm: Annotated[str, typer.Option("--arm", help="Which model: ccaco, clip, -contrastive ...")] = "ccaco",
    name: Annotated[str | None, typer.Option("--name", help="Of the run.", show_default="DATASET-ARM-sSEED")] = None,
    logs: Annotated[Path, typer.Option("--logs", help="Where runs lie.")] = Path("runs"),
    resume: Annotated[
        str | None,
        typer.Option(
            "--resume", help="'latest': go on from the last checkpoint of an interrupted run.", show_default=False
        ),
    ] = None,
    estimate: Annotated[
        bool,
        typer.Option("--estimate", help="Only say what a step would cost, and what to change when it does not fit."),
    ] = False,
    accept: Annotated[
        bool,
        typer.Option("--accept-changes", help="Resume although settings, data set or processes changed; says which."),
    ] = False,
    minutes: Annotated[
        float,
        typer.Option("--save-every-minutes", min=0, help="Checkpoints within an epoch too.", show_default="each epoch"),
    ] = 0.0,
    keep: Annotated[int, typer.Option("--keep", min=1, help="Checkpoints that stay, besides the best.")] = 1,
    verify: options.Verify = "quick",
    data: options.Data = Path("data"),
    report_to: Annotated[
        list[ReportTo] | None,
        typer.Option("--report-to", help="Also log to tensorboard or wandb (again for both).", show_default=False),
    ] = None,
    shown: options.Shown = None,
) -> None:
    """Train one model and score its best checkpoint. The embedded data set 'scenes' is prepared by itself.

    \b
    Examples:
      ccaco train --dataset scenes --alpha 1 --beta 0.5 --name first
      ccaco train --dataset scenes --arm clip --epochs 2 --name quick
      ccaco train --dataset scenes --image-size 256 --batch-size 256 --estimate
      ccaco train --dataset scenes-styles --source-domains colour --target-domain sketch --domain-loss dann
    """
    from ccaco_cli.core.errors import ConfigError
    from ccaco_cli.core.experiments.methods import CUT
    from ccaco_cli.core.experiments.request import TrainRequest
    from ccaco_cli.core.experiments.run_folder import TrainOptions
    from ccaco_cli.core.reporting import report_tables
    from ccaco_cli.core.training.state import Saving
    from ccaco_cli.core.workflows import report
    from ccaco_cli.core.workflows.train import train as workflow
    from ccaco_cli.view import live, progress, results, tables

    if resume not in (None, "latest"):
        raise ConfigError("cannot resume from this", where=f"--resume {resume}", expected="--resume latest")
    asked = TrainRequest(dataset, arm, settings.base, settings.explicit)
    if estimate:
        from ccaco_cli.core.experiments.estimate import estimate as cost

        with progress.bar("estimate") as tell:
            rows = cost(asked, data_root=data, on_progress=tell)
        tables.show(rows, list(rows[0]), shown, "One step")
        return
    folder = logs / (name or f"{Path(dataset).name}-{arm}-s{asked.seed}")
    with progress.bar(f"train {folder.name}") as bar, live.report_to(report_to or (), folder, bar) as tell:
        found = workflow(
            asked,
            folder,
            TrainOptions(resume is not None, accept, Saving(minutes, keep), verify),
            data_root=data,
            on_progress=tell,
        )
    for change in found.facts.get("resumed_with", ()):
        progress.note(f"resumed although {change}")
    for warning in (w for w in found.facts["warnings"] if w["kind"] == CUT):
        progress.note(f"warning: {warning['what']}")
    split = report.scored_on(found.facts["metrics"])
    results.show(report_tables.rows([folder], split=split, every_stage=True), shown, f"{folder} on {split}")
    searchable = found.config["method"] == "gradient"  # hand-made features leave no model behind, a classifier no words
    progress.note(
        f"next: ccaco embed --run {folder} --dataset {dataset} --index {Path(dataset).name}.idx"
        if searchable
        else f"next: ccaco report {folder}"
    )
