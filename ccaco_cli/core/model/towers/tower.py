"""What a tower is: an encoder of one modality that gives tokens, mask and a pooled vector."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ccaco_cli.core.errors import TowerError


@dataclass(frozen=True)
class TowerSpec:
    """``family:name@weights`` taken apart; ``weights`` is a pretrained tag, a file, ``none`` or empty (the family's default)."""

    family: str
    name: str
    weights: str

    @classmethod
    def parse(cls, text: str) -> TowerSpec:
        head, _, weights = text.partition("@")
        family, _, name = head.partition(":")
        if not family:
            raise TowerError("empty tower SPEC", where=repr(text), expected="tiny or family:name[@weights]")
        return cls(family, name, weights)

    def __str__(self) -> str:
        return self.family + (f":{self.name}" if self.name else "") + (f"@{self.weights}" if self.weights else "")


@dataclass(frozen=True)
class ClipWindow:
    """What an audio or video tower takes in of a clip; 0 or empty = the tower's own.

    size           pixels a side of a frame
    seconds        the start of the clip; a shorter one is taken as it is
    rate           frames a second
    normalisation  of log-mel features, an entry of ``sound.NORMALISATIONS``
    """

    size: int = 0
    seconds: float = 0.0
    rate: float = 0.0
    normalisation: str = ""


@dataclass(frozen=True)
class Tower:
    """One built encoder.

    module      nn.Module: dict of input tensors -> Features (tokens [B, N, W], mask [B, N] True = real, pooled [B, W])
    preprocess  one decoded sample -> what the loader stacks; image: PIL image -> uint8 [3, H, W];
                text: list[str] -> {"ids" int64 [n, L], "mask" bool [n, L], "cut" bool [n]}, padded to the longest of the list;
                cut says whose end did not fit;
                audio, video: ``types.Recording`` -> [n, ...], time first, n as the clip is long. Picklable, and its repr tells all it does.
                text towers' also have ``words``: text -> [(word, places of its tokens)], for explanations
    width       W
    tokens      the most tokens that a sample can have (context length, or grid height x width plus special tokens)
    grid        (height, width) of the patch grid; the last height*width tokens are the patches, row by row; None where there is no grid
    pretrained  True when weights were loaded
    fingerprint sha256 of spec, weights and preprocessing: equal fingerprint = equal output
    save_assets (folder) -> SPEC that rebuilds this architecture and preprocessing from that folder (without weights, no network)
    """

    spec: TowerSpec
    modality: str
    module: nn.Module
    preprocess: Callable[[Any], Any]
    width: int
    tokens: int
    grid: tuple[int, int] | None
    pretrained: bool
    fingerprint: str
    save_assets: Callable[[Path], str]
