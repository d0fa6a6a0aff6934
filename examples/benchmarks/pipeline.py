"""The input pipeline: JPEG files read by PIL against shards, and tar shards read by webdataset against shards."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import photos
import record
import torch
import webdataset
from PIL import Image

from ccaco_cli.core import runtime
from ccaco_cli.core.data import shards
from ccaco_cli.core.data.loader import Column, MediaColumn, PixelColumn
from ccaco_cli.core.data.preparation import prepare
from ccaco_cli.core.data.shards import WriteOptions
from ccaco_cli.core.data.sources.source import SourceOptions
from ccaco_cli.core.model.towers.image_base import ImagePreprocess

options = record.arguments(__doc__, count=512, size=112, photos="")
runtime.limit_threads()
count = 64 if options.quick else options.count
half = ((0.5,) * 3, (0.5,) * 3)
picture = ImagePreprocess((options.size, options.size), (options.size,), "bicubic", *half)


def by_files(files: list[Path]) -> None:
    """What open_clip's CSV loader does: open, convert, resize, crop, float, normalise, stack."""
    for first in range(0, len(files), 64):
        batch = [picture(Image.open(file).convert("RGB")).float() / 255 for file in files[first : first + 64]]
        (torch.stack(batch) - 0.5) / 0.5


def by_column(column: Column) -> None:
    for first in range(0, len(column.row), 64):
        column.inputs(np.arange(first, min(first + 64, len(column.row))))


def decoder(column: MediaColumn) -> float:
    """Seconds of the JPEG decoder alone, on all threads: the floor of whoever decodes."""
    media = column.split.media("image", column.row)
    return (
        min(record.seconds(lambda: [column.decode(data) for data in media]) for _ in range(3)) / torch.get_num_threads()
    )


with tempfile.TemporaryDirectory() as place:
    root = Path(place)
    (root / "files").mkdir()
    files = photos.folder(root / "files", count, options.photos)
    source = photos.table(root, files)
    rows, splits = [], {}
    for label, resized in (("full-size shards", None), (f"shards of --image-size {options.size}", options.size)):
        out = root / f"data-{resized}"
        prepare(
            "table",
            source_path=source,
            out=out,
            options=SourceOptions(),
            write=WriteOptions(image_size=resized, workers=0),
        )
        split = splits[resized] = shards.open(out).split("train")
        column = MediaColumn(split, "image", picture)
        turn = (lambda c=column: by_column(c)), lambda: by_files(files)
        rows.append(
            record.alternate(label, *turn, options.repeats, wanted=5 if resized else None, limit=decoder(column))
        )
    order = np.random.default_rng(0).permutation(count)  # a training epoch; tar shards are read in their own order
    with webdataset.TarWriter(str(root / "photos.tar")) as tar:
        for number, file in enumerate(files):
            tar.write({"__key__": f"{number:05d}", "jpg": file.read_bytes(), "txt": photos.CAPTION})

    full_size = splits[None]

    def by_shards() -> None:
        for first in range(0, count, 64):
            chosen = order[first : first + 64]
            full_size.media("image", chosen), [full_size.captions[i] for i in full_size.caption_start[chosen]]

    def by_tar() -> None:
        for _ in webdataset.WebDataset(str(root / "photos.tar"), shardshuffle=False).to_tuple("jpg", "txt").batched(64):
            pass

    limit = record.bytes_(sum(file.stat().st_size for file in files))
    label = "bytes and captions, shuffled, against webdataset"
    rows.append(record.alternate(label, by_shards, by_tar, options.repeats, wanted=5, limit=limit))
    column = PixelColumn(split, "image", picture, root / "cache")
    label = "decoded pixels by memory map"
    limit = record.bytes_(column.pixels.nbytes)
    rows.append(
        record.alternate(
            label, lambda: by_column(column), lambda: by_files(files), options.repeats, wanted=100, limit=limit
        )
    )
record.finish(
    "Input pipeline",
    rows,
    options,
    facts=[f"{count} photos, {options.size} px, one process; ours gives uint8, normalised on the device"],
)
