"""Audio towers: a small one over log-mel spectrograms, and those of transformers (AST, CLAP, the wav2vec 2.0 family)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import ASTFeatureExtractor, AutoFeatureExtractor

from ccaco_cli.core.errors import TowerError
from ccaco_cli.core.model.attention import masked_mean
from ccaco_cli.core.model.towers.hf import grad_checkpointing, opened, save_all, told
from ccaco_cli.core.model.towers.pictures import map_tokens
from ccaco_cli.core.model.towers.temporal import MOMENTUM, Moments
from ccaco_cli.core.model.towers.tower import ClipWindow, Tower, TowerSpec
from ccaco_cli.core.model.towers.weights import RANDOM, fingerprint, first_line, nearest
from ccaco_cli.core.types import Features, Recording

RATE, BINS, SECONDS = 16_000, 128, 10.0
FRAME, HOP = 400, 160  # Kaldi's 25 ms every 10 ms
CHANNELS, WIDTH, LAYERS = (16, 32, 64), 128, 2
STRIDE = 2 ** len(CHANNELS)
SHORTEST = 0.1
"""Seconds; shorter sounds are filled up with silence, for no tower makes a token of less."""
NORMALISATIONS: Mapping[str, tuple[float, float]] = {
    "audioset": (-4.2677393, 4.5689974),  # AST (arXiv:2104.01778), as published
    "kinetics-sounds": (-4.503877, 5.141276),  # as the published Kinetics-Sounds loaders have it (31 classes)
}
"""Name -> mean and standard deviation of log-mel features; (x - mean) / (2 std), as AST does."""


@dataclass(frozen=True)
class LogMel:
    """Recording -> float16 [n, 128], one log-mel spectrum every 10 ms, as AST takes them (Kaldi's filters at 16 kHz)."""

    seconds: float
    mean: float
    std: float

    def __call__(self, recording: Recording) -> Tensor:
        sound = _heard(recording, RATE, self.seconds)
        count = 1 + (len(sound) - FRAME) // HOP
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the lowest of the 128 published filters are narrower than a bin
            reader = ASTFeatureExtractor(num_mel_bins=BINS, max_length=count, mean=self.mean, std=self.std)
            mel = reader(sound - sound.mean(), sampling_rate=RATE, return_tensors="pt")["input_values"][0]
        return mel.half()  # type: ignore[no-any-return]


class TinyAudioModule(nn.Module):
    """Strided convolutions over time and pitch, all pitches of a moment (80 ms) made one token, and a transformer over the moments."""

    def __init__(self) -> None:
        super().__init__()
        sizes = zip((1, *CHANNELS), CHANNELS, strict=False)
        self.convs = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, 2, 1, bias=False), nn.BatchNorm2d(b, momentum=MOMENTUM), nn.ReLU())
            for a, b in sizes
        )
        self.project = nn.Sequential(nn.Linear(CHANNELS[-1] * BINS // STRIDE, WIDTH), nn.LayerNorm(WIDTH))
        self.moments = Moments(WIDTH, LAYERS)

    def forward(self, inputs: dict[str, Tensor]) -> Features:
        maps, mask = inputs["values"].to(next(self.parameters()).dtype).unsqueeze(1), inputs["mask"]
        for conv in self.convs:
            mask = mask[:, ::2]
            maps = (
                conv(maps) * mask[:, None, :, None]
            )  # so that the end of a sound does not depend on what stands behind it
        tokens = self.moments(self.project(maps.transpose(1, 2).flatten(2)), mask)
        return Features(tokens, mask, masked_mean(tokens, mask))


def build_tiny(spec: TowerSpec, window: ClipWindow) -> Tower:
    """``tiny``: trained from scratch in minutes on a CPU; tokens are moments of 80 ms."""
    if spec.name or spec.weights not in ("", RANDOM):
        raise TowerError("unknown tiny audio tower", where=spec, expected=f"tiny or tiny@{RANDOM}")
    seconds = window.seconds or SECONDS
    mel, module = LogMel(seconds, *_normalisation(window.normalisation or "audioset")), TinyAudioModule()
    tokens = -(-int(seconds * 100) // STRIDE)
    facts = fingerprint(module, "tiny", mel)
    return Tower(spec, "audio", module, mel, WIDTH, tokens, None, False, facts, lambda folder: "tiny")


@dataclass(frozen=True)
class HfSound:
    """Recording -> what a transformers feature extractor makes of it, float16, time first.

    reader   the extractor; its repr tells all its settings
    seconds  the most that is heard
    """

    reader: Any
    seconds: float

    def __call__(self, recording: Recording) -> Tensor:
        rate = int(self.reader.sampling_rate)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = self.reader(_heard(recording, rate, self.seconds), sampling_rate=rate, return_tensors="np")
        values = np.asarray(found[self.reader.model_input_names[0]][0], np.float16)
        return torch.from_numpy(values[0] if values.ndim == 3 else values)  # CLAP has a leading axis for its four views


class HfAudioModule(nn.Module):
    """Base of transformers' audio encoders: {"values" [B, N, ...], "mask" [B, N]} -> Features."""

    def __init__(self, model: Any):
        super().__init__()
        self.body = model

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        grad_checkpointing(self.body, enable)

    def grid(self) -> tuple[int, int] | None:
        """(pitch, time) of its patches."""
        return None


class AstModule(HfAudioModule):
    """Audio Spectrogram Transformer (arXiv:2104.01778): class and distillation token, then patches; pooled is the class token."""

    def forward(self, inputs: dict[str, Tensor]) -> Features:
        tokens = self.body(input_values=inputs["values"].to(self.body.dtype)).last_hidden_state
        return Features(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device), tokens[:, 0])

    def grid(self) -> tuple[int, int]:
        c = self.body.config
        return (c.num_mel_bins - c.patch_size) // c.frequency_stride + 1, (
            c.max_length - c.patch_size
        ) // c.time_stride + 1


class ClapModule(HfAudioModule):
    """CLAP's audio side (arXiv:2211.06687): its last map; pooled is its own."""

    def forward(self, inputs: dict[str, Tensor]) -> Features:
        values = inputs["values"].to(self.body.dtype).unsqueeze(1)
        found = self.body(
            input_features=values, is_longer=torch.zeros(len(values), 1, dtype=torch.bool, device=values.device)
        )
        tokens, _, _ = map_tokens(found.last_hidden_state)
        return Features(
            tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device), found.pooler_output
        )


class WaveModule(HfAudioModule):
    """wav2vec 2.0 (arXiv:2006.11477) and its like: a token each 20 ms of the wave itself; pooled is their mean."""

    def forward(self, inputs: dict[str, Tensor]) -> Features:
        mask = inputs["mask"]
        # models with a group norm over time were trained without a mask
        attend = mask.long() if getattr(self.body.config, "feat_extract_norm", "layer") == "layer" else None
        tokens = self.body(inputs["values"].to(self.body.dtype), attention_mask=attend).last_hidden_state
        counts = self.body._get_feat_extract_output_lengths(mask.sum(1))
        real = torch.arange(tokens.shape[1], device=tokens.device) < counts[:, None]
        return Features(tokens, real, masked_mean(tokens, real))


HF: Mapping[str, Callable[[Any], HfAudioModule]] = {
    "audio-spectrogram-transformer": AstModule,
    "clap": lambda model: ClapModule(model.audio_model),
    "clap_audio_model": ClapModule,
    **dict.fromkeys(
        ("wav2vec2", "hubert", "wavlm", "wav2vec2-conformer", "data2vec-audio", "unispeech", "unispeech-sat"),
        WaveModule,
    ),
}
"""Model type -> how its tokens are read."""


def build_hf(spec: TowerSpec, window: ClipWindow) -> Tower:
    """``hf:NAME[@REVISION|FILE|none]`` or ``hf:FOLDER[@FILE|none]`` of a family of ``HF``."""
    config, reader, model = opened(spec, AutoFeatureExtractor)
    if config.model_type not in HF:
        raise TowerError(
            f"no audio tower is made of a {config.model_type} model",
            where=spec,
            expected=nearest(config.model_type, HF),
        )
    if window.normalisation:
        if not hasattr(reader, "mean"):
            raise TowerError(
                "this tower has no log-mel normalisation", where=spec, expected="model.audio.normalisation left empty"
            )
        reader.mean, reader.std = _normalisation(window.normalisation)
    module = HF[config.model_type](model)
    most = (
        getattr(reader, "max_length", 0) * getattr(reader, "hop_length", HOP) / reader.sampling_rate
    )  # of spectrograms of one length
    most = getattr(reader, "nb_max_samples", 0) / reader.sampling_rate or most or SECONDS
    sound = HfSound(reader, min(window.seconds, most) if window.seconds else most)
    tokens, width = _measure(spec, module, sound)
    facts = fingerprint(module, spec.family, told(model.config), sound)
    save = partial(save_all, [config.save_pretrained, reader.save_pretrained])
    return Tower(spec, "audio", module, sound, width, tokens, module.grid(), spec.weights != RANDOM, facts, save)


def _measure(spec: TowerSpec, module: HfAudioModule, sound: HfSound) -> tuple[int, int]:
    """(tokens, width) of the longest sound that a tower takes, found by running it on silence."""

    class Silence:
        def samples(self, rate: int, seconds: float) -> Any:
            return np.zeros(round(rate * seconds), np.float32)

    training = module.training
    try:
        with torch.no_grad():
            values = sound(Silence())[None]  # type: ignore[arg-type]
            tokens = module.eval()({"values": values, "mask": torch.ones(values.shape[:2], dtype=torch.bool)}).tokens
    except (RuntimeError, AssertionError, ValueError) as error:
        raise TowerError(
            f"this tower takes no such sound ({first_line(error)})", where=spec, expected="another model.audio.seconds"
        ) from error
    module.train(training)
    return tokens.shape[1], tokens.shape[2]


def _heard(recording: Recording, rate: int, seconds: float) -> Any:
    sound = recording.samples(rate, seconds)
    return np.pad(sound, (0, max(0, round(rate * SHORTEST) - len(sound))))


def _normalisation(name: str) -> tuple[float, float]:
    if name not in NORMALISATIONS:
        raise TowerError(
            "unknown normalisation", where=f"model.audio.normalisation = {name!r}", expected=" | ".join(NORMALISATIONS)
        )
    return NORMALISATIONS[name]
