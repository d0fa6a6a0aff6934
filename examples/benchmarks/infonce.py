"""InfoNCE of large batches: ccaco (in blocks) against open_clip's ClipLoss (full matrix), forward and backward."""

from __future__ import annotations

import record
import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss

from ccaco_cli.core.losses.contrastive import info_nce

options = record.arguments(__doc__, batch=16384, width=512)
batch = 4096 if options.quick else options.batch
z_a, z_b = (
    F.normalize(torch.randn(batch, options.width, device=options.device), dim=-1).requires_grad_() for _ in range(2)
)
scale, group = torch.tensor(50.0, device=options.device, requires_grad=True), torch.arange(batch, device=options.device)


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


difference = max(float((a - b).abs().max()) for a, b in zip(gradient(ours), gradient(peer), strict=True))
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
    used = []
    for call in (ours, peer):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        used.append((torch.cuda.max_memory_allocated() - before) / 2**20)
rows.append(record.memory_row(f"memory, B = {batch:,}", used[0], used[1], wanted=15))
size = f"four products of 2 B^2 E; the matrix would hold {4 * batch**2 / 2**20:,.0f} MiB"
record.finish("InfoNCE", rows, options, facts=[f"largest difference of loss and gradients: {difference:.1e}", size])
