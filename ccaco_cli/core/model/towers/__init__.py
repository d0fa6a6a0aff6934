"""Towers by family. A new family is a module with a builder, and one entry of ``FAMILIES``."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from ccaco_cli.core.errors import TowerError
from ccaco_cli.core.model.towers.hidden_states import deepened
from ccaco_cli.core.model.towers.positions import lengthen
from ccaco_cli.core.model.towers.tiles import tiled
from ccaco_cli.core.model.towers.tower import ClipWindow, Tower, TowerSpec
from ccaco_cli.core.model.towers.weights import nearest

Builder = Callable[[TowerSpec, str, int, int], Tower]
ClipBuilder = Callable[[TowerSpec, ClipWindow], Tower]


def _in(module: str, function: str = "build") -> Callable[..., Tower]:
    """The builder of a module, imported when first called: a family's libraries take seconds to import."""

    def build(*arguments: Any) -> Tower:
        tower: Tower = getattr(import_module(f"{__name__}.{module}"), function)(*arguments)
        return tower

    return build


FAMILIES: dict[str, Builder] = {
    "tiny": _in("tiny"),
    "open_clip": _in("open_clip"),
    "torchvision": _in("torchvision_timm", "build_torchvision"),
    "timm": _in("torchvision_timm", "build_timm"),
    "hf": _in("hf"),
}
CLIP_FAMILIES: dict[str, dict[str, ClipBuilder]] = {
    "audio": {"tiny": _in("audio", "build_tiny"), "hf": _in("audio", "build_hf")},
    "video": {"tiny": _in("video", "build_tiny"), "frames": _in("video", "build_frames"), "hf": _in("video", "build_hf")},
}


def build(
    spec: str,
    modality: str,
    *,
    size: int = 0,
    context_length: int = 0,
    tiles: str = "",
    positions: str = "stretch",
    states: int = 1,
    window: ClipWindow | None = None,
) -> Tower:
    """Builds the tower that a SPEC (``family:name@weights``) names.

    modality        image | text | audio | video
    size            pixels of the square input of an image tower; 0 = the family's own (tiny: 64)
    context_length  most tokens of a caption; 0 = the family's own (tiny: 48)
    tiles           ROWSxCOLUMNS squares of that size that a picture is cut into; "" = none
    positions       how learned positions reach a longer context than the tower was trained for, an entry of ``positions.RULES``
    states          of the tower that lie side by side in a token (``depth``); negative: at most so many, as many as it has
    window          of audio and video towers; None = the family's own
    Returns         Tower in training mode, on the CPU, float32; random weights come from torch's global generator
    Raises          TowerError: unknown family or name, a modality the family lacks, weights that are missing or do not fit
    """
    parsed = TowerSpec.parse(spec)
    if modality in CLIP_FAMILIES:
        known = CLIP_FAMILIES[modality]
        if parsed.family not in known:
            raise TowerError(f"no such family of {modality} towers", where=spec, expected=nearest(parsed.family, known))
        return deepened(known[parsed.family](parsed, window or ClipWindow()), states)
    if parsed.family not in FAMILIES:
        raise TowerError("unknown tower family", where=spec, expected=nearest(parsed.family, FAMILIES))
    tower = FAMILIES[parsed.family](parsed, modality, size, context_length)
    if modality == "text" and tower.tokens < context_length:
        tower = lengthen(tower, context_length, positions)
    return tiled(deepened(tower, states), tiles)
