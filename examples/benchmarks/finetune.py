"""One step of fine-tuning a pretrained model: joint, against open_clip_train's loop; and LoRA against all weights.

Random weights take the place of published ones, which changes neither time nor memory.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable
from pathlib import Path

import record
import torch
from open_clip_loop import open_clip_step
from photos import CAPTION

from ccaco_cli.core import config_io, runtime
from ccaco_cli.core.config import RunConfig
from ccaco_cli.core.model import aligner as aligners
from ccaco_cli.core.training import step
from ccaco_cli.core.training.optim import adamw
from ccaco_cli.core.types import PairBatch


def inputs(size: int, batch: int) -> tuple[torch.Tensor, list[str]]:
    """Pixels [B, 3, size, size] uint8 and captions."""
    torch.manual_seed(0)
    return torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8), [f"{CAPTION} {i}" for i in range(batch)]


def fine_tuning(
    name: str, size: int, batch: int, device_name: str, *, beta: float, lora: int = 0
) -> Callable[[], None]:
    """Builds one step of fine-tuning from a pretrained model, as ``ccaco train --model SPEC`` takes it."""
    spec, device = f"open_clip:{name}@none", runtime.device(device_name)
    settings = {
        f"model.{m}.{key}": value for m in ("image", "text") for key, value in (("spec", spec), ("head", "pretrained"))
    }
    settings |= {"model.image.size": size, "model.width": 512, "loss.cross_batch": min(64, batch), "loss.beta": beta}
    config = config_io.override(
        RunConfig(), settings | {"optim.lr": 1e-5, "loss.cross_start": 0.0, "loss.cross_ramp": 0.0}
    )
    aligner, towers = aligners.build(config.model, config.loss, ("image", "text"))
    if lora:
        from ccaco_cli.core.model.low_rank import add_low_rank

        add_low_rank(aligner, lora)
    aligner.to(device).train()
    optimizer = adamw(aligner, config.optim)
    losses = step.StepLosses(aligner, config.loss)
    pixels, texts = inputs(size, batch)
    tokens, rows = towers["text"].preprocess(texts), torch.arange(batch)

    def update() -> None:
        pairs = PairBatch({"pixels": pixels}, tokens, rows, rows, rows * 0).to(device)
        with runtime.autocast("auto", device):
            parts = losses(pairs, beta)
        parts["total"].backward()
        torch.nn.utils.clip_grad_norm_([p for p in aligner.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return update


def peak_of_process(lora: int, name: str, size: int, batch: int) -> float:
    """Peak MiB of a new process that builds a joint step and takes two, beside its libraries."""
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from finetune import fine_tuning
# begin
update = fine_tuning({name!r}, {size}, {batch}, "cpu", beta=0.5, lora={lora})
update(), update()
"""
    return record.memory(code)


def low_rank_rows(
    joint: Callable[[], None], label: str, name: str, size: int, batch: int, options: argparse.Namespace
) -> list[record.Row]:
    """Time and memory of LoRA (as ours) beside those of all weights (as peer)."""
    update = fine_tuning(name, size, batch, options.device, beta=0.5, lora=options.lora)
    title = f"{label}: joint, LoRA {options.lora} (as ours) over all weights (as peer)"
    row = record.alternate(title, update, joint, options.repeats, device=options.device)
    if options.device == "cpu":
        low_rank_peak, peak = (peak_of_process(rank, name, size, batch) for rank in (options.lora, 0))
    else:
        low_rank_peak, peak = (record.peak_memory(call, options.device) for call in (update, joint))
    return [row, record.memory_row(f"{title}: memory", low_rank_peak, peak)]


def main() -> None:
    """Measures and writes the table."""
    options = record.arguments(__doc__ or "", model="ViT-B-32", size=112, batch=32, context=77, lora=16)
    runtime.limit_threads()
    name, size, batch = ("ViT-S-32", 64, 4) if options.quick else (options.model, options.size, options.batch)
    device = runtime.device(options.device)
    label = f"{name} at {size} px, batch {batch}"
    joint, contrastive = (fine_tuning(name, size, batch, options.device, beta=beta) for beta in (0.5, 0.0))
    peer = open_clip_step(name, *inputs(size, batch), options.context, device)
    wanted = 1.5 if options.device == "cpu" else 1.2
    rows = [
        record.alternate(label_of, update, peer, options.repeats, wanted=least, device=options.device)
        for label_of, update, least in (
            (f"{label}: contrastive-only", contrastive, wanted),
            (f"{label}: joint", joint, None),
        )
    ]
    del contrastive, peer
    facts = []
    if importlib.util.find_spec("peft"):
        rows += low_rank_rows(joint, label, name, size, batch, options)
    else:
        facts = ["LoRA not measured, because its library is not installed: pip install 'ccaco[finetune]'"]
    record.finish("Fine-tuning step", rows, options, facts=facts)


if __name__ == "__main__":
    main()
