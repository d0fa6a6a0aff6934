"""``ccaco ablate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ccaco_cli.commands import options


def ablate(
    dataset: options.Dataset = "scenes",
    arms: Annotated[str, typer.Option("--arms", help="Arms, with commas between them.")] = "ccaco,clip,-contrastive",
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Seeds of every arm.")] = 3,
    alpha: options.Alpha = None,
    beta: options.Beta = None,
    image_tower: options.ImageTower = None,
    text_tower: options.TextTower = None,
    lock_image: options.LockImage = None,
    lock_text: options.LockText = None,
    cache_tokens: options.CacheTokens = None,
    epochs: options.Epochs = None,
    batch_size: options.BatchSize = None,
    lr: options.Lr = None,
    wd: options.Wd = None,
    warmup: options.Warmup = None,
    precision: options.Precision = None,
    name: Annotated[str | None, typer.Option("--name", help="Of the ablation.", show_default="DATASET-ablation")] = None,
    logs: Annotated[Path, typer.Option("--logs", help="Where runs lie.")] = Path("runs"),
    config: options.ConfigFile = None,
    set_: options.Settings = None,
    device: options.Device = "auto",
    workers: options.Workers = None,
    data: options.Data = Path("data"),
    shown: options.Shown = None,
) -> None:
    """Train every arm with every seed on the same data and budget, and set them side by side.

    Finished cells are skipped, so the same command goes on after an interruption.

    [bold]Examples[/bold]

    ccaco ablate --dataset scenes --arms ccaco,clip --seeds 2

    ccaco ablate --dataset scenes --arms ccaco,clip,-contrastive --epochs 2 --name quick
    """
    from ccaco_cli.core.workflows.ablate import ablate as workflow
    from ccaco_cli.core.workflows.train import Asked
    from ccaco_cli.view import progress, results

    folder = logs / (name or f"{Path(dataset).name}-ablation")
    asked = Asked(dataset, "ccaco", options.file_settings(config), options.settings(set_, locals()))
    with progress.bar("ablate") as tell:
        found = workflow(asked, arms.split(","), seeds, folder, data_root=data, on_progress=tell)
    results.show(found.rows, shown, str(folder))
    for cell, error in found.failures.items():
        progress.note(f"failed: {cell}: {error}")
    progress.note(f"next: ccaco report {folder}")
    if found.failures:
        raise typer.Exit(1)
