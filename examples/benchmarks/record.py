"""Shared code of the benchmarks: comparisons of ccaco ("ours") with another tool ("peer"), written to RESULTS.md."""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import math
import platform
import re
import resource
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
RESULTS = Path(__file__).with_name("RESULTS.md")
OUT_OF_MEMORY = "out of memory"
ENOUGH = 30.0
"""Seconds after which a comparison is not repeated any more."""
LIBRARIES = ("torch", "open_clip_torch", "numpy", "faiss-cpu", "onnxruntime", "pillow", "clip-benchmark", "webdataset")


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        label: what was measured.
        ours, peer: both values, as text.
        factors: peer / ours of each pair of runs; above 1 means that ours is better. Empty where the peer did not run.
        wanted: the smallest factor that satisfies the requirement.
        over_limit: our time / the time of the arithmetic or the reading alone on this machine.
        seconds: medians of ours and the peer's.
    """

    label: str
    ours: str
    peer: str
    factors: Sequence[float]
    wanted: float | None = None
    over_limit: float | None = None
    seconds: tuple[float, float] = (0.0, 0.0)


def arguments(doc: str, **more: Any) -> argparse.Namespace:
    """The options --device, --quick and --repeats, and those of one topic (``more``: name -> default)."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="small sizes: to see that it runs; nothing is written")
    parser.add_argument(
        "--repeats", type=int, default=3, help=f"pairs of runs; fewer when they take over {ENOUGH:.0f} s"
    )
    for name, default in more.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    options = parser.parse_args()
    if options.quick:
        options.repeats = min(2, options.repeats)
    return options


def seconds(call: Callable[[], Any], device: str = "cpu") -> float:
    """Wall time of one call; on a GPU, until its work is done."""
    import torch

    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    wait()
    begun = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - begun


def pairs(run: Callable[[int], T], repeats: int) -> list[T]:
    """Results of ``run(turn)``: one warm-up that does not count, then ``repeats`` turns (fewer when slow)."""
    taken: list[T] = []
    begun = time.perf_counter()
    while len(taken) <= repeats and (not taken or time.perf_counter() - begun < ENOUGH):
        taken.append(run(len(taken)))
    return taken[1:] or taken


def alternate(
    label: str,
    ours: Callable[[], Any],
    peer: Callable[[], Any],
    repeats: int,
    *,
    wanted: float | None = None,
    device: str = "cpu",
    limit: float | None = None,
) -> Row:
    """Times both alternately, as often as ``pairs`` says; ``limit`` in seconds.

    A peer that runs out of memory is told so in its row, and ours is timed alone.
    """

    def peer_seconds() -> float:
        taken: list[float] = []
        return taken[0] if fits(lambda: taken.append(seconds(peer, device))) else math.nan

    taken = pairs(lambda turn: (seconds(ours, device), peer_seconds()), repeats)
    if any(math.isnan(b) for _, b in taken):
        return _alone(label, [a for a, _ in taken], OUT_OF_MEMORY, limit)
    middle = [statistics.median(side) for side in zip(*taken, strict=True)]
    over = None if limit is None else middle[0] / limit
    return Row(
        label,
        time_text(middle[0]),
        time_text(middle[1]),
        [b / a for a, b in taken],
        wanted,
        over,
        (middle[0], middle[1]),
    )


def alone(
    label: str,
    ours: Callable[[], Any],
    repeats: int,
    peer: str = "-",
    *,
    device: str = "cpu",
    limit: float | None = None,
) -> Row:
    """Times ours where there is no peer, or none that can run; ``peer`` says why."""
    return _alone(label, pairs(lambda turn: seconds(ours, device), repeats), peer, limit)


def _alone(label: str, taken: Sequence[float], peer: str, limit: float | None) -> Row:
    middle = statistics.median(taken)
    over = None if limit is None else middle / limit
    return Row(label, time_text(middle), peer, [], None, over, (middle, math.nan))


def fits(call: Callable[[], Any]) -> bool:
    """Whether a call ends without running out of memory."""
    import torch

    try:
        call()
    except (RuntimeError, MemoryError) as error:  # on a CPU, torch raises a RuntimeError
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "memory" not in str(error):
            raise
    else:
        return True
    gc.collect()
    torch.cuda.empty_cache()  # of a failed call; does nothing without a GPU
    return False


def operations(count: float, device: str = "cpu", dtype: str = "float32") -> float:
    """Seconds that ``count`` floating-point operations take at the rate of this machine's own large matrix product."""
    import torch

    size = 2048 if device == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device).to(getattr(torch, dtype)) for _ in range(2))
    return count * min(seconds(lambda: a @ b, device) for _ in range(4)) / (2 * size**3)


def bytes_(count: float) -> float:
    """Seconds that reading ``count`` bytes out of memory takes: the rate of a sum over 512 MiB."""
    import numpy as np

    block = np.ones(2**27, np.float32)
    return count * min(seconds(lambda: block.sum()) for _ in range(4)) / block.nbytes


def in_processes(
    label: str,
    ours: Sequence[str],
    peer: Sequence[str],
    repeats: int,
    *,
    wanted: float | None = None,
    wanted_cpu: float | None = None,
    limit: float | None = None,
    leaves: Sequence[Path] = (),
) -> list[Row]:
    """The same for complete processes: wall time (``limit`` refers to it), and CPU time of all threads and workers.

    ``TURN`` in a command becomes the number of the turn, so that names are new. The folders ``leaves`` are deleted
    after each run, because the checkpoints of ten runs fill a disk."""

    def run(command: Sequence[str], turn: int) -> tuple[float, float]:
        command = [part.replace("TURN", str(turn)) for part in command]
        begun, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{shlex.join(command)}\n{done.stderr[-2000:]}")
        ended, after = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        for folder in leaves:
            shutil.rmtree(folder, ignore_errors=True)
        return ended - begun, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    taken = pairs(lambda turn: (run(ours, turn), run(peer, turn)), repeats)
    rows = []
    for kind, (name, least, floor) in enumerate((("wall time", wanted, limit), ("CPU time", wanted_cpu, None))):
        both = [(ours_run[kind], peer_run[kind]) for ours_run, peer_run in taken]
        middle = [statistics.median(side) for side in zip(*both, strict=True)]
        over = None if floor is None else middle[0] / floor
        rows.append(
            Row(f"{label}: {name}", time_text(middle[0]), time_text(middle[1]), [b / a for a, b in both], least, over)
        )
    return rows


def memory(code: str) -> float:
    """Peak memory of ``code`` in a new process, in MiB (Linux); lines before ``# begin`` do not count.

    Importing libraries has a peak of its own, so the kernel's counter is reset at that line.
    """
    before, after = code.split("# begin\n")
    read = "int(next(x for x in open('/proc/self/status') if x.startswith('{}')).split()[1])"
    begin = f"open('/proc/self/clear_refs', 'w').write('5')\n_before = {read.format('VmRSS')}"
    program = f"{before}\n{begin}\n{after}\nprint(({read.format('VmHWM')} - _before) / 1024)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return float(done.stdout.split()[-1])


def memory_row(label: str, ours: float, peer: float, wanted: float | None = None) -> Row:
    """MiB of both."""
    return Row(label, f"{ours:,.0f} MiB", f"{peer:,.0f} MiB", [peer / max(ours, 1.0)], wanted)


def own_memory() -> float:
    """Peak MiB of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def peak_memory(call: Callable[[], Any], device: str) -> float:
    """MiB of a GPU that tensors occupy at most during a call, those of before included."""
    import torch

    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) / 2**20


def time_text(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{1e3 * value:.3g} ms"


def finish(
    topic: str, rows: Sequence[Row], options: argparse.Namespace, note: str = "", facts: Sequence[str] = ()
) -> None:
    """Prints the table, and (unless --quick) puts it into RESULTS.md under ``section``."""
    head = ["| what | ours | peer | peer / ours: median (min - max) | pairs | wanted |", "|---|---|---|---|---|---|"]
    lines = head if rows else []
    for row in rows:
        ratio = "-"
        if row.factors:
            ratio = f"{statistics.median(row.factors):.2f} ({min(row.factors):.2f} - {max(row.factors):.2f})"
        verdict = (
            ""
            if row.wanted is None or not row.factors
            else f">= {row.wanted:g} {'yes' if statistics.median(row.factors) >= row.wanted else 'NO'}"
        )
        lines.append(f"| {row.label} | {row.ours} | {row.peer} | {ratio} | {len(row.factors)} | {verdict} |")
    limits = [
        f"limit: {row.label}: {row.over_limit:.1f} times the machine's own floor"
        for row in rows
        if row.over_limit is not None
    ]
    lines += ["", *(f"- {fact}" for fact in (*limits, *facts)), *([note] if note else [])]
    command = shlex.join(["python", f"examples/benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    body = "\n".join([f"`{command}` on {stamp(options.device)}", "", *lines]).rstrip() + "\n"
    name = section(topic, options.device)
    print(f"## {name}\n\n{body}")
    if not options.quick:
        write(name, body)


def section(topic: str, device: str) -> str:
    """The heading of a topic: each GPU has sections of its own, so that it never replaces those of a CPU."""
    import torch

    return f"{topic} on {torch.cuda.get_device_name(device)}" if device.startswith("cuda") else topic


def write(topic: str, body: str, path: Path = RESULTS) -> None:
    """Replaces the section of a topic, or adds it at the end."""
    text = (
        path.read_text("utf-8")
        if path.exists()
        else "# Benchmarks\n\nWritten by the scripts beside this file; see `run.sh`.\n"
    )
    section = f"## {topic}\n\n{body}"
    pattern = re.compile(rf"^## {re.escape(topic)}\n.*?(?=^## |\Z)", re.M | re.S)
    text = pattern.sub(lambda _: section + "\n", text) if pattern.search(text) else text.rstrip() + f"\n\n{section}"
    path.write_text(text.rstrip() + "\n", "utf-8")


def stamp(device: str) -> str:
    """Device, processor, threads and versions."""
    import torch

    where = (
        torch.cuda.get_device_name(device)
        if device.startswith("cuda")
        else f"{platform.machine()}, {torch.get_num_threads()} threads"
    )
    versions = []
    for name in LIBRARIES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return f"{device} ({where}), Python {platform.python_version()}, {', '.join(versions)}"
