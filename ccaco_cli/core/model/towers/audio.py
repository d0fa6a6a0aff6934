"""Audio towers: a small one over log-mel spectrograms, and AST, CLAP and wav2vec 2.0 of transformers."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import ASTFeatureExtractor, AutoFeatureExtractor

from ccaco_cli.core.config import TowerConfig
from ccaco_cli.core.errors import TowerError
from ccaco_cli.core.model.attention import masked_mean
from ccaco_cli.core.model.towers.dual_encoders import dual_encoder_scale, one_side
from ccaco_cli.core.model.towers.hf import (
    architecture_json,
    load_pretrained,
    save_components,
    set_grad_checkpointing,
)
from ccaco_cli.core.model.towers.image_base import feature_map_tokens
from ccaco_cli.core.model.towers.length_bucketing import in_groups
from ccaco_cli.core.model.towers.pooling import Pooling
from ccaco_cli.core.model.towers.repeated_blocks import without_repeated_blocks
from ccaco_cli.core.model.towers.temporal import BATCH_NORM_MOMENTUM, TemporalTransformer
from ccaco_cli.core.model.towers.tower import JointSpace, Tower, TowerSpec
from ccaco_cli.core.model.towers.weights import RANDOM, fingerprint, first_line, nearest
from ccaco_cli.core.types import LENGTHS, Features, Recording, move_tensor

RATE, BINS, SECONDS = 16_000, 128, 10.0
FRAME, HOP = 400, 160
"""Samples of a spectrogram frame and between frames: Kaldi's 25 ms every 10 ms."""
CHANNELS, WIDTH, LAYERS = (16, 32, 64), 128, 2
STRIDE = 2 ** len(CHANNELS)
MIN_SECONDS = 0.1
"""Shorter recordings are padded with silence, because no tower makes a token of less."""
NORMALISATIONS: Mapping[str, tuple[float, float]] = {
    "audioset": (-4.2677393, 4.5689974),  # AST (arXiv:2104.01778), as published
    "kinetics-sounds": (-4.503877, 5.141276),  # as the published Kinetics-Sounds loaders have it (31 classes)
}
"""Name -> mean and standard deviation of log-mel features; (x - mean) / (2 std), as AST does."""


@dataclass(frozen=True)
class LogMel:
    """Recording -> float16 [n, 128], one log-mel spectrum every 10 ms (as AST; Kaldi's filters, 16 kHz)."""

    seconds: float
    mean: float
    std: float

    def __call__(self, recording: Recording) -> Tensor:
        samples = _samples(recording, RATE, self.seconds)
        count = 1 + (len(samples) - FRAME) // HOP
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the lowest of the 128 published filters are narrower than a bin
            extractor = ASTFeatureExtractor(num_mel_bins=BINS, max_length=count, mean=self.mean, std=self.std)
            mel = extractor(samples - samples.mean(), sampling_rate=RATE, return_tensors="pt")["input_values"][0]
        return mel.half()  # type: ignore[no-any-return]


class TinyAudioModule(nn.Module):
    """Strided convolutions over time and frequency, one token per 80 ms, and a transformer over time."""

    def __init__(self) -> None:
        super().__init__()
        sizes = zip((1, *CHANNELS), CHANNELS, strict=False)
        self.convs = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False),
                nn.BatchNorm2d(outputs, momentum=BATCH_NORM_MOMENTUM),
                nn.ReLU(),
            )
            for inputs, outputs in sizes
        )
        self.project = nn.Sequential(nn.Linear(CHANNELS[-1] * BINS // STRIDE, WIDTH), nn.LayerNorm(WIDTH))
        self.temporal = TemporalTransformer(WIDTH, LAYERS)

    def forward(self, inputs: dict[str, Tensor]) -> Features:
        maps, mask = inputs["values"].to(next(self.parameters()).dtype).unsqueeze(1), inputs["mask"]
        for conv in self.convs:
            mask = mask[:, ::2]
            # padding is zero after every layer, so that it has no effect on the end of a recording
            maps = conv(maps) * mask[:, None, :, None]
        tokens = self.temporal(self.project(maps.transpose(1, 2).flatten(2)), mask)
        return Features(tokens, mask, masked_mean(tokens, mask))


def build_tiny(spec: TowerSpec, config: TowerConfig) -> Tower:
    """Builds ``tiny``: trained from scratch in minutes on a CPU; tokens are moments of 80 ms."""
    if spec.name or spec.weights not in ("", RANDOM):
        raise TowerError("unknown tiny audio tower", where=spec, expected=f"tiny or tiny@{RANDOM}")
    seconds = config.seconds or SECONDS
    preprocess, module = LogMel(seconds, *_normalisation(config.normalisation or "audioset")), TinyAudioModule()
    return Tower(
        spec=spec,
        modality="audio",
        module=module,
        preprocess=preprocess,
        width=WIDTH,
        tokens=-(-int(seconds * 100) // STRIDE),
        grid=None,
        pooled_from="mean",
        pretrained=False,
        fingerprint=fingerprint(module, "tiny", preprocess),
        save_assets=lambda folder: "tiny",
    )


@dataclass(frozen=True)
class HfAudioPreprocess:
    """Recording -> output of a transformers feature extractor, time first.

    Attributes:
        extractor: its repr names all its settings.
        seconds: the longest input; the rest of a recording is cut.
        exact: float32, as the library of a pretrained model computes it; else float16.
    """

    extractor: Any
    seconds: float
    exact: bool = False

    def __call__(self, recording: Recording) -> Tensor:
        rate = int(self.extractor.sampling_rate)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            extracted = self.extractor(_samples(recording, rate, self.seconds), sampling_rate=rate, return_tensors="np")
        dtype = np.float32 if self.exact else np.float16
        values = np.asarray(extracted[self.extractor.model_input_names[0]][0], dtype)
        return torch.from_numpy(values[0] if values.ndim == 3 else values)  # CLAP has a leading axis for its four views


class HfAudioModule(nn.Module):
    """Base class of transformers' audio encoders: {"values" [B, N, ...], "mask" [B, N]} -> Features."""

    pooled_from: Pooling = "model"

    def __init__(self, model: Any):
        super().__init__()
        self.body = model

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        set_grad_checkpointing(self.body, enable)

    def grid(self) -> tuple[int, int] | None:
        """(frequency, time) of the patches; None = tokens are no grid."""
        return None


class AstModule(HfAudioModule):
    """Audio Spectrogram Transformer (arXiv:2104.01778): two special tokens, then patches; pooled = the first."""

    pooled_from = "first"

    def forward(self, inputs: dict[str, Tensor]) -> Features:
        tokens = self.body(input_values=inputs["values"].to(self.body.dtype)).last_hidden_state
        return Features(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device), tokens[:, 0])

    def grid(self) -> tuple[int, int]:
        config = self.body.config
        frequency = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
        return frequency, (config.max_length - config.patch_size) // config.time_stride + 1


class ClapModule(HfAudioModule):
    """The audio encoder of CLAP (arXiv:2211.06687): its last feature map; pooled is its own.

    Args:
        projected: pooled is the embedding [B, E] of the whole model, and ``model`` is CLAP without its text side.
    """

    def __init__(self, model: Any, *, projected: bool = False):
        super().__init__(model)
        self.projected = projected

    def forward(self, inputs: dict[str, Tensor]) -> Features:
        values = inputs["values"].to(self.body.dtype).unsqueeze(1)
        is_longer = torch.zeros(len(values), 1, dtype=torch.bool, device=values.device)
        encode = self.body.get_audio_features if self.projected else self.body
        output = encode(input_features=values, is_longer=is_longer)
        tokens, _, _ = feature_map_tokens(output.last_hidden_state)
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        return Features(tokens, mask, output.pooler_output)


CONVOLUTIONS_READ_PADDING = ("data2vec-audio", "wav2vec2-conformer")
"""Model types with convolutions between their layers or positions, which see the padding behind a recording."""


class Wav2Vec2Module(HfAudioModule):
    """wav2vec 2.0 (arXiv:2006.11477) and similar encoders: one token per 20 ms; pooled is their mean.

    Models whose norm or convolutions read padding encode the recordings of each length by themselves: those with a
    group norm over time, which were trained without a mask, and those of ``CONVOLUTIONS_READ_PADDING``.
    """

    pooled_from = "mean"

    def __init__(self, model: Any):
        super().__init__(model)
        group_norm = getattr(model.config, "feat_extract_norm", "layer") == "group"
        self.reads_padding = group_norm or model.config.model_type in CONVOLUTIONS_READ_PADDING

    def forward(self, inputs: dict[str, Tensor]) -> Features:
        values, mask = inputs["values"].to(self.body.dtype), inputs["mask"]
        lengths = inputs[LENGTHS] if LENGTHS in inputs else move_tensor(mask.sum(1), "cpu")
        if self.reads_padding:
            tokens = self._encode_by_length(values, lengths.tolist())
        else:
            tokens = self.body(values, attention_mask=mask.long()).last_hidden_state
        counts = move_tensor(self.body._get_feat_extract_output_lengths(lengths), tokens.device)
        real = torch.arange(tokens.shape[1], device=tokens.device) < counts[:, None]
        return Features(tokens, real, masked_mean(tokens, real))

    def _encode_by_length(self, values: Tensor, lengths: Sequence[int]) -> Tensor:
        """values [B, N], B lengths -> [B, tokens of the longest, W]; zero behind the end of a recording."""
        groups = defaultdict(list)
        for row, length in enumerate(lengths):
            groups[length].append(row)
        counts: list[int] = []

        def encode(rows: Sequence[int], group: dict[str, Tensor]) -> tuple[Tensor]:
            tokens = self.body(group["values"][:, : lengths[rows[0]]]).last_hidden_state
            counts.append(tokens.shape[1])
            return (F.pad(tokens, (0, 0, 0, counts[0] - tokens.shape[1])),)

        longest_first = [groups[length] for length in sorted(groups, reverse=True)]
        return in_groups({"values": values}, longest_first, encode)[0]


HF_MODULES: Mapping[str, Callable[[Any], HfAudioModule]] = {
    "audio-spectrogram-transformer": AstModule,
    "clap": lambda model: ClapModule(model.audio_model),
    "clap_audio_model": ClapModule,
    **dict.fromkeys(
        ("wav2vec2", "hubert", "wavlm", "wav2vec2-conformer", "data2vec-audio", "unispeech", "unispeech-sat"),
        Wav2Vec2Module,
    ),
}
"""``model_type`` of transformers -> the module that reads its tokens."""


def build_hf(spec: TowerSpec, config: TowerConfig) -> Tower:
    """Builds ``hf:NAME[@REVISION|FILE|none]`` or ``hf:FOLDER[@FILE|none]`` of a model type in ``HF_MODULES``."""
    projected = config.projected
    hf_config, extractor, model = load_pretrained(spec, AutoFeatureExtractor, projected=projected)
    scale = dual_encoder_scale(model, spec, "audio") if projected else None
    if hf_config.model_type not in HF_MODULES:
        raise TowerError(
            f"a {hf_config.model_type} model is no audio tower",
            where=spec,
            expected=nearest(hf_config.model_type, HF_MODULES),
        )
    if config.normalisation:
        if not hasattr(extractor, "mean"):
            raise TowerError(
                "this tower has no log-mel normalisation", where=spec, expected="model.audio.normalisation left empty"
            )
        extractor.mean, extractor.std = _normalisation(config.normalisation)
    max_seconds = _max_seconds(extractor)
    seconds = min(config.seconds, max_seconds) if config.seconds else max_seconds
    if projected:
        module: HfAudioModule = ClapModule(one_side(model, "audio"), projected=True)
    else:
        module = HF_MODULES[hf_config.model_type](model)
    preprocess = HfAudioPreprocess(extractor, seconds, exact=projected)
    silence = _encode_silence(spec, module, preprocess)
    space = JointSpace(silence.pooled.shape[1], *scale) if scale else None
    facts = (spec.family, architecture_json(model.config), preprocess, *([space] if space else []))
    return Tower(
        spec=spec,
        modality="audio",
        module=module,
        preprocess=preprocess,
        width=silence.tokens.shape[2],
        tokens=silence.tokens.shape[1],
        grid=module.grid(),
        pretrained=spec.weights != RANDOM,
        fingerprint=fingerprint(module, *facts),
        space=space,
        save_assets=partial(save_components, [hf_config.save_pretrained, extractor.save_pretrained]),
        set_grad_checkpointing=module.set_grad_checkpointing,
        pooled_from=module.pooled_from,
    )


def _max_seconds(extractor: Any) -> float:
    """Returns the longest input of a feature extractor: of CLAP in samples, of AST in frames, else 10 s."""
    frames_seconds = (
        getattr(extractor, "max_length", 0) * getattr(extractor, "hop_length", HOP) / extractor.sampling_rate
    )
    samples_seconds = getattr(extractor, "nb_max_samples", 0) / extractor.sampling_rate
    return samples_seconds or frames_seconds or SECONDS


def _encode_silence(spec: TowerSpec, module: HfAudioModule, preprocess: HfAudioPreprocess) -> Features:
    """Encodes one recording of the longest length, for the shapes of what a tower returns."""

    class Silence:
        def samples(self, rate: int, seconds: float) -> Any:
            return np.zeros(round(rate * seconds), np.float32)

    training = module.training
    try:
        with torch.no_grad(), without_repeated_blocks(module.eval()):
            values = preprocess(Silence())[None]  # type: ignore[arg-type]
            features: Features = module({"values": values, "mask": torch.ones(values.shape[:2], dtype=torch.bool)})
    except (RuntimeError, AssertionError, ValueError) as error:
        raise TowerError(
            f"this tower cannot encode audio of this length ({first_line(error)})",
            where=spec,
            expected="another model.audio.seconds",
        ) from error
    module.train(training)
    return features


def _samples(recording: Recording, rate: int, seconds: float) -> Any:
    """The start of a recording, at least ``MIN_SECONDS`` long: float32 [n]."""
    samples = recording.samples(rate, seconds)
    return np.pad(samples, (0, max(0, round(rate * MIN_SECONDS) - len(samples))))


def _normalisation(name: str) -> tuple[float, float]:
    if name not in NORMALISATIONS:
        raise TowerError(
            "unknown normalisation", where=f"model.audio.normalisation = {name!r}", expected=" | ".join(NORMALISATIONS)
        )
    return NORMALISATIONS[name]
