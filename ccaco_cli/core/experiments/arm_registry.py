"""The table of arms, and the decorator that enters an arm into it."""

from __future__ import annotations

from collections.abc import Callable

from ccaco_cli.core.config import RunConfig

Arm = Callable[[RunConfig], RunConfig]
ARMS: dict[str, Arm] = {}
CHANGES: dict[str, tuple[str, ...]] = {}
"""Arm -> the config keys that it may change; ``model.*.pool`` stands for the key of every modality."""


def arm(*names: str, changes: tuple[str, ...] = ()) -> Callable[[Arm], Arm]:
    """Enters a function into ``ARMS`` under each name, and the keys that it may change into ``CHANGES``."""

    def enter(function: Arm) -> Arm:
        for name in names:
            ARMS[name], CHANGES[name] = function, changes
        return function

    return enter
