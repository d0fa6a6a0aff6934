"""Tokens of several hidden states: early ones describe a word by itself, late ones in its sentence."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from ccaco_cli.core.errors import TowerError
from ccaco_cli.core.model.towers.tower import Tower
from ccaco_cli.core.model.towers.weights import fingerprint


def evenly_spaced_layers(states: int, layers: int) -> list[int]:
    """Chooses ``states`` layer numbers from 0 (the input of the first layer) to ``layers`` (the output of the last).

    (1, 6) -> [6]; (2, 6) -> [0, 6]; (3, 6) -> [0, 3, 6]
    """
    return [layers] if states == 1 else [layers * index // (states - 1) for index in range(states)]


def with_hidden_states(tower: Tower, states: int) -> Tower:
    """Concatenates several hidden states in each token (ELMo, arXiv:1802.05365, learns their weights).

    Args:
        tower: a tower; one with a single state is returned as it is when ``states`` allows it.
        states: number of states; negative = at most so many, as many as the tower has.
    Returns:
        Tower with width ``states`` * W.
    Raises:
        TowerError: no state, more than the tower has, or a tower that returns its last state only.
    """
    key, available = f"model.{tower.modality}.states", tower.hidden_states
    if states < 0:
        states = min(-states, available)
    if states == 1:
        return tower
    if tower.select_hidden_states is None or available == 1:
        raise TowerError("this tower gives its last state only", where=tower.spec, expected=f"{key} = 1")
    if not 1 <= states <= available:
        raise TowerError(f"{states} states do not fit", where=tower.spec, expected=f"{key} from 1 to {available}")
    tower.select_hidden_states(evenly_spaced_layers(states, available - 1))
    return replace(
        tower,
        width=states * tower.width,
        fingerprint=fingerprint(nn.Module(), tower.fingerprint, states),
        pooled_from="model",
    )
