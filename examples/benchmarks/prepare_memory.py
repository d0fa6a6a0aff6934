"""Peak memory of `ccaco prepare` against the number of samples: it should be constant.

    python examples/benchmarks/prepare_memory.py 1000 10000 100000 1000000

Writes tar shards of 32-pixel images into a temporary folder (one shard of 1,000 samples, linked under several
names) and prepares them in one process per size. Prints CSV: samples, peak resident MiB of the process and of its
largest worker, samples/s.
"""

from __future__ import annotations

import csv
import io
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

SHARD = 1_000


def shard(path: Path) -> None:
    """A tar of distinct pictures with captions, as img2dataset writes them."""
    rng = np.random.default_rng(0)
    with tarfile.open(path, "w") as tar:
        for number in range(SHARD):
            picture = io.BytesIO()
            Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(picture, "JPEG")
            for suffix, data in (
                ("jpg", picture.getvalue()),
                ("txt", f"picture number {number} of this shard".encode()),
            ):
                info = tarfile.TarInfo(f"{number:06d}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def measure(folder: Path, out: Path, workers: int) -> None:
    """Prepares a folder in this process, and prints one line."""
    from ccaco_cli.core.data.preparation import prepare
    from ccaco_cli.core.data.shards import WriteOptions

    clock = time.perf_counter()
    dataset = prepare("webdataset", source_path=folder, out=out, write=WriteOptions(workers=workers))
    seconds = time.perf_counter() - clock
    samples = sum(split["samples"] for split in dataset.facts["splits"].values())
    own_peak, children = (
        resource.getrusage(who).ru_maxrss // 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    csv.writer(sys.stdout).writerow((samples, own_peak, children, round(samples / seconds)))


def main(sizes: list[int]) -> None:
    """One child process a size."""
    csv.writer(sys.stdout).writerow(("samples", "peak_MiB", "worker_peak_MiB", "samples/s"))
    sys.stdout.flush()
    with tempfile.TemporaryDirectory() as temp:
        shard(Path(temp, "one.tar"))
        for size in sizes:
            folder = Path(temp, str(size))
            folder.mkdir()
            for number in range(size // SHARD):
                os.link(
                    Path(temp, "one.tar"), folder / f"train-{number:05d}.tar"
                )  # one split, so equal pictures are no leak
            subprocess.run(
                [sys.executable, __file__, "--measure", str(folder), str(folder.with_suffix(".out"))], check=True
            )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(Path(sys.argv[2]), Path(sys.argv[3]), workers=min(2, os.cpu_count() or 1))
    else:
        main([int(size) for size in sys.argv[1:]] or [1_000, 10_000, 100_000])
