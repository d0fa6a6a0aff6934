"""``ccaco embed``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ccaco_cli.commands import options


def embed(
    run: Annotated[Path, typer.Option("--run", help="A finished run.")],
    dataset: options.Dataset = "scenes",
    split: Annotated[str, typer.Option("--split", help="Which part of the data set.")] = "test",
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the shards.", show_default="embeddings/RUN-DATASET-SPLIT")] = None,
    index: Annotated[Path | None, typer.Option("--index", help="Also build a self-contained index here.", show_default=False)] = None,
    device: options.Device = "auto",
    data: options.Data = Path("data"),
) -> None:
    """Embed both modalities as shards in clip-retrieval's layout, and build an index that 'retrieve' can search.

    Finished shards are kept, so the same command goes on after an interruption.

    \b
    Examples:
      ccaco embed --run runs/first --dataset scenes --index scenes.idx
      ccaco embed --run runs/first --dataset scenes --split val --out embeddings/val
    """
    from ccaco_cli.core.workflows.embed import embed as workflow
    from ccaco_cli.view import progress

    out = out or Path("embeddings") / f"{run.name}-{Path(dataset).name}-{split}"
    with progress.bar("embed") as tell:
        found = workflow(run, dataset, split=split, out=out, index=index, device=device, data_root=data, on_progress=tell)
    rows = ", ".join(f"{count:,} {modality}" for modality, count in found.facts["rows"].items())
    progress.note(f"{found.path}: {rows}")
    progress.note(
        f"next: ccaco retrieve {options.QUERIES[found.facts['modalities'][1]]} --index {index}"
        if index
        else f"next: add --index {Path(dataset).name}.idx to search them"
    )
