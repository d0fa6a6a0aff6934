"""Locked towers: an epoch from cached tokens against one that runs them; arms of an ablation that share the cache."""

from __future__ import annotations

import tempfile
from pathlib import Path

import photos
import record

from ccaco_cli.core import manifest, runtime
from ccaco_cli.core.data.preparation import prepare
from ccaco_cli.core.data.shards import WriteOptions
from ccaco_cli.core.data.sources.source import SourceOptions
from ccaco_cli.core.experiments.request import TrainRequest
from ccaco_cli.core.workflows.train import train

options = record.arguments(__doc__, count=400, tower="torchvision:squeezenet1_0@none", size=224, photos="")
runtime.limit_threads()
count = 60 if options.quick else options.count
with tempfile.TemporaryDirectory() as place:
    root = Path(place)
    (root / "files").mkdir()
    files = photos.folder(root / "files", count, options.photos)
    source = photos.table(root, files)
    lines = source.read_text().splitlines()  # every tenth photo for validation
    source.write_text(
        "\n".join(line if n % 10 else line.replace(",train", ",val") for n, line in enumerate(lines, 1)) + "\n"
    )
    prepare("table", source_path=source, out=root / "data", options=SourceOptions(), write=WriteOptions(workers=0))
    settings = {
        "model.image.spec": options.tower,
        "model.image.size": options.size,
        "optim.batch_size": 32,
        "eval.small": 10**6,
    }
    settings |= {"model.text.lock": True, "optim.epochs": 1, "loss.beta": 0.0, "device": options.device}
    number = 0

    def run(lock: bool, **more: object) -> float:
        global number
        number += 1
        explicit = settings | {"model.image.lock": lock} | more
        return record.seconds(
            lambda: train(TrainRequest(str(root / "data"), explicit=explicit), root / f"runs/{number}"), options.device
        )

    first = run(True)
    taken = record.pairs(lambda turn: (run(True), run(False)), options.repeats)
    middle = [sorted(side)[len(side) // 2] for side in zip(*taken, strict=True)]
    finished = manifest.open(
        root / f"runs/{number - 1}", kind="run"
    ).facts  # the last that read its tokens from the cache
    floor = record.operations(
        6 * finished["parameters"] * count, options.device
    )  # of the heads: one way there, two ways back
    factors = [b / a for a, b in taken]
    rows = [
        record.Row(
            f"one epoch, {count} photos",
            *map(record.time_text, middle),
            factors,
            wanted=5,
            over_limit=middle[0] / floor,
        )
    ]
    arms = sum(
        run(True, **{"optim.wd": decay}) for decay in (0.1, 0.3, 0.4)
    )  # another seed would be other random towers
    rows.append(
        record.Row(
            "four arms with one cache, against four that each make it",
            record.time_text(first + arms),
            record.time_text(4 * first),
            [4 * first / (first + arms)],
        )
    )
record.finish(
    "Locked towers and ablation",
    rows,
    options,
    facts=[f"first run, the cache made on the way: {record.time_text(first)}; both sides count scoring too"],
)
