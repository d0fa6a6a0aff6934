"""Towers by family.

A new family is a module with a builder ``(TowerSpec, TowerConfig) -> Tower`` and one entry in ``tower_families`` of its
modality (``core/modalities.py``).
"""

from __future__ import annotations

from collections.abc import Callable

from ccaco_cli.core.config import TowerConfig
from ccaco_cli.core.errors import TowerError
from ccaco_cli.core.modalities import MODALITIES
from ccaco_cli.core.model.towers.hidden_states import with_hidden_states
from ccaco_cli.core.model.towers.positions import extend_context
from ccaco_cli.core.model.towers.tiles import with_tiles
from ccaco_cli.core.model.towers.tower import Tower, TowerSpec
from ccaco_cli.core.model.towers.weights import nearest

Builder = Callable[[TowerSpec, TowerConfig], Tower]


def families(modality: str) -> dict[str, Builder]:
    """Returns the tower families of a modality, by name."""
    return dict(MODALITIES[modality].tower_families)


def build(config: TowerConfig, modality: str) -> Tower:
    """Builds the tower that ``config.spec`` names.

    Args:
        config: ``spec``, ``size``, ``tiles``, ``context_length``, ``positions``, ``states``, ``seconds``, ``rate`` and
            ``normalisation`` are read, each by the towers that have a use for it.
        modality: image | text | audio | video.
    Returns:
        Tower in training mode, on the CPU, float32; random weights come from torch's global generator.
    Raises:
        TowerError: unknown family or name, a modality that the family does not have, weights that are missing or do not
            fit.
    """
    spec, known = TowerSpec.parse(config.spec), families(modality)
    if spec.family not in known:
        every_family = {family for name in MODALITIES for family in families(name)}
        if spec.family not in every_family:
            raise TowerError("unknown tower family", where=config.spec, expected=nearest(spec.family, every_family))
        raise TowerError(
            f"family {spec.family} has no {modality} tower", where=config.spec, expected=nearest(spec.family, known)
        )
    tower = known[spec.family](spec, config)
    if modality == "text" and tower.tokens < config.context_length:
        tower = extend_context(tower, config.context_length, config.positions)
    return with_tiles(with_hidden_states(tower, config.states), config.tiles)
