"""Time and memory of the kinds of attention for H image tokens x L text tokens: forward, and forward with backward.

    python examples/benchmarks/attention.py                      # up to 65,536 x 4,096, as far as memory allows
    python examples/benchmarks/attention.py --quick              # the three smallest
    python examples/benchmarks/attention.py --device cuda

Both directions are run (words over patches, patches over words), as in co-attention. The kinds run alternately, so
the ratios also hold on a busy machine; the times do not. Memory is the peak of live tensors, inputs included.
"""

from __future__ import annotations

import argparse
import gc
import math
import os
import platform
import statistics
import time

import torch

from ccaco_cli.core import runtime
from ccaco_cli.core.config import FusionConfig
from ccaco_cli.core.model.attention import Attention
from ccaco_cli.core.model.attention_kernels import KINDS
from ccaco_cli.core.model.layout import Segment
from ccaco_cli.core.training.cost import MemoryTracker

SHAPES = ((14, 64), (32, 256), (64, 1024), (128, 4096), (256, 4096))
"""Side of the patch grid, words."""
WIDTH = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--quick", action="store_true", help="the three smallest shapes")
    parser.add_argument("--seconds", type=float, default=2.0, help="that a kind is repeated for, at each shape")
    parser.add_argument(
        "--most", type=float, default=60.0, help="skip what is expected to take longer than so many seconds a pass"
    )
    options = parser.parse_args()
    runtime.limit_threads()
    device = runtime.device(options.device)
    print(
        f"torch {torch.__version__}, {_machine(device)}, width {WIDTH}, {FusionConfig().heads} heads, "
        "one sample, float32\n"
    )
    print("| H x L | kind | forward | ratio | forward + backward | ratio | peak MiB | ratio |\n" + "|---" * 8 + "|")
    times: dict[str, list[tuple[int, int, float]]] = {kind: [] for kind in KINDS}
    for side, words in SHAPES[: 3 if options.quick else None]:
        patches = side * side
        results = {kind: _measure(kind, side, words, device, options, times[kind]) for kind in KINDS}
        dense = results["dense"]
        for kind, result in results.items():
            if result is None:
                print(f"| {patches:,} x {words:,} | {kind} | too long or too large | | | | | |", flush=True)
                continue
            times[kind].append((patches, words, result[1]))
            cells = [
                cell
                for value, other, form in zip(
                    result, dense or (None,) * 3, ("{:.1f} ms", "{:.1f} ms", "{:,.0f}"), strict=True
                )
                for cell in (form.format(value), f"{value / other:.2f}" if other else "")
            ]
            print(f"| {patches:,} x {words:,} | {kind} | {' | '.join(cells)} |", flush=True)
    print("\n| kind | time grows as (H x L)^ | as (H + L)^ |\n|---|---|---|")
    for kind, points in times.items():
        if len(points) > 1:
            slopes = (
                _slope([(f(h, n), t) for h, n, t in points[-3:]]) for f in (lambda h, n: h * n, lambda h, n: h + n)
            )
            print(f"| {kind} | {' | '.join(f'{s:.2f}' for s in slopes)} |")


def _measure(
    kind: str,
    side: int,
    words: int,
    device: torch.device,
    options: argparse.Namespace,
    before: list[tuple[int, int, float]],
) -> tuple[float, float, float] | None:
    """(ms forward, ms forward and backward, MiB at the peak), or None when it would not fit or end."""
    patches = side * side
    if before:
        h, n, seconds_per_pass = before[-1]
        growth = (patches * words) / (h * n) if kind == "dense" else (patches + words) / (h + n)
        if seconds_per_pass / 1000 * growth > options.most:
            return None
    torch.manual_seed(0)
    attend = torch.nn.ModuleList(Attention(WIDTH, FusionConfig(attention=kind, dropout=0.0)) for _ in range(2)).to(
        device
    )
    image, text = (torch.randn(1, n, WIDTH, device=device, requires_grad=True) for n in (patches, words))
    masks = tuple(torch.ones(1, n, dtype=torch.bool, device=device) for n in (patches, words))
    layout = (Segment(patches, 0, (side, side)),), (Segment(words),)

    def forward() -> torch.Tensor:
        over_patches = attend[0](text, image, masks[0], layout=(layout[1], layout[0]))[0]
        over_words = attend[1](image, text, masks[1], layout=layout)[0]
        total: torch.Tensor = over_patches.sum() + over_words.sum()
        return total

    def both() -> None:
        forward().backward()
        attend.zero_grad()
        image.grad = text.grad = None

    try:
        memory = _memory(both, device)
        with torch.no_grad():
            forward_ms = _time(forward, device, options.seconds)
        return forward_ms, _time(both, device, options.seconds), memory
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if "memory" not in str(error):
            raise
        return None
    finally:
        gc.collect()


def _memory(run: object, device: torch.device) -> float:
    if device.type == "cuda":
        run()  # type: ignore[operator]  # what is compiled is compiled now
        torch.cuda.reset_peak_memory_stats(device)
        run()  # type: ignore[operator]
        return torch.cuda.max_memory_allocated(device) / 2**20
    with MemoryTracker() as live:
        run()  # type: ignore[operator]
    return live.peak / 2**20


def _time(run: object, device: torch.device, seconds: float) -> float:
    """Median milliseconds."""
    seconds_per_pass: list[float] = []
    begun = time.perf_counter()
    while len(seconds_per_pass) < 2 or (time.perf_counter() - begun < seconds and len(seconds_per_pass) < 50):
        clock = time.perf_counter()
        run()  # type: ignore[operator]
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds_per_pass.append(1000 * (time.perf_counter() - clock))
    return statistics.median(seconds_per_pass[1:])


def _slope(points: list[tuple[float, float]]) -> float:
    """Least squares of log time over log size."""
    xs, ys = [math.log(x) for x, _ in points], [math.log(y) for _, y in points]
    mean_x, mean_y = statistics.mean(xs), statistics.mean(ys)
    spread = sum((x - mean_x) ** 2 for x in xs)
    return sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / spread if spread else math.nan


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} of {os.cpu_count()} threads"


if __name__ == "__main__":
    main()
