"""Photos for the benchmarks: those of --photos, or generated ones of the same size and JPEG quality."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

CAPTION = "a brown dog runs through the high grass beside a wooden fence with a ball"


def folder(place: Path, count: int, source: str = "") -> list[Path]:
    """``count`` JPEG files."""
    if source:
        return sorted(Path(source).glob("*.jp*g"))[:count]
    rng = np.random.default_rng(0)
    files = []
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8)).resize(
            (500, 375), Image.Resampling.BICUBIC
        )
        grain = np.asarray(coarse).astype(np.int16) + rng.integers(-12, 13, (375, 500, 3), np.int16)
        out = io.BytesIO()
        Image.fromarray(grain.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=90)
        files.append(place / f"{number:05d}.jpg")
        files[-1].write_bytes(out.getvalue())
    return files


def table(place: Path, files: list[Path]) -> Path:
    """A CSV for ``ccaco prepare table``."""
    rows = [f"{file},{CAPTION} number {number},train" for number, file in enumerate(files)]
    (place / "photos.csv").write_text("\n".join(["filepath,title,split", *rows]) + "\n", "utf-8")
    return place / "photos.csv"
