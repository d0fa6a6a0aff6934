"""A complete training process: ``ccaco train`` against ``open_clip_train.main``, with the same photos and model."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import photos
import record

from ccaco_cli.core.data.preparation import prepare
from ccaco_cli.core.data.shards import WriteOptions
from ccaco_cli.core.data.sources.source import SourceOptions

options = record.arguments(__doc__, model="ViT-B-32", sizes="112:8,64:24", batch=32, photos="")
name, batch, sizes = (
    options.model,
    options.batch,
    [part.split(":") for part in options.sizes.split(",")],
)  # pixels and steps
if options.quick:
    name, batch, sizes = "RN50", 8, [["64", "2"]]
wanted = {"112": 1 / 0.73, "64": 1 / 0.46} if options.device == "cpu" else {}
rows: list[record.Row] = []


def compare(root: Path, size: str, count: int) -> list[record.Row]:
    (root / "files").mkdir()
    source = photos.table(root, photos.folder(root / "files", count + 8, options.photos))
    lines = source.read_text("utf-8").splitlines()
    source.write_text(
        "\n".join([*lines[: count + 1], *(line.removesuffix("train") + "val" for line in lines[count + 1 :])]) + "\n",
        "utf-8",
    )
    (root / "train.csv").write_text(
        "\n".join(lines[: count + 1]) + "\n", "utf-8"
    )  # the peer scores nothing; ours scores eight photos
    prepare("table", source_path=source, out=root / "data", options=SourceOptions(), write=WriteOptions(workers=0))
    spec = f"open_clip:{name}@none"
    shared = f"--batch-size {batch} --epochs 1 --lr 1e-4 --device {options.device}"
    ours = f"-m ccaco_cli train --dataset {root}/data --arm clip --image-tower {spec} --text-tower {spec}"
    ours += f" --image-size {size} {shared} --logs {root}/ours --name TURN-{size}"
    peer = f"-m open_clip_train.main --dataset-type csv --train-data {root}/train.csv --csv-separator ,"
    peer += f" --csv-img-key filepath --csv-caption-key title --model {name} --force-image-size {size} {shared}"
    peer += f" --workers 1 --logs {root}/theirs --precision "
    peer += "fp32" if options.device == "cpu" else "amp_bf16"
    commands = ([sys.executable, *ours.split()], [sys.executable, *peer.split()])
    label = f"{name} at {size} px, {count // batch} steps of {batch}"
    return record.in_processes(
        label, *commands, options.repeats, wanted_cpu=wanted.get(size), leaves=[root / "ours", root / "theirs"]
    )


for size, steps in sizes:
    with tempfile.TemporaryDirectory() as place:
        rows += compare(Path(place), size, int(steps) * batch)
record.finish(
    "Whole training process", rows, options, facts=["full-size photos; ours also scores its model and stores both"]
)
