"""Several states of a tower side by side in each token: what a word is by itself, beside what it means in its sentence."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from ccaco_cli.core.errors import TowerError
from ccaco_cli.core.model.towers.tower import Tower
from ccaco_cli.core.model.towers.weights import fingerprint


def depths(states: int, layers: int) -> list[int]:
    """Which states of a tower of so many layers, evenly spaced: 0 is what goes into the first, ``layers`` what comes out of the last.

    (1, 6) -> [6]; (2, 6) -> [0, 6]; (3, 6) -> [0, 3, 6]
    """
    return [layers] if states == 1 else [layers * nth // (states - 1) for nth in range(states)]


def deepened(tower: Tower, states: int) -> Tower:
    """A tower whose tokens hold so many of its states (ELMo, arXiv:1802.05365, weighs them; here the projections behind the tower do).

    states  negative: at most so many, as many as the tower has
    Raises  TowerError: none, more than there are, or a tower that gives its last state only
    """
    module: Any = tower.module
    key, most = f"model.{tower.modality}.states", module.layers + 1 if hasattr(module, "depths") else 1
    if states < 0:
        states = min(-states, most)
    if states == 1:
        return tower
    if most == 1:
        raise TowerError("this tower gives its last state only", where=tower.spec, expected=f"{key} = 1")
    if not 1 <= states <= most:
        raise TowerError(f"{states} states do not fit", where=tower.spec, expected=f"{key} from 1 to {most}")
    module.depths = depths(states, module.layers)
    return replace(tower, width=states * tower.width, fingerprint=fingerprint(nn.Module(), tower.fingerprint, states))
