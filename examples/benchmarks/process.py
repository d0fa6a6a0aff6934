"""A whole training process: ``ccaco train`` against ``open_clip_train.main``, same photos, model, batch and epochs."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import photos
import record

from ccaco_cli.core.data.sources.source import SourceOptions
from ccaco_cli.core.workflows.prepare import prepare

given = record.arguments(__doc__, model="ViT-B-32", sizes="112,64", count=256, batch=32, photos="")
name, count, batch, sizes = given.model, given.count, given.batch, given.sizes.split(",")
if given.quick:
    name, count, batch, sizes = "RN50", 16, 8, ["64"]
wanted = {"112": 1 / 0.73, "64": 1 / 0.46} if given.device == "cpu" else {}
with tempfile.TemporaryDirectory() as place:
    root = Path(place)
    (root / "files").mkdir()
    source = photos.table(root, photos.folder(root / "files", count + 8, given.photos))
    lines = source.read_text("utf-8").splitlines()
    source.write_text(
        "\n".join([*lines[: count + 1], *(line.removesuffix("train") + "val" for line in lines[count + 1 :])]) + "\n", "utf-8"
    )
    (root / "train.csv").write_text("\n".join(lines[: count + 1]) + "\n", "utf-8")  # the peer scores nothing; ours scores eight photos
    prepare("table", source_path=source, out=root / "data", options=SourceOptions(), workers=0)
    spec, rows = f"open_clip:{name}@none", []
    for size in sizes:
        shared = f"--batch-size {batch} --epochs 1 --lr 1e-4 --device {given.device}"
        ours = f"-m ccaco_cli train --dataset {root}/data --arm clip --image-tower {spec} --text-tower {spec} --image-size {size}"
        ours += f" {shared} --logs {root}/ours --name TURN-{size}"
        peer = f"-m open_clip_train.main --dataset-type csv --train-data {root}/train.csv --csv-separator , --csv-img-key filepath"
        peer += f" --csv-caption-key title --model {name} --force-image-size {size} {shared} --workers 1 --logs {root}/theirs --precision "
        peer += "fp32" if given.device == "cpu" else "amp_bf16"
        commands = ([sys.executable, *ours.split()], [sys.executable, *peer.split()])
        what = f"{name} at {size} px, {count // batch} steps of {batch}"
        rows += record.in_processes(what, *commands, given.repeats, wanted_cpu=wanted.get(size), leaves=[root / "ours", root / "theirs"])
record.finish("Whole training process", rows, given, facts=["full-size photos; ours also scores its model and stores both"])
