"""A GPU against the CPU: vectors, losses of 20 steps, token caches and ranks of the same model."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import record
import tiny_model
import torch
import torch.nn.functional as F
from torch import Tensor

from ccaco_cli.core import runtime
from ccaco_cli.core.encoding.encode import encode
from ccaco_cli.core.encoding.token_cache import cached
from ccaco_cli.core.evaluation.tiles import both_ranks
from ccaco_cli.core.training.optim import adamw
from ccaco_cli.core.training.step import StepLosses

options = record.arguments(__doc__, steps=20)
device, cpu = runtime.device(options.device), torch.device("cpu")
items, steps = (32, 3) if options.quick else (512, options.steps)


def vectors(place: Any) -> Tensor:
    aligner, towers, _ = tiny_model.model(place)
    columns = tiny_model.columns(towers, items)
    return torch.cat([encode(aligner, modality, column).z for modality, column in columns.items()])


def losses(place: Any, cross: str) -> Tensor:
    aligner, towers, config = tiny_model.model(place, **{"loss.cross": cross, "optim.lr": 1e-4})
    step, optimizer = StepLosses(aligner, config.loss).train(), adamw(aligner, config.optim)
    batch, generator = tiny_model.batch(towers["text"], 32).to(place), torch.Generator().manual_seed(0)
    totals = []
    for _ in range(steps):
        total = step(batch, 0.5, generator)["total"]
        total.backward()
        optimizer.step()
        optimizer.zero_grad()
        totals.append(total.detach())
    return torch.stack(totals).cpu()


def tokens(place: Any) -> Tensor:
    aligner, towers, _ = tiny_model.model(place)
    column = tiny_model.columns(towers, items)["image"]
    with tempfile.TemporaryDirectory() as folder:
        tower = aligner.encoder("image").tower
        cache = cached(tower, column, Path(folder) / "c", grid=towers["image"].grid, max_tokens=16, device=place)
        return cache.inputs(np.arange(items)).tokens.float()


def ranks(place: Any) -> Tensor:
    drawn = torch.randn(2, 20 * items, 32, generator=torch.Generator().manual_seed(2))
    a, b = F.normalize(drawn, dim=-1)
    group = np.arange(len(a)) // 2
    results = both_ranks(a.to(place), (a + b).to(place), group, group)
    return torch.cat([torch.from_numpy(result.rank) for result in results])


def difference(a: Tensor, b: Tensor) -> float:
    """Largest difference, relative to the largest number."""
    return float((a.double() - b.double()).abs().max() / a.abs().max())


# TF32 and bf16 round to 10 and 7 bits
checks = {
    f"vectors of {2 * items} items, TF32": (vectors, 5e-3),
    f"infonce, losses of {steps} steps, float32": (lambda place: losses(place, "infonce"), 1e-3),
    f"matching, losses of {steps} steps, float32": (lambda place: losses(place, "matching"), 1e-3),
    f"cached tokens of {items} images, 16 bits": (tokens, 3e-2),
    f"ranks of {20 * items:,} queries": (ranks, 0.0),
}
facts, equal = [], True
for name, (compute, tolerance) in checks.items():
    result = difference(compute(cpu), compute(device))
    equal = equal and result <= tolerance
    facts.append(f"{name}: differ by {result:.1e} (at most {tolerance:g}: {'yes' if result <= tolerance else 'NO'})")
record.finish("Equality with the CPU", [], options, facts=facts)
sys.exit(not equal)
