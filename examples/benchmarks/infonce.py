"""InfoNCE of large batches: ccaco (in blocks) against open_clip's ClipLoss (full matrix), forward and backward.

``--alone 65536,131072`` adds batches without the peer, whose matrix would not fit.
"""

from __future__ import annotations

import record
import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss

from ccaco_cli.core.losses.contrastive import info_nce

options = record.arguments(__doc__, batch=16384, width=512, alone="")
batch = 4096 if options.quick else options.batch
larger = [int(size) for size in options.alone.split(",") if size]
if options.quick and larger:
    larger = [5000]


def inputs(rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    z_a, z_b = (
        F.normalize(torch.randn(rows, options.width, device=options.device), dim=-1).requires_grad_() for _ in range(2)
    )
    return z_a, z_b, torch.arange(rows, device=options.device)


z_a, z_b, group = inputs(batch)
scale = torch.tensor(50.0, device=options.device, requires_grad=True)


def ours() -> torch.Tensor:
    loss = info_nce(z_a, z_b, group, scale)
    loss.backward()
    return loss


def peer() -> torch.Tensor:
    loss = ClipLoss()(z_a, z_b, scale)
    loss.backward()
    return loss


def gradient(call) -> list[torch.Tensor]:  # type: ignore[no-untyped-def]
    for leaf in (z_a, z_b, scale):
        leaf.grad = None
    return [call().detach(), *(leaf.grad.clone() for leaf in (z_a, z_b, scale))]


difference = "not known, because the peer ran out of memory"
if record.fits(peer):
    difference = f"{max(float((a - b).abs().max()) for a, b in zip(gradient(ours), gradient(peer), strict=True)):.1e}"
limit = record.operations(4 * 2 * batch**2 * options.width, options.device)
rows = [
    record.alternate(
        f"time, B = {batch:,}, E = {options.width}",
        ours,
        peer,
        options.repeats,
        wanted=1.7,
        device=options.device,
        limit=limit,
    )
]
if options.device == "cpu":
    begin = f"""
import torch, torch.nn.functional as F
from open_clip.loss import ClipLoss
from ccaco_cli.core.losses.contrastive import info_nce
z_a, z_b = (F.normalize(torch.randn({batch}, {options.width}), dim=-1).requires_grad_() for _ in range(2))
(z_a[:8] @ z_b[:8].T).sum().backward()
# begin
"""
    group_text = f"torch.arange({batch})"
    used = [
        record.memory(begin + call + ".backward()")
        for call in (
            f"info_nce(z_a, z_b, {group_text}, torch.tensor(50.0))",
            "ClipLoss()(z_a, z_b, torch.tensor(50.0))",
        )
    ]
else:
    before = torch.cuda.memory_allocated(options.device) / 2**20
    calls = [ours, peer] if record.fits(peer) else [ours]
    used = [record.peak_memory(call, options.device) - before for call in calls]
label = f"memory, B = {batch:,}"
if len(used) == 2:
    rows.append(record.memory_row(label, used[0], used[1], wanted=15))
else:
    rows.append(record.Row(label, f"{used[0]:,.0f} MiB", record.OUT_OF_MEMORY, []))
for size in larger:
    z_a, z_b, group = inputs(size)
    limit = record.operations(4 * 2 * size**2 * options.width, options.device)
    rows.append(
        record.alone(f"time, B = {size:,}, without the peer", ours, options.repeats, device=options.device, limit=limit)
    )
    if options.device != "cpu":
        before = torch.cuda.memory_allocated(options.device) / 2**20
        used = [record.peak_memory(ours, options.device) - before]
        rows.append(record.Row(f"memory, B = {size:,}, without the peer", f"{used[0]:,.0f} MiB", "-", []))
matrix = f"four products of 2 B^2 E; the matrix of B = {batch:,} would hold {4 * batch**2 / 2**20:,.0f} MiB"
record.finish("InfoNCE", rows, options, facts=[f"largest difference of loss and gradients: {difference}", matrix])
