"""Slopes with the number of processes: `ccaco prepare --workers N`, and `ccaco embed` under torchrun.

Each figure is the time of two runs of different size, so that starting up does not count. The processes compute with
one thread each. The source of prepare are shards on disk, and the same through `pipe:cat`.
"""

from __future__ import annotations

import io
import math
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import record
from checkpoint_folder import write_checkpoint
from PIL import Image

options = record.arguments(
    __doc__, samples=10_000, embedded=1_000, side=256, processes=4, vision_layers=12, vision_width=768
)
prepared, embedded = (60, 60) if options.quick else (options.samples, options.embedded)
multiples = (1,) if options.quick else (1, 2)  # one size gives no rates, but shows that it runs
processes = range(2, 3) if options.quick else range(1, options.processes + 1)
LAYERS, WIDTH = (2, 64) if options.quick else (options.vision_layers, options.vision_width)
VISION = {"layers": LAYERS, "width": WIDTH, "head_width": 64, "patch_size": 32, "image_size": 224}
TEXT = {"context_length": 20, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 2}
BILLION, PHOTOS = 10**9, 400 * 10**6
EMBEDDING = 512


def shard(path: Path, count: int) -> None:
    """A tar of JPEGs of random blocks with captions; all of the split ``test``."""
    with tarfile.open(path, "w") as tar:
        for number in range(count):
            blocks = np.random.default_rng([count, number]).integers(0, 256, (16, 16, 3), np.uint8)
            picture = io.BytesIO()
            size = (options.side * 4 // 3, options.side)
            Image.fromarray(blocks).resize(size, Image.Resampling.BILINEAR).save(picture, "JPEG", quality=85)
            for suffix, data in (("jpg", picture.getvalue()), ("txt", f"picture number {number}".encode())):
                info = tarfile.TarInfo(f"{number:08d}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def seconds(command: list[str]) -> float:
    """Wall time of a command whose processes compute with one thread each."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    begun = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    return time.perf_counter() - begun


def prepare(source: str, out: Path, workers: int) -> float:
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "ccaco_cli", "prepare", "webdataset", "--source", source]
    return seconds([*command, "--workers", str(workers), "--out", str(out)])


def embed(model: Path, data: Path, out: Path, count: int) -> float:
    shutil.rmtree(out, ignore_errors=True)
    launcher = ["torchrun", "--standalone", "--nproc-per-node", str(count), "-m", "--", "ccaco_cli"]
    command = ["embed", "--model", f"open_clip:{model}", "--dataset", str(data), "--split", "test", "--device", "cpu"]
    return seconds([*launcher, *command, "--precision", "fp32", "--out", str(out)])


def slope(label: str, samples: int, small: list[float], large: list[float]) -> tuple[list[record.Row], float]:
    """Rows of the rates by number of processes, and the best rate in samples per second.

    Args:
        samples: by which both sizes differ.
        small, large: seconds of each number of processes.
    """
    rates = [samples / (b - a) if b > a else math.nan for a, b in zip(small, large, strict=True)]
    rows = [
        # nan: the sizes are too small for the noise of this machine
        record.Row(f"{label} {n}", f"{rate:,.0f} samples/s", f"{rate / rates[0]:.2f} of the first", [])
        for n, rate in zip(processes, rates, strict=True)
    ]
    return rows, max((rate for rate in rates if not math.isnan(rate)), default=math.nan)


def arithmetic(prepare_rate: float, embed_rate: float) -> list[str]:
    """What 400 million pictures and a billion vectors take at these rates."""
    tera = BILLION / 1e12
    code = EMBEDDING // 4
    return [
        f"{PHOTOS:,} pictures at the best rate here: prepare {PHOTOS / prepare_rate / 3600:,.0f} h, "
        f"embed {PHOTOS / embed_rate / 3600:,.0f} h; divide by the number of such machines",
        f"a billion vectors of {EMBEDDING}: float16 shards {2 * EMBEDDING * tera:.2f} TB; flat index (float32) "
        f"{4 * EMBEDDING * tera:.2f} TB; ivf {(4 * EMBEDDING * 2 + 8) * tera:.2f} TB, ivfpq "
        f"{(4 * EMBEDDING + code + 8) * tera:.2f} TB, of which the search reads the codes, {(code + 8) * tera:.2f} TB; "
        f"Milvus {(4 * EMBEDDING + 8) * tera:.2f} TB without columns, its IVF_PQ {(code + 8) * tera:.2f} TB in memory; "
        f"the keys of the companion folder {8 * tera:.3f} TB",
    ]


with tempfile.TemporaryDirectory() as place:
    root = Path(place)
    for size in {samples * multiple for samples in (prepared, embedded) for multiple in multiples}:
        (root / f"shards{size}").mkdir()
        shard(root / f"shards{size}" / "test-0.tar", size)
    sources = {"files": "{}", "pipe": "pipe:cat {}/test-0.tar"}
    rows: list[record.Row] = []
    best = {}
    for name, pattern in sources.items():
        times = [
            [prepare(pattern.format(root / f"shards{prepared * multiple}"), root / "data", n) for n in processes]
            for multiple in multiples
        ]
        part, best[name] = slope(f"prepare of {name}, --workers", prepared, times[0], times[-1])
        rows += part
    model = write_checkpoint(root / "model", EMBEDDING, VISION, TEXT)
    times = []
    for multiple in multiples:
        prepare(str(root / f"shards{embedded * multiple}"), root / "data", os.cpu_count() or 1)
        times.append([embed(model, root / "data", root / "e", n) for n in processes])
    part, rate = slope("embed, torchrun --nproc-per-node", embedded, times[0], times[-1])
    rows += part
    note = (
        f"{os.cpu_count()} cores; JPEGs of {options.side * 4 // 3} x {options.side}; an image tower of {LAYERS} layers "
        f"of {WIDTH} at 224 px in float32; more processes than cores share them"
    )
    record.finish("Scaling with processes", rows, options, note, arithmetic(best["files"], rate))
