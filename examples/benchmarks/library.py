"""An index of a folder of photos: first build, update with ten new files, nothing to do, and a query.

Each is a complete process, beside plain open_clip and faiss (``plain_library.py``) and beside rclip where it can run.
"""

from __future__ import annotations

import math
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import record
from checkpoint_folder import write_checkpoint
from PIL import Image

from ccaco_cli.core.retrieval.index import Index

options = record.arguments(__doc__, count=100_000, size=64, photos="", new=10)
count = 40 if options.quick else options.count
# towers that cost little, so that everything else shows
VISION = {"layers": 2, "width": 64, "head_width": 16, "patch_size": 16, "image_size": 32}
TEXT = {"context_length": 20, "vocab_size": 49408, "width": 48, "heads": 4, "layers": 2}


def draw(file: Path, seed: int) -> None:
    """A JPEG of random blocks."""
    file.parent.mkdir(parents=True, exist_ok=True)
    blocks = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(blocks).resize((options.size, options.size), Image.Resampling.BILINEAR).save(file, quality=85)


def fill(folder: Path) -> None:
    """The photos of --photos, copied, or generated pictures."""
    if options.photos:
        files = sorted(path for path in Path(options.photos).rglob("*.jpg"))[:count]
        for number, file in enumerate(files):
            target = folder / f"{number // 1000:03}" / f"{number:07}.jpg"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
        return
    for number in range(count):
        draw(folder / f"{number // 1000:03}" / f"{number:07}.jpg", number)


printed: dict[str, str] = {}
"""Program -> what its last process has printed."""


def seconds(command: Sequence[str], folder: Path | None = None) -> float:
    begun = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    if done.returncode:
        raise RuntimeError(f"{command}\n{done.stderr[-2000:]}")
    printed[command[1]] = done.stdout
    return time.perf_counter() - begun


def compare(label: str, begin: Callable[[], None], ours: Sequence[str], peer: Sequence[str] | None) -> record.Row:
    """Times both alternately, or ours alone; ``begin`` prepares each turn.

    Every turn is two processes that import all they need: with --quick, one turn without a warm-up has to do.
    """

    def turn(number: int) -> tuple[float, float]:
        begin()
        return seconds(ours), seconds(peer) if peer else math.nan

    taken = [turn(0)] if options.quick else record.pairs(turn, options.repeats)
    a, b = (statistics.median(side) for side in zip(*taken, strict=True))
    if peer is None:
        return record.Row(label, record.time_text(a), "-", [], seconds=(a, b))
    return record.Row(label, record.time_text(a), record.time_text(b), [y / x for x, y in taken], seconds=(a, b))


def rclip(photos: Path, add_new: Callable[[], None]) -> str:
    """Times of rclip for the same steps, or why it cannot run. It has its own model, so only the order of magnitude
    compares."""
    program = shutil.which("rclip")
    if program is None:
        return "rclip: not installed here (pip install rclip)"
    try:
        build = seconds([program, "a red square"], photos)
        add_new()
        update = seconds([program, "a red square"], photos)
        query = seconds([program, "--no-indexing", "a red square"], photos)
    except RuntimeError as error:  # no network for its weights
        return f"rclip: cannot run here ({str(error).splitlines()[-1][:100]})"
    times = " · ".join(record.time_text(value) for value in (build, update, query))
    return f"rclip (its own model, ViT-B-32), with a query each: first index, update, nothing new: {times}"


with tempfile.TemporaryDirectory() as place:
    root = Path(place)
    model, photos, index, plain = (
        write_checkpoint(root / "model", 64, VISION, TEXT),
        root / "photos",
        root / "me.idx",
        root / "plain",
    )
    fill(photos)
    files = sorted(photos.rglob("*.jpg"))
    embed = [sys.executable, "-m", "ccaco_cli", "embed", "--model", f"open_clip:{model}", "--images", str(photos)]
    embed += ["--index", str(index), "--device", options.device, "--precision", "fp32"]
    code = [sys.executable, str(Path(__file__).with_name("plain_library.py"))]
    places = [str(model), str(photos), str(plain)]
    state = {"new": 0}

    def add_new() -> None:
        for _ in range(options.new):
            state["new"] += 1
            draw(photos / f"new/{state['new']:05}.jpg", 10**7 + state["new"])

    def clear() -> None:
        for folder in (index, plain):
            shutil.rmtree(folder, ignore_errors=True)

    label = f"{len(files):,} photos" if options.photos else f"{len(files):,} pictures of {options.size} px"
    table = [
        compare(f"{label}: first index", clear, embed, [*code, "index", *places]),
        compare(f"{label}: update, {options.new} new", add_new, embed, [*code, "update", *places]),
        # of the peer it is the same command as the update, which --quick tries once
        compare(f"{label}: nothing new", lambda: None, embed, None if options.quick else [*code, "update", *places]),
    ]
    query = [sys.executable, "-m", "ccaco_cli", "retrieve", "a red square", "--index", str(index), "--format", "csv"]
    table.append(compare(f"{label}: a query", lambda: None, query, [*code, "query", *places]))
    opened = Index(index)
    folder = opened.folder
    rows = len(opened.sides["image"].items)
    sizes = {
        "vectors": folder / "image/vectors.npy",
        "items with thumbnails": folder / "image/items.arrow",
        "states of the files": folder / "image/files.arrow",
    }
    answers, ours = printed[code[1]].split(), printed[query[1]].splitlines()[1:]
    same = [line.split(",")[5] for line in ours] == [str(Path(answer).relative_to(photos)) for answer in answers]
    facts = [
        "bytes an item: " + ", ".join(f"{name} {path.stat().st_size / rows:,.0f}" for name, path in sizes.items()),
        f"plain code: {sum(path.stat().st_size for path in plain.iterdir()) / rows:,.0f} bytes an item; it keeps no "
        "thumbnails and columns, and knows neither changed, moved nor removed files",
        f"the ten answers of both are the same: {same}",
        f"rate of the first index: {len(files) / table[0].seconds[0]:,.0f} files a second, peer "
        f"{len(files) / table[0].seconds[1]:,.0f}",
        rclip(photos, add_new),
    ]
record.finish("A library of photos", table, options, facts=facts)
