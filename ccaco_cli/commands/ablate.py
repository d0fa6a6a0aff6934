"""``ccaco ablate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ccaco_cli.commands import options
from ccaco_cli.commands.config_options import ConfigSettings, config_options


@config_options(without=("seed", "domain.loss", "parallel."))
def ablate(
    settings: ConfigSettings,
    dataset: options.Dataset = "scenes",
    arms: Annotated[
        str,
        typer.Option(
            "--arms",
            help="Names of arms with commas between them, or a set: all, baselines, fusion, ablation, attention, "
            "balance, domain or classifiers.",
            rich_help_panel="Model",
        ),
    ] = "ccaco,clip,-contrastive",
    seeds: Annotated[int, typer.Option("--seeds", min=1, max=1000, help="Seeds per arm.", rich_help_panel="Run")] = 3,
    grid: Annotated[
        Path | None,
        typer.Option(
            "--grid",
            metavar="FILE",
            help="TOML file with a table [grid]: settings and the values to try with every arm.",
            show_default=False,
            rich_help_panel="Model",
        ),
    ] = None,
    ensemble: Annotated[
        int | None,
        typer.Option(
            "--ensemble",
            min=2,
            max=1000,
            metavar="N",
            help="Also score N seeds of every contrastive-only arm together, with their cosines added: the control for "
            "a gain by reranking.",
            show_default=False,
            rich_help_panel="Model",
        ),
    ] = None,
    metric: options.Metric = "R-sum",
    reference: options.Reference = None,
    name: Annotated[
        str | None,
        typer.Option("--name", help="Name of the ablation.", show_default="DATASET-ablation", rich_help_panel="Run"),
    ] = None,
    logs: Annotated[Path, typer.Option("--logs", help="Folder of the runs.", rich_help_panel="Run")] = Path("runs"),
    jobs: Annotated[
        int,
        typer.Option(
            "--jobs",
            min=1,
            max=1024,
            help="Runs trained at the same time on a CPU; they share its cores.",
            rich_help_panel="Processes",
        ),
    ] = 1,
    data: options.Data = Path("data"),
    output_format: options.OutputFormat = None,
    wide: options.Wide = False,
) -> None:
    """Train several arms with several seeds and compare them. An arm is one variant of the model.

    All arms use the same data and budget; a statistical test compares each with the reference. Repeat the same command
    after an interruption: finished runs are skipped, interrupted runs are continued.

    \b
    Examples:
      ccaco ablate --dataset scenes --arms ccaco,clip --seeds 2
      ccaco ablate --dataset scenes --arms ccaco,clip,-contrastive --epochs 2 --name quick --reference clip
      ccaco ablate --dataset scenes --arms ccaco,clip --ensemble 2
    """
    from ccaco_cli.core.experiments import arms as arm_names
    from ccaco_cli.core.experiments.grid import AblationRequest, read_grid
    from ccaco_cli.core.experiments.request import TrainRequest
    from ccaco_cli.core.shell import command_line
    from ccaco_cli.core.workflows.ablate import ablate as workflow
    from ccaco_cli.view import progress, results

    folder = logs / (name or f"{Path(dataset).name}-ablation")
    shared = TrainRequest(dataset, "ccaco", settings.base, settings.explicit)
    values = read_grid(grid) if grid else {}
    request = AblationRequest(shared, arm_names.expand(arms), seeds, values, metric, reference, ensemble or 0)
    with progress.bar("ablate") as report_progress:
        ablation = workflow(request, folder, jobs=jobs, data_root=data, on_progress=report_progress)
    results.show(ablation.table, output_format, str(folder), wide=wide)
    for arm, equal_arm in ablation.equal.items():
        progress.note(f"{arm} has no row: with these towers it has the same settings as {equal_arm}")
    for cell, error in ablation.failures.items():
        progress.note(f"failed: {cell}: {error}")
    progress.note(f"next: {command_line('report', folder)}")
    if ablation.failures:
        raise typer.Exit(1)
