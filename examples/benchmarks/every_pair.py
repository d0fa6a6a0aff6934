"""Attended similarity of every image with every caption of a batch: packed words against padded captions."""

from __future__ import annotations

import numpy as np
import record
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from ccaco_cli.core import runtime
from ccaco_cli.core.config import FusionConfig
from ccaco_cli.core.model.matching import build
from ccaco_cli.core.types import LocalTokens

options = record.arguments(__doc__, batch=96, patches=49, width=256)
runtime.limit_threads()
batch = 16 if options.quick else options.batch
lengths = np.random.default_rng(0).gamma(9.0, 1.5, batch).round().clip(4, 36)  # 13 tokens each, as of Flickr8k's
mask = torch.arange(int(lengths.max())) < torch.from_numpy(lengths)[:, None]
sides = [
    torch.randn(batch, count, options.width, device=options.device).requires_grad_()
    for count in (options.patches, mask.shape[1])
]
masks = torch.ones(batch, options.patches, dtype=torch.bool), mask
matcher = build(options.width, FusionConfig()).to(options.device)


def local() -> list[LocalTokens]:
    projected = [matcher.local(i, x, m.to(options.device)) for i, (x, m) in enumerate(zip(sides, masks, strict=True))]
    return [LocalTokens(x, m.to(options.device)) for x, m in zip(projected, masks, strict=True)]


def ours() -> torch.Tensor:
    return matcher(*local()).match_logit


def padded() -> torch.Tensor:
    a, b = local()
    gate = b.tokens.norm(dim=-1)
    patches, words = F.normalize(a.tokens, dim=-1), b.tokens / gate.clamp_min(1e-6).unsqueeze(-1)
    cosines = torch.einsum("apd,bld->ablp", patches, words)
    weights = (matcher.log_sharpness.exp() * cosines).softmax(-1)
    attended = torch.einsum("ablp,apd->abld", weights, patches)
    return matcher.scale() * (gate * F.cosine_similarity(attended, words.unsqueeze(0), dim=-1)).sum(-1)


def step(call) -> torch.Tensor:  # type: ignore[no-untyped-def]
    table = call()
    F.cross_entropy(table, torch.arange(batch, device=options.device)).backward()
    return table.detach()


difference = float((step(ours) - step(padded)).abs().max())
with FlopCounterMode(display=False) as counter:
    step(ours)
limit = record.operations(counter.get_total_flops(), options.device)
label = f"{batch} x {batch} pairs, both passes"
rows = [
    record.alternate(
        label, lambda: step(ours), lambda: step(padded), options.repeats, device=options.device, limit=limit
    )
]
real = f"{int(mask.sum()):,} words of {mask.numel():,} places are real; largest difference of a score: {difference:.1e}"
record.finish("Every pair of a batch", rows, options, facts=[real])
