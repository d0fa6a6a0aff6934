"""Arms of an ablation: each edits a base config, and its docstring is its hypothesis."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import replace

from ccaco_cli.core.config import RunConfig
from ccaco_cli.core.errors import ConfigError

Arm = Callable[[RunConfig], RunConfig]


def ccaco(config: RunConfig) -> RunConfig:
    """Joined alignment: contrastive and cross-attention in one loss beat either half."""
    return config


def clip(config: RunConfig) -> RunConfig:
    """Contrastive only (CLIP, arXiv:2103.00020): one vector a sample is enough."""
    return replace(config, loss=replace(config.loss, beta=0.0))


def no_contrastive(config: RunConfig) -> RunConfig:
    """Without the contrastive half the cross branch alone finds the matches (scored exhaustively)."""
    return replace(config, loss=replace(config.loss, alpha=0.0))


ARMS: dict[str, Arm] = {"ccaco": ccaco, "clip": clip, "-cross": clip, "-contrastive": no_contrastive}


def apply(config: RunConfig, name: str) -> RunConfig:
    """A config as an arm changes it. Raises ConfigError with the nearest name."""
    if name not in ARMS:
        near = difflib.get_close_matches(name, ARMS, 1)
        raise ConfigError("unknown arm", where=name, expected=" | ".join(ARMS), next=f"did you mean {near[0]}?" if near else None)
    return replace(ARMS[name](config), arm=name)
