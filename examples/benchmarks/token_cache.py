"""Token caches: making one against the forward passes of its tower alone, and the memory of a run that reads it."""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import photos
import record
import torch

from ccaco_cli.core import memory, runtime
from ccaco_cli.core.config import ModelConfig, TowerConfig
from ccaco_cli.core.data import shards
from ccaco_cli.core.data.preparation import prepare
from ccaco_cli.core.data.shards import WriteOptions
from ccaco_cli.core.data.sources.source import SourceOptions
from ccaco_cli.core.encoding import columns, token_cache
from ccaco_cli.core.encoding.batching import BATCH_SIZE, batch_positions, prefetch
from ccaco_cli.core.experiments.request import TrainRequest
from ccaco_cli.core.model import towers
from ccaco_cli.core.types import no_progress
from ccaco_cli.core.workflows.train import train

FORWARD, CACHE, DEFAULT_ALLOCATOR, TRAIN = "forward", "cache", "default-allocator", "train"
"""What a process measures."""


def prepare_data(root: Path, options: argparse.Namespace) -> None:
    """Writes ``root/data``: photos of a Flickr8k folder, or generated ones."""
    count = 60 if options.quick else options.count
    settings, write = SourceOptions(limit=count), WriteOptions(workers=0)
    if options.flickr8k:
        prepare("flickr8k", source_path=Path(options.flickr8k), out=root / "data", options=settings, write=write)
        return
    (root / "files").mkdir()
    source = photos.table(root, photos.folder(root / "files", count))
    lines = source.read_text().splitlines()  # every tenth photo for validation
    lines = [line if n % 10 else line.replace(",train", ",val") for n, line in enumerate(lines)]
    source.write_text("\n".join(lines) + "\n")
    prepare("table", source_path=source, out=root / "data", options=SourceOptions(), write=write)


def measure_tower(part: str, modality: str, root: Path, options: argparse.Namespace) -> dict[str, float]:
    """CPU seconds and page faults of one pass of a tower over the training split, with or without writing a cache."""
    spec = options.image_tower if modality == "image" else options.text_tower
    config = ModelConfig(image=TowerConfig(spec=spec, lock=True), text=TowerConfig(spec=spec, lock=True))
    tower = towers.build(config.tower(modality), modality)
    column = columns._uncached(shards.open(root / "data"), "train", tower, True, no_progress)
    tower.module.eval()
    before = resource.getrusage(resource.RUSAGE_SELF)
    if part == FORWARD:
        items = torch.arange(len(column.row)).numpy()
        batches = batch_positions(column, items, BATCH_SIZE["cpu"])
        with torch.inference_mode(), memory.keep_freed_memory():
            for _, inputs in prefetch(lambda positions: column.inputs(items[positions]), batches):
                tower.module(inputs)
    else:
        with tempfile.TemporaryDirectory() as place:
            tokens = config.tower(modality).cache_tokens if tower.grid else 0
            device = torch.device("cpu")
            token_cache.cached(
                tower.module, column, Path(place) / "cache", grid=tower.grid, max_tokens=tokens, device=device
            )
    after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "items": len(column.row),
        "user": after.ru_utime - before.ru_utime,
        "system": after.ru_stime - before.ru_stime,
        "faults": after.ru_minflt - before.ru_minflt,
        "peak": after.ru_maxrss / 2**10,
    }


def measure_run(root: Path, options: argparse.Namespace) -> dict[str, float]:
    """MiB of memory of a run on cached tokens."""
    settings = {
        "model.image.spec": options.image_tower,
        "model.text.spec": options.text_tower,
        "model.image.lock": True,
        "model.text.lock": True,
        "optim.epochs": 2,
        "optim.batch_size": 32,
        "loss.cross_batch": 16,
    }
    name = f"run{sum(1 for _ in root.glob('run*'))}"
    run = train(TrainRequest(str(root / "data"), explicit=settings), root / name)
    cache_bytes = sum(file.stat().st_size for file in (root / "data/cache").rglob("*.npy"))
    return {
        "anonymous": run.facts["fitted"]["memory"],
        "resident": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
        "cache": cache_bytes / 2**20,
    }


def in_new_process(part: str, modality: str, root: Path) -> dict[str, float]:
    """What this script measures with ``--part``, in a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--part", part, "--modality", modality, "--root", str(root)]
    environment = dict(os.environ)
    if part == DEFAULT_ALLOCATOR:
        # a default value: ccaco does not change a configured allocator
        environment["GLIBC_TUNABLES"] = "glibc.malloc.tcache_unsorted_limit=0"
    output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    result: dict[str, float] = json.loads(output.splitlines()[-1])
    return result


def cpu_seconds(result: dict[str, float]) -> float:
    """User and system time."""
    return result["user"] + result["system"]


def compare(modality: str, root: Path, repeats: int) -> tuple[list[record.Row], list[str]]:
    """The rows and facts of one tower."""
    parts = (CACHE, FORWARD, DEFAULT_ALLOCATOR)
    turns = [{part: in_new_process(part, modality, root) for part in parts} for _ in range(repeats)]

    def middle(part: str) -> float:
        return statistics.median(cpu_seconds(turn[part]) for turn in turns)

    items = f"{int(turns[0][CACHE]['items']):,} {modality} items, CPU time"
    rows = [
        record.Row(
            f"{items}: {label}",
            record.time_text(middle(CACHE)),
            record.time_text(middle(peer)),
            [cpu_seconds(turn[peer]) / cpu_seconds(turn[CACHE]) for turn in turns],
            wanted=wanted,
        )
        for peer, label, wanted in (
            (FORWARD, "making the cache, against the forward passes alone", 1 / 1.1),
            (DEFAULT_ALLOCATOR, "making the cache, against glibc's default allocator", None),
        )
    ]
    last = turns[-1]
    facts = [
        f"{modality}, {part}: user {last[part]['user']:.1f} s, system {last[part]['system']:.1f} s, "
        f"{int(last[part]['faults']):,} page faults, resident peak {last[part]['peak']:.0f} MiB"
        for part in parts
    ]
    return rows, facts


def main() -> None:
    """Measures in new processes, and writes the section of RESULTS.md."""
    options = record.arguments(
        __doc__,
        count=400,
        flickr8k="",
        image_tower="torchvision:squeezenet1_0@none",
        text_tower="tiny",
        part="",
        modality="image",
        root="",
    )
    runtime.limit_threads()
    if options.part:
        root = Path(options.root)
        result = (
            measure_run(root, options)
            if options.part == TRAIN
            else measure_tower(options.part, options.modality, root, options)
        )
        print(json.dumps(result))
        return
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        prepare_data(root, options)
        repeats = 1 if options.quick else options.repeats
        image_rows, image_facts = compare("image", root, repeats)
        text_rows, text_facts = compare("text", root, repeats)
        runs = [in_new_process(TRAIN, "image", root) for _ in range(2)]
    run_facts = [
        f"{label}: anonymous peak of training {run['anonymous']:.0f} MiB, resident peak of the process "
        f"{run['resident']:.0f} MiB, files of the cache {run['cache']:.0f} MiB"
        for label, run in zip(("run that makes the cache", "run that reads it"), runs, strict=True)
    ]
    record.finish(
        "Making a token cache", image_rows + text_rows, options, facts=[*image_facts, *text_facts, *run_facts]
    )


if __name__ == "__main__":
    main()
