"""``ccaco train``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ccaco_cli.commands import options
from ccaco_cli.commands.config_options import ConfigSettings, config_options


class ReportTo(StrEnum):
    """Services that a run can be logged to."""

    tensorboard = "tensorboard"
    wandb = "wandb"


@config_options()
def train(
    settings: ConfigSettings,
    dataset: options.Dataset = "scenes",
    arm: Annotated[
        str, typer.Option("--arm", help="Model variant: ccaco, clip, -contrastive ...", rich_help_panel="Model")
    ] = "ccaco",
    name: Annotated[
        str | None,
        typer.Option("--name", help="Name of the run.", show_default="DATASET-ARM-sSEED", rich_help_panel="Run"),
    ] = None,
    logs: Annotated[Path, typer.Option("--logs", help="Folder of the runs.", rich_help_panel="Run")] = Path("runs"),
    resume: Annotated[
        str | None,
        typer.Option(
            "--resume",
            help="'latest': continue an interrupted run from its last checkpoint; with more --epochs, train a "
            "finished run further as NAME-stage2: new warm-up and cosine over the added steps.",
            show_default=False,
            rich_help_panel="Run",
        ),
    ] = None,
    estimate: Annotated[
        bool,
        typer.Option(
            "--estimate",
            help="Only print time and memory of a step, and what to change when it does not fit.",
            rich_help_panel="Run",
        ),
    ] = False,
    accept_changes: Annotated[
        bool,
        typer.Option(
            "--accept-changes",
            help="Resume although settings, data set or number of processes changed; the changes are printed.",
            rich_help_panel="Run",
        ),
    ] = False,
    save_minutes: Annotated[
        float,
        typer.Option(
            "--save-every-minutes",
            min=0,
            max=10_000,
            help="Also save checkpoints within an epoch, at this interval.",
            show_default="each epoch",
            rich_help_panel="Run",
        ),
    ] = 0.0,
    keep_checkpoints: Annotated[
        int,
        typer.Option(
            "--keep", min=1, max=10**6, help="Number of checkpoints to keep besides the best.", rich_help_panel="Run"
        ),
    ] = 1,
    verify: options.Verify = "quick",
    data: options.Data = Path("data"),
    report_to: Annotated[
        list[ReportTo] | None,
        typer.Option(
            "--report-to",
            help="Also log to tensorboard or wandb; repeat the flag for both.",
            show_default=False,
            rich_help_panel="Run",
        ),
    ] = None,
    output_format: options.OutputFormat = None,
    wide: options.Wide = False,
) -> None:
    """Train one model and score its best checkpoint. The built-in data set 'scenes' is prepared when it is missing.

    \b
    Examples:
      ccaco train --dataset scenes --alpha 1 --beta 0.5 --name first
      ccaco train --dataset scenes --arm clip --epochs 2 --name quick
      ccaco train --dataset scenes --image-size 256 --batch-size 256 --estimate
      ccaco train --dataset scenes-styles --source-domains colour --target-domain sketch --domain-loss dann
    """
    from ccaco_cli.core.errors import ConfigError
    from ccaco_cli.core.experiments import stages
    from ccaco_cli.core.experiments.request import TrainRequest
    from ccaco_cli.core.experiments.run_folder import TrainOptions
    from ccaco_cli.core.reporting import report_tables
    from ccaco_cli.core.shell import command_line
    from ccaco_cli.core.training.checkpoint_saver import CheckpointOptions
    from ccaco_cli.core.training.health_checks import NAN_EMBEDDINGS
    from ccaco_cli.core.workflows import report
    from ccaco_cli.core.workflows.train import train as workflow
    from ccaco_cli.core.workflows.train import train_notes
    from ccaco_cli.view import live, progress, results, tables

    if resume not in (None, "latest"):
        raise ConfigError("cannot resume from this", where=f"--resume {resume}", expected="--resume latest")
    request = TrainRequest(dataset, arm, settings.base, settings.explicit)
    if estimate:
        from ccaco_cli.core.experiments.estimate import estimate as estimate_cost

        with progress.bar("estimate") as report_progress:
            estimates = estimate_cost(request, data_root=data, on_progress=report_progress)
        rows = [step_estimate.as_dict() for step_estimate in estimates]
        tables.show(rows, list(rows[0]), output_format, "One step")
        return
    folder = logs / (name or f"{Path(dataset).name}-{arm}-s{request.seed}")
    target = stages.folder_to_train(folder, resume is not None)
    with progress.bar(f"train {target.name}") as bar, live.report_to(report_to or (), target, bar) as report_progress:
        run = workflow(
            request,
            folder,
            TrainOptions(resume is not None, accept_changes, CheckpointOptions(save_minutes, keep_checkpoints), verify),
            data_root=data,
            on_progress=report_progress,
            on_note=progress.note,
        )
    for line in train_notes(run):
        progress.note(line)
    folder = run.path
    split = report.scored_split(run.facts["metrics"])
    run_rows = report_tables.run_rows([folder], split=split, every_stage=True)
    results.show(run_rows, output_format, f"{folder} on {split}", wide=wide)
    damaged = [warning["what"] for warning in run.facts["warnings"] if warning["kind"] == NAN_EMBEDDINGS]
    if damaged:
        progress.note(f"{damaged[0]}: this run cannot be searched; next: {_with_lower_lr(run.config['optim']['lr'])}")
        return
    searchable = run.config["method"] == "gradient"  # the other methods store no model that embeds queries
    next_step = (
        (
            "embed",
            "--run",
            folder,
            "--dataset",
            dataset,
            *options.data_option(data),
            "--index",
            Path(f"{Path(dataset).name}.idx"),
        )
        if searchable
        else ("report", folder)
    )
    progress.note(f"next: {command_line(*next_step)}")


def _with_lower_lr(lr: float) -> str:
    """The next step after a run that diverged."""
    return f"the same command with a lower learning rate (--lr {lr / 10:g}) and another --name"
