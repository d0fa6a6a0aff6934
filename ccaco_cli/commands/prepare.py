"""``ccaco prepare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ccaco_cli.commands import options


def prepare(
    name: Annotated[
        str | None, typer.Argument(help="A source: scenes, flickr8k, coco, table ... (see --list).", show_default=False)
    ] = None,
    source: Annotated[Path | None, typer.Option("--source", help="The published folder or file.", show_default=False)] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Where the data set goes.", show_default="data/NAME")] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="At most this many pictures a split.", show_default=False)] = None,
    image_size: Annotated[
        int | None, typer.Option("--image-size", min=8, help="Re-encode larger pictures to this short side.", show_default=False)
    ] = None,
    image_key: Annotated[str | None, typer.Option("--csv-img-key", help="table: column of picture paths.", show_default="filepath")] = None,
    caption_key: Annotated[str | None, typer.Option("--csv-caption-key", help="table: column of captions.", show_default="title")] = None,
    separator: Annotated[str | None, typer.Option("--csv-separator", help="table: column separator.", show_default="by suffix")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of generated data sets.")] = 0,
    max_rejects: Annotated[
        float, typer.Option("--max-rejects", min=0, max=1, help="Stop when a larger share than this is rejected.")
    ] = 0.05,
    workers: options.Workers = None,
    list_: Annotated[bool, typer.Option("--list", help="Print the sources and what each expects to find.")] = False,
    shown: options.Shown = None,
) -> None:
    """Turn a data set as published into Arrow shards, checking every sample.

    \b
    Examples:
      ccaco prepare --list
      ccaco prepare scenes --limit 200 --out data/few-scenes
    """
    from ccaco_cli.core.data.sources.source import SourceOptions
    from ccaco_cli.core.workflows import prepare as workflow
    from ccaco_cli.view import progress, tables

    if list_ or name is None:
        tables.show(workflow.listing(), ("name", "modalities", "expects"), shown, "Sources")
        return
    columns = {k: v for k, v in (("image", image_key), ("caption", caption_key)) if v}
    out = out or Path("data") / name
    with progress.bar(f"prepare {name}") as tell:
        found = workflow.prepare(
            name,
            source_path=source,
            out=out,
            options=SourceOptions(limit=limit, seed=seed, columns=columns, separator=separator, size=image_size or 64),
            image_size=image_size,
            workers=workers,
            max_rejects=max_rejects,
            on_progress=tell,
        )
    tables.show(workflow.summary(found), ("split", "samples", "groups", "captions", "rejects"), shown, f"{out} ({found.facts['protocol']})")
    progress.note(f"next: ccaco train --dataset {name if out == Path('data') / name else out}")
