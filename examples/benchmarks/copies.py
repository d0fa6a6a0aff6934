"""Copies between CPU and GPU while the GPU is busy: every result is complete when it is read.

A copy that does not wait for its data would give zeros or old bytes, but only where the GPU has other work to do first.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import record
import tiny_model
import torch
from torch import Tensor

from ccaco_cli.core import runtime
from ccaco_cli.core.encoding.encode import EncodeOptions, encode
from ccaco_cli.core.encoding.token_cache import cached
from ccaco_cli.core.training.device_batches import device_batches
from ccaco_cli.core.types import move_tensor

options = record.arguments(__doc__, rounds=50)
device = runtime.device(options.device)
on_gpu = device.type == "cuda"
rounds, items = (3, 24) if options.quick else (options.rounds, 512)
work = torch.randn(*([4096] * 2 if on_gpu else [64] * 2), device=device)


def keep_busy() -> None:
    """Gives the GPU about a tenth of a second of work, without waiting for it."""
    for _ in range(40 if on_gpu else 1):
        torch.mm(work, work)


def late_results() -> int:
    """Results of the GPU that differ from what they are a second later."""
    wrong = 0
    for number in range(rounds):
        x = torch.full((1 << 18,), float(number), device=device)
        keep_busy()
        wrong += not bool((move_tensor(x * 2, "cpu") == 2.0 * number).all())
    return wrong


def late_batches() -> int:
    """Batches that were changed on the way to the GPU, or whose memory was used again too early."""
    first = tiny_model.batch(towers["text"], 16)
    batches = [first.map(lambda t, n=n: t + n if t.dtype == torch.long else t) for n in range(rounds)]
    if on_gpu:
        batches = [batch.pin_memory() for batch in batches]
    wrong = 0
    for number, batch in enumerate(device_batches(batches, device)):
        keep_busy()
        wrong += not bool((batch.rows == torch.arange(16, device=device) + number).all())
    return wrong


def late_vectors() -> int:
    """Vectors that differ between a busy and an idle GPU."""
    return differences(lambda: encode(aligner, "text", texts, options=EncodeOptions(batch_size=32)).z)


def late_tokens() -> int:
    """Cached tokens that differ between a busy and an idle GPU."""

    def tokens() -> Tensor:
        with tempfile.TemporaryDirectory() as folder:
            tower = aligner.encoder("text").tower
            cache = cached(tower, texts, Path(folder) / "c", grid=None, max_tokens=0, device=device)
            return cache.inputs(np.arange(len(texts.row))).tokens.float()

    return differences(tokens)


def differences(compute: Callable[[], Tensor]) -> int:
    """Rows of a result that differ between a busy and an idle GPU by more than rounding."""
    idle = compute()
    hook = aligner.encoder("text").tower.register_forward_hook(lambda *_: keep_busy())
    busy = compute()
    hook.remove()
    return int(((busy - idle).abs() > 1e-3).flatten(1).any(1).sum())


aligner, towers, _ = tiny_model.model(device)
aligner.eval()
texts = tiny_model.columns(towers, items)["text"]
checks = {
    f"{rounds} results brought to the CPU": late_results,
    f"{rounds} batches brought to the device": late_batches,
    f"{items} vectors": late_vectors,
    f"cached tokens of {items} texts": late_tokens,
}
wrong = {name: check() for name, check in checks.items()}
facts = [f"{name}: {count} incomplete" for name, count in wrong.items()]
record.finish("Copies while the device is busy", [], options, facts=facts)
sys.exit(any(wrong.values()))
