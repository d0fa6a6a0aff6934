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
            help="all, baselines, fusion, ablation, attention, balance, domain, classifiers, or names, with commas between them.",
        ),
    ] = "ccaco,clip,-contrastive",
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Seeds of every arm.")] = 3,
    grid: Annotated[
        Path | None,
        typer.Option(
            "--grid",
            metavar="FILE",
            help="TOML: a table [grid] of settings and the values to try with every arm.",
            show_default=False,
        ),
    ] = None,
    ensemble: Annotated[
        int | None,
        typer.Option(
            "--ensemble",
            min=2,
            metavar="N",
            help="Also score N seeds of every contrastive-only arm with their cosines added: the control of any two-stage gain.",
            show_default=False,
        ),
    ] = None,
    metric: options.Metric = "R-sum",
    reference: options.Reference = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Of the ablation.", show_default="DATASET-ablation")
    ] = None,
    logs: Annotated[Path, typer.Option("--logs", help="Where runs lie.")] = Path("runs"),
    jobs: Annotated[
        int, typer.Option("--jobs", min=1, help="Arms trained at once on a CPU, each with its share of the cores.")
    ] = 1,
    data: options.Data = Path("data"),
    shown: options.Shown = None,
) -> None:
    """Train every arm with every seed on the same data and budget, and say whether they differ beyond chance.

    Finished cells are skipped and interrupted ones go on, so the same command goes on after an interruption.

    \b
    Examples:
      ccaco ablate --dataset scenes --arms ccaco,clip --seeds 2
      ccaco ablate --dataset scenes --arms ccaco,clip,-contrastive --epochs 2 --name quick --reference clip
      ccaco ablate --dataset scenes --arms ccaco,clip --ensemble 2
    """
    from ccaco_cli.core.experiments import arms as known
    from ccaco_cli.core.experiments.grid import AblationRequest, read_grid
    from ccaco_cli.core.experiments.request import TrainRequest
    from ccaco_cli.core.workflows.ablate import ablate as workflow
    from ccaco_cli.view import progress, results

    folder = logs / (name or f"{Path(dataset).name}-ablation")
    shared = TrainRequest(dataset, "ccaco", settings.base, settings.explicit)
    values = read_grid(grid) if grid else {}
    request = AblationRequest(shared, known.expand(arms), seeds, values, metric, reference, ensemble or 0)
    with progress.bar("ablate") as tell:
        found = workflow(request, folder, jobs=jobs, data_root=data, on_progress=tell)
    results.show(found.table, shown, str(folder))
    for arm, same in found.equal.items():
        progress.note(f"{arm} has no row: with these towers its settings are those of {same}")
    for cell, error in found.failures.items():
        progress.note(f"failed: {cell}: {error}")
    progress.note(f"next: ccaco report {folder}")
    if found.failures:
        raise typer.Exit(1)
