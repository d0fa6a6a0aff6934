"""One step of open_clip's own training loop, with which benchmarks compare."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import open_clip
import torch
from open_clip.loss import ClipLoss
from torch import Tensor

from ccaco_cli.core import runtime


def open_clip_step(
    name: str, pixels: Tensor, texts: Sequence[str], context: int, device: torch.device, *, compiled: bool = False
) -> Callable[[], None]:
    """Builds one step of ``train_one_epoch`` of open_clip_train 3.x: autocast on a GPU, clipping, clamp of the scale.

    Args:
        name: of an architecture.
        pixels: [B, 3, H, W] uint8; their normalisation is not part of the step.
        context: tokens of a caption.
    """
    model = open_clip.create_model(name, force_image_size=pixels.shape[-1]).to(device).train()
    if compiled:
        model.compile()
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    excluded = [p for n, p in named if p.ndim < 2 or "bn" in n or "ln" in n or "bias" in n or "logit_scale" in n]
    decayed = [p for n, p in named if not (p.ndim < 2 or "bn" in n or "ln" in n or "bias" in n or "logit_scale" in n)]
    optimizer = torch.optim.AdamW(
        [{"params": excluded, "weight_decay": 0.0}, {"params": decayed, "weight_decay": 0.2}],
        lr=1e-4,
        betas=(0.9, 0.98),
        eps=1e-6,
    )
    ids = open_clip.get_tokenizer(name)(list(texts), context)
    statistics = (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in statistics)
    ready = (pixels.float() / 255 - mean) / std

    def update() -> None:
        images, tokens = ready.to(device, non_blocking=True), ids.to(device, non_blocking=True)
        optimizer.zero_grad()
        with runtime.autocast("auto", device):
            total = ClipLoss()(*model(images, tokens))
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, norm_type=2.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, 4.6052)

    return update
