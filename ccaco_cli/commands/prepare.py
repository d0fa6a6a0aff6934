"""``ccaco prepare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ccaco_cli.commands import options
from ccaco_cli.commands.pair_options import By, Calibrate, KeepAbove, Prior, pair_filter


def prepare(
    name: Annotated[
        str | None,
        typer.Argument(help="Source: scenes, flickr8k, coco, table, hub:NAME ... (see --list).", show_default=False),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--source",
            metavar="PATH",  # as it was typed: a Path would change an address or a command
            help="Published folder or file; webdataset: also a pattern of tar files, an address such as "
            "'s3://bucket/{00000..00099}.tar', or 'pipe:COMMAND', which runs the command.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the prepared data set.", show_default="data/NAME")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, max=10**9, help="Maximum samples per split.", show_default=False)
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(
            "--image-size",
            min=8,
            max=16384,
            help="Re-encode larger images and videos to this short side.",
            show_default=False,
        ),
    ] = None,
    image_key: Annotated[
        str | None, typer.Option("--csv-img-key", help="table: column of image paths.", show_default="filepath")
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
            help="table, hub: column of image, caption, split, domain, label or group.",
        ),
    ] = None,
    media_root: Annotated[
        Path | None,
        typer.Option(
            "--image-root",
            help="Folder of the listed images, sounds or videos, and of what links lead to.",
            show_default="folder of --source",
        ),
    ] = None,
    a: Annotated[
        Path | None,
        typer.Option("--a", metavar="FILE", help="pairs: .npy file of the first side, [N, W].", show_default=False),
    ] = None,
    b: Annotated[
        Path | None,
        typer.Option("--b", metavar="FILE", help="pairs: .npy file of the second side, [N, W].", show_default=False),
    ] = None,
    captions: Annotated[
        Path | None,
        typer.Option(
            "--captions",
            metavar="FILE",
            help="pairs: a caption for each row, one a line; without --b they are the second side.",
            show_default=False,
        ),
    ] = None,
    ids: Annotated[
        Path | None,
        typer.Option(
            "--ids", metavar="FILE", help="pairs: an id for each row, one a line or [N] in .npy.", show_default="number"
        ),
    ] = None,
    groups: Annotated[
        Path | None,
        typer.Option(
            "--groups",
            metavar="FILE",
            help="pairs: the group of each row, one a line or [N] in .npy; rows of one group mean the same.",
            show_default="each row alone",
        ),
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(
            "--template",
            help="imagefolder, audiofolder, hub: caption of a class.",
            show_default="a photo of a {} ...",
        ),
    ] = None,
    unpaired: Annotated[
        str | None,
        typer.Option(
            "--unpaired-domains",
            metavar="NAME,...",
            help="Domains whose images may have no captions.",
            show_default=False,
        ),
    ] = None,
    modality: Annotated[
        str | None,
        typer.Option(
            "--modality",
            help="media, table: image, audio, video or array files.",
            show_default="media: what the folder holds; table: image",
        ),
    ] = None,
    fold: Annotated[
        int,
        typer.Option(
            "--fold", min=0, max=1000, help="audiofolder: test fold of a data set in folds; 0 means the last."
        ),
    ] = 0,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="Seed of generated data sets.")] = 0,
    language: Annotated[
        str,
        typer.Option(
            "--language",
            metavar="CODE,CODE",
            help="Languages of the captions: of scenes (en, zh, es) those that are generated; of sources with several "
            "those that are read; of others one, which all captions are in.",
            show_default="scenes: en; others: all",
        ),
    ] = "",
    val: Annotated[
        str, typer.Option("--val", help="Part of train that becomes val, by group, where the source has no val.")
    ] = "0%",
    test: Annotated[
        str, typer.Option("--test", help="Part of train that becomes test, by group, where the source has no test.")
    ] = "0%",
    max_rejects: Annotated[
        str, typer.Option("--max-rejects", help="Stop when a larger fraction of the samples is rejected.")
    ] = "1%",
    duplicates: Annotated[
        bool,
        typer.Option(
            "--duplicates/--no-duplicates",
            help="List images that look alike in duplicates.csv (0.2 ms an image, 5 ms for 6 megapixels).",
        ),
    ] = True,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            min=0,
            max=1024,
            help="Processes that check samples; 0 means only the main process.",
            show_default="all cores",
        ),
    ] = None,
    keep_above: KeepAbove = None,
    by: By = None,
    calibrate: Calibrate = None,
    prior: Prior = 0.5,
    device: options.Device = "auto",
    preview: Annotated[
        Path | None,
        typer.Option(
            "--preview", metavar="FILE", help="Draw some samples into FILE (.png, .pdf, .svg).", show_default=False
        ),
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Print all sources and the files that each expects.")] = False,
    output_format: options.OutputFormat = None,
) -> None:
    """Convert a published data set to Arrow shards. Every sample is checked.

    \b
    Examples:
      ccaco prepare --list
      ccaco prepare scenes --limit 200 --out data/few-scenes --preview few.png
      ccaco prepare scenes --language en,zh --out data/scenes-en-zh
      ccaco prepare media --source ~/Photos --out data/photos
      ccaco prepare table --source pairs.csv --keep-above 0.5 --by runs/first
      ccaco prepare webdataset --source 'shards/{00000..00099}.tar' --image-size 256
    """
    from ccaco_cli.core.data.domains import split_names
    from ccaco_cli.core.data.shards import WriteOptions
    from ccaco_cli.core.data.sources.source import SourceOptions
    from ccaco_cli.core.data.sources.tar_streams import is_address
    from ccaco_cli.core.data.split_shares import SplitShares
    from ccaco_cli.core.workflows import prepare as workflow
    from ccaco_cli.view import figures, progress, results, tables

    if list_ or name is None:
        tables.show(workflow.listing(), ("name", "modalities", "expects"), output_format, "Sources")
        return
    columns = {k: v for k, v in (("image", image_key), ("caption", caption_key)) if v}
    columns |= options.parse_column_mapping(column, "--column")
    size = image_size or 64
    inputs = {"a": a, "b": b, "captions": captions, "ids": ids, "groups": groups}
    address = source if source is not None and is_address(source) else ""
    out = out or Path("data") / workflow.out_name(name)
    if preview:
        figures.check_suffix(preview)
    chosen = pair_filter(keep_above, by, prior, calibrate, device)
    with progress.bar(f"prepare {name}") as report_progress:
        prepared = workflow.prepare(
            name,
            source_path=Path(source) if source is not None and not address else None,
            out=out,
            options=SourceOptions(
                limit=limit,
                address=address,
                seed=seed,
                languages=split_names(language),
                columns=columns,
                separator=separator,
                size=size,
                template=template or "",
                media_root=media_root,
                unpaired=split_names(unpaired or ""),
                fold=fold,
                inputs={name: file for name, file in inputs.items() if file is not None},
                modality=modality or "",
            ),
            shares=SplitShares(options.parse_fraction(val, "--val"), options.parse_fraction(test, "--test")),
            on_progress=report_progress,
            write=WriteOptions(
                image_size=image_size,
                workers=workers,
                max_rejects=options.parse_fraction(max_rejects, "--max-rejects"),
                duplicates=duplicates,
                pair_filter=chosen,
            ),
        )
    if preview:
        from ccaco_cli.core.data import shards

        figures.preview(preview, shards.open_any(out))
    results.show_prepared(workflow.summary(prepared), output_format, str(out))
    for line in workflow.notes(prepared):
        progress.note(line)
    dataset = out.name if out.parent == Path("data") else out
    progress.note(f"next: {workflow.next_step(prepared, dataset)}")
