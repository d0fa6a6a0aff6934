"""``ccaco prepare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ccaco_cli.commands import options


def prepare(
    name: Annotated[
        str | None,
        typer.Argument(help="A source: scenes, flickr8k, coco, table, hub:NAME ... (see --list).", show_default=False),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option("--source", help="The published folder or file, or a pattern of tar files.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Where the data set goes.", show_default="data/NAME")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="At most this many pictures a split.", show_default=False)
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(
            "--image-size", min=8, help="Re-encode larger pictures and films to this short side.", show_default=False
        ),
    ] = None,
    image_key: Annotated[
        str | None, typer.Option("--csv-img-key", help="table: column of picture paths.", show_default="filepath")
    ] = None,
    caption_key: Annotated[
        str | None, typer.Option("--csv-caption-key", help="table: column of captions.", show_default="title")
    ] = None,
    separator: Annotated[
        str | None, typer.Option("--csv-separator", help="table: column separator.", show_default="by header")
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            "--column",
            metavar="OURS=THEIRS",
            help="table, hub: where image, caption, split, domain, label or group is.",
        ),
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(
            "--template",
            help="imagefolder, audiofolder, hub: the caption of a class.",
            show_default="a photo of a {} ...",
        ),
    ] = None,
    unpaired: Annotated[
        str | None,
        typer.Option(
            "--unpaired-domains",
            metavar="NAME,...",
            help="Domains whose pictures may be without captions.",
            show_default=False,
        ),
    ] = None,
    fold: Annotated[
        int, typer.Option("--fold", min=0, help="audiofolder: the test fold of a set in folds; 0 = the last.")
    ] = 0,
    seed: Annotated[int, typer.Option("--seed", help="Of generated data sets.")] = 0,
    max_rejects: Annotated[
        str, typer.Option("--max-rejects", help="Stop when a larger share than this is rejected.")
    ] = "1%",
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=0, help="Processes that check samples (0 = this one).", show_default="all cores"),
    ] = None,
    preview: Annotated[
        Path | None,
        typer.Option("--preview", metavar="FILE", help="Draw some samples into FILE.png.", show_default=False),
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Print the sources and what each expects to find.")] = False,
    shown: options.Shown = None,
) -> None:
    """Turn a data set as published into Arrow shards, checking every sample.

    \b
    Examples:
      ccaco prepare --list
      ccaco prepare scenes --limit 200 --out data/few-scenes --preview few.png
      ccaco prepare webdataset --source 'shards/{00000..00099}.tar' --image-size 256
    """
    from ccaco_cli.core.data.domains import split_names
    from ccaco_cli.core.data.shards import WriteOptions
    from ccaco_cli.core.data.sources.source import SourceOptions
    from ccaco_cli.core.workflows import prepare as workflow
    from ccaco_cli.view import figures, progress, results, tables

    if list_ or name is None:
        tables.show(workflow.listing(), ("name", "modalities", "expects"), shown, "Sources")
        return
    columns = {k: v for k, v in (("image", image_key), ("caption", caption_key)) if v} | options.pairs(
        column, "--column"
    )
    size = image_size or 64
    out = out or Path("data") / workflow.out_name(name)
    if preview:
        figures.check_suffix(preview)
    with progress.bar(f"prepare {name}") as tell:
        found = workflow.prepare(
            name,
            source_path=source,
            out=out,
            options=SourceOptions(
                limit=limit,
                seed=seed,
                columns=columns,
                separator=separator,
                size=size,
                template=template or "",
                unpaired=split_names(unpaired or ""),
                fold=fold,
            ),
            on_progress=tell,
            write=WriteOptions(
                image_size=image_size, workers=workers, max_rejects=options.share(max_rejects, "--max-rejects")
            ),
        )
    if preview:
        from ccaco_cli.core.data import shards

        figures.preview(preview, shards.open(out))
    results.show_prepared(workflow.summary(found), shown, str(out))
    for line in workflow.notes(found):
        progress.note(line)
    said = out.name if out.parent == Path("data") else out
    trains = found.facts["splits"].get("train", {}).get("samples")
    progress.note(f"next: ccaco train --dataset {said}" if trains else f"next: ccaco report RUN --on {said}")
