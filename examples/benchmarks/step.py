"""One training step of an open_clip model: ccaco against open_clip_train's loop (77 tokens per caption)."""

from __future__ import annotations

from dataclasses import replace

import open_clip
import record
import torch
from open_clip_loop import open_clip_step
from photos import CAPTION
from torch.utils.flop_counter import FlopCounterMode

from ccaco_cli.core import config_io, runtime
from ccaco_cli.core.config import RunConfig
from ccaco_cli.core.model import aligner as aligners
from ccaco_cli.core.training import step
from ccaco_cli.core.training.optim import adamw
from ccaco_cli.core.types import PairBatch

options = record.arguments(
    __doc__, model="ViT-B-32", size=112, batch=32, context=77, torchcompile=0
)  # 1: both sides compiled
runtime.limit_threads()
name, size, batch = ("RN50", 64, 4) if options.quick else (options.model, options.size, options.batch)
spec, device = f"open_clip:{name}@none", runtime.device(options.device)
settings = {
    "model.image.spec": spec,
    "model.text.spec": spec,
    "model.image.size": size,
    "model.width": 512,
    "loss.cross_batch": min(64, batch),
}
config = config_io.override(RunConfig(), settings | {"optim.lr": 1e-4, "loss.cross_start": 0.0, "loss.cross_ramp": 0.0})
torch.manual_seed(0)
texts = [f"{CAPTION} number {i}" for i in range(batch)]
pixels = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8)
every = torch.arange(batch)


def trainer(beta: float):  # type: ignore[no-untyped-def]
    aligner, towers = aligners.build(config.model, config.loss, ("image", "text"))
    aligner.to(device).train()
    if options.torchcompile:
        aligner.compile_towers()
    optimizer = adamw(aligner, config.optim)
    losses = step.StepLosses(aligner, replace(config.loss, beta=beta))
    tokens = towers["text"].preprocess(texts)

    def update() -> None:
        given_batch = PairBatch({"pixels": pixels}, tokens, every, every, every * 0).to(device)
        with runtime.autocast("auto", device):
            parts = losses(given_batch, beta)
        parts["total"].backward()
        torch.nn.utils.clip_grad_norm_(aligner.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return update


peer = open_clip_step(name, pixels, texts, options.context, device, compiled=bool(options.torchcompile))
contrastive, joined = trainer(0.0), trainer(0.5)
with FlopCounterMode(display=False) as counter:
    contrastive()
limit = record.operations(
    counter.get_total_flops(), options.device, "float32" if options.device == "cpu" else "bfloat16"
)
label = f"{name} at {size} px, batch {batch}"
rows = [
    record.alternate(
        f"{label}: contrastive",
        contrastive,
        peer,
        options.repeats,
        wanted=1.5 if options.device == "cpu" else 1.2,
        device=options.device,
        limit=limit,
    ),
    record.alternate(
        f"{label}: contrastive (as peer) over full CCACO (as ours)",
        joined,
        contrastive,
        options.repeats,
        wanted=1 / 1.5,
        device=options.device,
    ),
]
share = 100 / (rows[0].over_limit or 1)
speeds = ", ".join(
    f"{batch / spent:,.1f} {whose}" for spent, whose in zip(rows[0].seconds, ("(ours)", "(peer)"), strict=True)
)
facts = [f"samples a second: {speeds}; model FLOP utilisation {share:.0f} % of one large matrix product's rate"]
facts += [
    f"captions of {int(open_clip.get_tokenizer(name)(texts[:1]).ne(0).sum())} tokens, "
    f"of {options.context} that the peer computes"
]
if options.device != "cpu":
    both = [record.peak_memory(contrastive, options.device)]
    both += [record.peak_memory(peer, options.device)] if rows[0].factors else []
    facts.append(f"peak memory beside all models, ours and the peer's: {' and '.join(f'{x:,.0f} MiB' for x in both)}")
record.finish("Training step, compiled" if options.torchcompile else "Training step", rows, options, facts=facts)
