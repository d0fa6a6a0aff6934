"""Video towers: a small one, any image tower over frames, and VideoMAE, ViViT, TimeSformer of transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from torch import Tensor, nn
from transformers import AutoImageProcessor

from ccaco_cli.core.config import TowerConfig
from ccaco_cli.core.errors import TowerError
from ccaco_cli.core.model.attention import masked_mean
from ccaco_cli.core.model.towers import build as build_tower
from ccaco_cli.core.model.towers.hf import (
    architecture_json,
    load_pretrained,
    save_components,
    set_grad_checkpointing,
)
from ccaco_cli.core.model.towers.hf_image import image_preprocess
from ccaco_cli.core.model.towers.image_base import ImagePreprocess
from ccaco_cli.core.model.towers.temporal import BATCH_NORM_MOMENTUM, TemporalTransformer
from ccaco_cli.core.model.towers.tower import Tower, TowerSpec
from ccaco_cli.core.model.towers.weights import RANDOM, fingerprint, nearest
from ccaco_cli.core.types import Features, Recording

SIZE, RATE, SECONDS = 32, 16.0, 10.0
FRAMES_RATE = 2.0
"""Default frames per second of an image tower over frames."""
CHANNELS, WIDTH, LAYERS = (16, 32, 64), 128, 2


@dataclass(frozen=True)
class Frames:
    """Recording -> uint8 [n, 3, H, W], ``rate`` frames per second of its first ``seconds``.

    Attributes:
        image_preprocess: PIL image -> uint8 [3, H, W].
        fill: repeat the last frame up to ``count`` frames, for towers with a fixed number of frames.
    """

    image_preprocess: Callable[[Any], Tensor]
    rate: float
    seconds: float
    fill: bool = False

    @property
    def count(self) -> int:
        return max(1, round(self.rate * self.seconds))

    def __call__(self, recording: Recording) -> Tensor:
        frames = torch.stack([self.image_preprocess(frame) for frame in recording.frames(self.rate, self.seconds)])
        missing = self.count - len(frames)
        return torch.cat([frames, frames[-1:].expand(missing, -1, -1, -1)]) if self.fill and missing > 0 else frames


class FramesModule(nn.Module):
    """An image encoder over every frame, one token each, and a transformer over time.

    Inputs are {"values": uint8 [B, N, 3, H, W], "mask": [B, N] bool}.

    Args:
        body: module of an image tower of width W.
    """

    def __init__(self, body: nn.Module, width: int, layers: int, gain: float):
        super().__init__()
        self.body, self.width = body, width
        self.temporal = TemporalTransformer(width, layers, gain)

    def forward(self, inputs: dict[str, Tensor]) -> Features:
        mask = inputs["mask"]
        frames = self.encode_frames(inputs["values"][mask])
        tokens = frames.new_zeros(*mask.shape, self.width).masked_scatter(mask.unsqueeze(-1), frames)
        tokens = self.temporal(tokens, mask)
        return Features(tokens, mask, masked_mean(tokens, mask))

    def encode_frames(self, frames: Tensor) -> Tensor:
        """uint8 [n, 3, H, W] -> [n, W]."""
        pooled: Tensor = self.body({"pixels": frames}).pooled
        return pooled


class TinyVideoModule(FramesModule):
    """Three strided convolutions; all cells of a frame become one token, so that positions in the frame survive; then a
    transformer over time."""

    mean: Tensor
    std: Tensor

    def __init__(self, preprocess: ImagePreprocess):
        layers: list[nn.Module] = []
        for inputs, outputs in zip((3, *CHANNELS), CHANNELS, strict=False):
            norm = nn.BatchNorm2d(outputs, momentum=BATCH_NORM_MOMENTUM)
            layers += [nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), norm, nn.ReLU()]
        cells = (-(-preprocess.size[0] // 2 ** len(CHANNELS))) ** 2
        super().__init__(
            nn.Sequential(*layers, nn.Flatten(), nn.Linear(CHANNELS[-1] * cells, WIDTH), nn.LayerNorm(WIDTH)),
            WIDTH,
            LAYERS,
            1.0,
        )
        for name, channels in (("mean", preprocess.mean), ("std", preprocess.std)):
            self.register_buffer(name, torch.tensor(channels).view(1, 3, 1, 1) * 255, persistent=False)

    def encode_frames(self, frames: Tensor) -> Tensor:
        tokens: Tensor = self.body((frames.to(self.mean.dtype) - self.mean) / self.std)
        return tokens


def build_tiny(spec: TowerSpec, config: TowerConfig) -> Tower:
    """Builds ``tiny``: trained from scratch in minutes on a CPU; 16 frames of 32 pixels per second."""
    if spec.name or spec.weights not in ("", RANDOM):
        raise TowerError("unknown tiny video tower", where=spec, expected=f"tiny or tiny@{RANDOM}")
    side = config.size or SIZE
    frame_preprocess = ImagePreprocess((side, side), (side,), "bilinear", OPENAI_DATASET_MEAN, OPENAI_DATASET_STD)
    frames = Frames(frame_preprocess, config.rate or RATE, config.seconds or SECONDS)
    module = TinyVideoModule(frame_preprocess)
    return Tower(
        spec=spec,
        modality="video",
        module=module,
        preprocess=frames,
        width=WIDTH,
        tokens=frames.count,
        grid=None,
        pooled_from="mean",
        pretrained=False,
        fingerprint=fingerprint(module, "tiny", frames),
        save_assets=lambda folder: "tiny",
    )


def build_frames(spec: TowerSpec, config: TowerConfig) -> Tower:
    """Builds ``frames:SPEC``: any image tower (``frames:timm:resnet18.a1_in1k``, ``frames:tiny``) over two frames per
    second, a token each.

    The layer over time starts as the identity and the positions small, so that a locked or pretrained tower starts with
    its own features.
    """
    image_tower = build_tower(TowerConfig(str(spec).removeprefix("frames:"), size=config.size), "image")
    frames = Frames(image_tower.preprocess, config.rate or FRAMES_RATE, config.seconds or SECONDS)
    module = FramesModule(image_tower.module, image_tower.width, 1, 0.1)

    def save(folder: Any) -> str:
        return f"frames:{image_tower.save_assets(folder)}"

    return Tower(
        spec=spec,
        modality="video",
        module=module,
        preprocess=frames,
        width=image_tower.width,
        tokens=frames.count,
        grid=None,
        pooled_from="mean",
        pretrained=image_tower.pretrained,
        fingerprint=fingerprint(module, "frames", image_tower.fingerprint, frames),
        save_assets=save,
        set_grad_checkpointing=image_tower.set_grad_checkpointing,
    )


@dataclass(frozen=True)
class VideoTokenOrder:
    """Order of a video model's tokens: ``special`` ones, then moment by moment (``time_first``) or cell by cell."""

    special: int
    time_first: bool = True


HF_ORDERS: Mapping[str, VideoTokenOrder] = {
    "videomae": VideoTokenOrder(0),
    "vivit": VideoTokenOrder(1),
    "timesformer": VideoTokenOrder(1, time_first=False),
}
"""``model_type`` of transformers -> order of its tokens."""


class HfVideoModule(nn.Module):
    """A transformers video encoder; tokens are moments (means of their patches), pooled is their mean.

    Args:
        preprocess: whose mean and std normalise the frames.
        steps: moments of a clip (frames / tubelet size).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: Any, preprocess: ImagePreprocess, steps: int, order: VideoTokenOrder):
        super().__init__()
        self.body, self.steps, self.order = model, steps, order
        for name, channels in (("mean", preprocess.mean), ("std", preprocess.std)):
            self.register_buffer(name, torch.tensor(channels).view(1, 1, 3, 1, 1) * 255, persistent=False)

    def forward(self, inputs: dict[str, Tensor]) -> Features:
        pixels = (inputs["values"].to(self.mean.dtype) - self.mean) / self.std
        patches = self.body(pixel_values=pixels).last_hidden_state[:, self.order.special :]
        if self.order.time_first:
            tokens = patches.unflatten(1, (self.steps, -1)).mean(2)
        else:
            tokens = patches.unflatten(1, (-1, self.steps)).mean(1)
        return Features(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device), tokens.mean(1))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        set_grad_checkpointing(self.body, enable)


def build_hf(spec: TowerSpec, config: TowerConfig) -> Tower:
    """Builds ``hf:NAME[@REVISION|FILE|none]`` or ``hf:FOLDER[@FILE|none]`` of a model type in ``HF_ORDERS``.

    Its fixed number of frames is spread over ``config.seconds``.
    """
    hf_config, processor, model = load_pretrained(spec, AutoImageProcessor)
    if hf_config.model_type not in HF_ORDERS:
        raise TowerError(
            f"a {hf_config.model_type} model is no video tower",
            where=spec,
            expected=nearest(hf_config.model_type, HF_ORDERS),
        )
    seconds = config.seconds or SECONDS
    if config.rate and round(config.rate * seconds) != hf_config.num_frames:
        raise TowerError(
            f"this tower takes {hf_config.num_frames} frames", where=spec, expected="model.video.rate left at 0"
        )
    frame_preprocess = image_preprocess(processor, config.size, spec)
    frames = Frames(frame_preprocess, hf_config.num_frames / seconds, seconds, fill=True)
    tubelet = getattr(hf_config, "tubelet_size", 1)
    steps = hf_config.num_frames // (tubelet[0] if isinstance(tubelet, list | tuple) else tubelet)
    module = HfVideoModule(model, frame_preprocess, steps, HF_ORDERS[hf_config.model_type])
    return Tower(
        spec=spec,
        modality="video",
        module=module.train(),
        preprocess=frames,
        width=hf_config.hidden_size,
        tokens=steps,
        grid=None,
        pooled_from="mean",
        pretrained=spec.weights != RANDOM,
        fingerprint=fingerprint(module, spec.family, architecture_json(model.config), frames),
        save_assets=partial(save_components, [hf_config.save_pretrained, processor.save_pretrained]),
        set_grad_checkpointing=module.set_grad_checkpointing,
    )
