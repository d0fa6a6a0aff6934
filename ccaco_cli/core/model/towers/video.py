"""Video towers: a small one, any image tower over frames, and those of transformers (VideoMAE, ViViT, TimeSformer)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from torch import Tensor, nn
from transformers import AutoImageProcessor

from ccaco_cli.core.errors import TowerError
from ccaco_cli.core.model.attention import masked_mean
from ccaco_cli.core.model.towers import build as build_tower
from ccaco_cli.core.model.towers.hf import geometry, grad_checkpointing, opened, save_all, told
from ccaco_cli.core.model.towers.pictures import ImagePreprocess
from ccaco_cli.core.model.towers.temporal import MOMENTUM, Moments
from ccaco_cli.core.model.towers.tower import ClipWindow, Tower, TowerSpec
from ccaco_cli.core.model.towers.weights import RANDOM, fingerprint, first_line, nearest
from ccaco_cli.core.types import Features, Recording

SIZE, RATE, SECONDS = 32, 16.0, 10.0
FRAMES_RATE = 2.0
"""Frames a second that a published image tower is shown by default."""
CHANNELS, WIDTH, LAYERS = (16, 32, 64), 128, 2


@dataclass(frozen=True)
class Frames:
    """Recording -> uint8 [n, 3, H, W], ``rate`` pictures a second of its first ``seconds``.

    fill  repeat the last picture up to ``count`` of them, for towers that take one number only
    """

    picture: Callable[[Any], Tensor]
    rate: float
    seconds: float
    fill: bool = False

    @property
    def count(self) -> int:
        return max(1, round(self.rate * self.seconds))

    def __call__(self, recording: Recording) -> Tensor:
        seen = torch.stack([self.picture(frame) for frame in recording.frames(self.rate, self.seconds)])
        missing = self.count - len(seen)
        return torch.cat([seen, seen[-1:].expand(missing, -1, -1, -1)]) if self.fill and missing > 0 else seen


class FramesModule(nn.Module):
    """An image encoder over every frame, one token each, and a transformer over the moments: {"values" uint8 [B, N, 3, H, W], "mask"}.

    body  pixels (as its own preprocessing leaves them) uint8 [n, 3, H, W] -> [n, W]
    """

    def __init__(self, body: nn.Module, width: int, layers: int, gain: float):
        super().__init__()
        self.body, self.width = body, width
        self.moments = Moments(width, layers, gain)

    def forward(self, inputs: dict[str, Tensor]) -> Features:
        mask = inputs["mask"]
        seen = self.look(inputs["values"][mask])
        tokens = self.moments(seen.new_zeros(*mask.shape, self.width).masked_scatter(mask.unsqueeze(-1), seen), mask)
        return Features(tokens, mask, masked_mean(tokens, mask))

    def look(self, frames: Tensor) -> Tensor:
        found: Tensor = self.body({"pixels": frames}).pooled
        return found

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.body.set_grad_checkpointing(enable)  # type: ignore[operator]


class TinyVideoModule(FramesModule):
    """Three strided convolutions, all places of a frame made one token: where a thing is survives, and time is looked at afterwards."""

    mean: Tensor
    std: Tensor

    def __init__(self, picture: ImagePreprocess):
        layers: list[nn.Module] = []
        for a, b in zip((3, *CHANNELS), CHANNELS, strict=False):
            layers += [nn.Conv2d(a, b, 3, 2, 1, bias=False), nn.BatchNorm2d(b, momentum=MOMENTUM), nn.ReLU()]
        cells = (-(-picture.size[0] // 2 ** len(CHANNELS))) ** 2
        super().__init__(
            nn.Sequential(*layers, nn.Flatten(), nn.Linear(CHANNELS[-1] * cells, WIDTH), nn.LayerNorm(WIDTH)),
            WIDTH,
            LAYERS,
            1.0,
        )
        for name, channels in (("mean", picture.mean), ("std", picture.std)):
            self.register_buffer(name, torch.tensor(channels).view(1, 3, 1, 1) * 255, persistent=False)

    def look(self, frames: Tensor) -> Tensor:
        found: Tensor = self.body((frames.to(self.mean.dtype) - self.mean) / self.std)
        return found

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        raise TowerError("this tower has no gradient checkpointing", where="tiny", expected="another video tower")


def build_tiny(spec: TowerSpec, window: ClipWindow) -> Tower:
    """``tiny``: trained from scratch in minutes on a CPU; 16 frames of 32 pixels a second."""
    if spec.name or spec.weights not in ("", RANDOM):
        raise TowerError("unknown tiny video tower", where=spec, expected=f"tiny or tiny@{RANDOM}")
    side = window.size or SIZE
    picture = ImagePreprocess((side, side), (side,), "bilinear", OPENAI_DATASET_MEAN, OPENAI_DATASET_STD)
    frames = Frames(picture, window.rate or RATE, window.seconds or SECONDS)
    module = TinyVideoModule(picture)
    facts = fingerprint(module, "tiny", frames)
    return Tower(spec, "video", module, frames, WIDTH, frames.count, None, False, facts, lambda folder: "tiny")


def build_frames(spec: TowerSpec, window: ClipWindow) -> Tower:
    """``frames:SPEC``: any image tower (``frames:timm:resnet18.a1_in1k``, ``frames:tiny``) over two frames a second; a token a frame.

    The layer over time starts as the identity and the positions small, so that a locked or pretrained tower starts with what it knows.
    """
    inner = build_tower(str(spec).removeprefix("frames:"), "image", size=window.size)
    frames = Frames(inner.preprocess, window.rate or FRAMES_RATE, window.seconds or SECONDS)
    module = FramesModule(inner.module, inner.width, 1, 0.1)
    facts = fingerprint(module, "frames", inner.fingerprint, frames)

    def save(folder: Any) -> str:
        return f"frames:{inner.save_assets(folder)}"

    return Tower(spec, "video", module, frames, inner.width, frames.count, None, inner.pretrained, facts, save)


@dataclass(frozen=True)
class VideoShape:
    """How a transformers video model orders its tokens: ``special`` ones first, then moment by moment, or place by place."""

    special: int
    time_first: bool = True


HF: Mapping[str, VideoShape] = {
    "videomae": VideoShape(0),
    "vivit": VideoShape(1),
    "timesformer": VideoShape(1, time_first=False),
}
"""Model type -> layout of its tokens."""


class HfVideoModule(nn.Module):
    """A transformers video encoder; the places of a moment are averaged, so that tokens are moments. Pooled is their mean."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: Any, picture: ImagePreprocess, steps: int, layout: VideoShape):
        super().__init__()
        self.body, self.steps, self.layout = model, steps, layout
        for name, channels in (("mean", picture.mean), ("std", picture.std)):
            self.register_buffer(name, torch.tensor(channels).view(1, 1, 3, 1, 1) * 255, persistent=False)

    def forward(self, inputs: dict[str, Tensor]) -> Features:
        found = self.body(pixel_values=(inputs["values"].to(self.mean.dtype) - self.mean) / self.std).last_hidden_state
        found = found[:, self.layout.special :]
        tokens = (
            found.unflatten(1, (self.steps, -1)).mean(2)
            if self.layout.time_first
            else found.unflatten(1, (-1, self.steps)).mean(1)
        )
        return Features(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device), tokens.mean(1))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        grad_checkpointing(self.body, enable)


def build_hf(spec: TowerSpec, window: ClipWindow) -> Tower:
    """``hf:NAME[@REVISION|FILE|none]`` or ``hf:FOLDER[@FILE|none]`` of a family of ``HF``; its frames are spread over the window."""
    config, reader, model = opened(spec, AutoImageProcessor)
    if config.model_type not in HF:
        raise TowerError(
            f"no video tower is made of a {config.model_type} model",
            where=spec,
            expected=nearest(config.model_type, HF),
        )
    seconds = window.seconds or SECONDS
    if window.rate and round(window.rate * seconds) != config.num_frames:
        raise TowerError(
            f"this tower takes {config.num_frames} frames", where=spec, expected="model.video.rate left at 0"
        )
    picture = geometry(reader, window.size, spec)
    frames = Frames(picture, config.num_frames / seconds, seconds, fill=True)
    size = getattr(config, "tubelet_size", 1)
    steps = config.num_frames // (size[0] if isinstance(size, list | tuple) else size)
    module = HfVideoModule(model, picture, steps, HF[config.model_type])
    try:
        with torch.no_grad():
            values = torch.zeros(1, frames.count, 3, *picture.size, dtype=torch.uint8)
            width = module.eval()({"values": values}).tokens.shape[2]
    except (RuntimeError, AssertionError, ValueError) as error:
        raise TowerError(
            f"this tower takes no such film ({first_line(error)})", where=spec, expected="model.video.size left at 0"
        ) from error
    facts = fingerprint(module, spec.family, told(model.config), frames)
    save = partial(save_all, [config.save_pretrained, reader.save_pretrained])
    return Tower(spec, "video", module.train(), frames, width, steps, None, spec.weights != RANDOM, facts, save)
