"""``ccaco embed``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ccaco_cli.commands import options


def embed(
    run: Annotated[Path, typer.Option("--run", help="A finished run.")],
    dataset: options.Dataset = "scenes",
    split: Annotated[str, typer.Option("--split", help="Which part of the data set.")] = "test",
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the shards.", show_default="embeddings/RUN-DATASET-SPLIT")
    ] = None,
    index: Annotated[
        Path | None, typer.Option("--index", help="Also build a self-contained index here.", show_default=False)
    ] = None,
    index_type: Annotated[
        str,
        typer.Option(
            "--index-type", help="How vectors are searched: auto (exact below a million), flat, ivf, hnsw, ivfpq."
        ),
    ] = "auto",
    store_tokens: Annotated[
        str, typer.Option("--store-tokens", help="How the index keeps tokens for reranking: float16, int8 or none.")
    ] = "float16",
    store_grid: Annotated[
        int,
        typer.Option(
            "--store-grid", min=0, help="Most patch tokens kept of a picture, average-pooled.", show_default="all"
        ),
    ] = 0,
    precision: Annotated[
        str, typer.Option("--precision", help="Of the towers: auto (bf16 where that is faster), fp32, bf16 or fp16.")
    ] = "auto",
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Replace an index that is there; who reads it is not disturbed.")
    ] = False,
    verify: options.Verify = "quick",
    device: options.Device = "auto",
    data: options.Data = Path("data"),
) -> None:
    """Embed both modalities as shards in clip-retrieval's layout, and build an index that 'retrieve' can search.

    Finished shards are kept, so the same command goes on after an interruption.

    \b
    Examples:
      ccaco embed --run runs/first --dataset scenes --index scenes.idx
      ccaco embed --run runs/first --dataset scenes --index small.idx --store-tokens int8 --store-grid 16
      ccaco embed --run runs/first --dataset scenes --split val --out embeddings/val
    """
    from ccaco_cli.core.modalities import MODALITIES
    from ccaco_cli.core.workflows.embed import embed as workflow
    from ccaco_cli.view import progress

    out = out or Path("embeddings") / f"{run.name}-{Path(dataset).name}-{split}"
    kept: dict[str, Any] = {
        "index_type": index_type,
        "store_tokens": store_tokens,
        "store_grid": store_grid,
        "precision": precision,
    }
    with progress.bar("embed") as tell:
        found = workflow(
            run,
            dataset,
            split=split,
            out=out,
            index=index,
            rebuild=rebuild,
            verify=verify,
            device=device,
            data_root=data,
            on_progress=tell,
            **kept,
        )
    rows = ", ".join(f"{count:,} {modality}" for modality, count in found.facts["rows"].items())
    progress.note(f"{found.path}: {rows}")
    for modality, storage in found.facts.get("storage", {}).items():
        searched, tokens = storage["vectors"], storage["tokens"]
        found_of_exact = f"{searched['type']}, recall@10 {searched['recall']:.3f} of exact search"
        sizes = f"{searched['bytes_per_item']:,.0f} bytes an item; tokens {tokens['store']}, {tokens['bytes_per_item']:,.0f} bytes an item"
        progress.note(f"{modality}: {found_of_exact}, {sizes}")
    if why := found.facts.get("query", {}).get("why"):
        progress.note(f"text queries load the whole model: {why}")
    progress.note(
        f"next: ccaco retrieve {MODALITIES[found.facts['modalities'][1]].query} --index {index}"
        if index
        else f"next: add --index {Path(dataset).name}.idx to search them"
    )
