"""Towers by family.

A new family is a module with a builder ``(TowerSpec, TowerConfig) -> Tower`` and one entry in ``tower_families`` of its
modality (``core/modalities.py``). ``build`` probes every tower before anything is written (``probing``).
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ccaco_cli.core import runtime
from ccaco_cli.core.config import TowerConfig
from ccaco_cli.core.errors import CcacoError, TowerError
from ccaco_cli.core.modalities import MODALITIES
from ccaco_cli.core.model.towers.hidden_states import with_hidden_states
from ccaco_cli.core.model.towers.positions import extend_context
from ccaco_cli.core.model.towers.probing import probe, probe_length
from ccaco_cli.core.model.towers.tiles import with_tiles
from ccaco_cli.core.model.towers.tower import Tower, TowerSpec
from ccaco_cli.core.model.towers.weights import first_line, nearest

Builder = Callable[[TowerSpec, TowerConfig], Tower]
MAX_TOKENS = 2**18
"""Tokens of a sample up to which a tower is tried: those of more do not fit memory."""
MATRIX_BYTES = 12
"""Memory of one score of a token of a text with another one: a mask in float32, and what it is made of."""
PIXEL_BYTES = 76
"""Memory of one pixel of an image in float32, with the 64 channels of a first layer at half the size."""


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
            fit, or a model that does not pass the checks of ``probing``.
    """
    spec, known = TowerSpec.parse(config.spec), families(modality)
    if spec.family not in known:
        every_family = {family for name in MODALITIES for family in families(name)}
        if spec.family not in every_family:
            raise TowerError("unknown tower family", where=config.spec, expected=nearest(spec.family, every_family))
        raise TowerError(
            f"family {spec.family} has no {modality} tower", where=config.spec, expected=nearest(spec.family, known)
        )
    _refuse_large_samples(config, modality, config.context_length if modality == "text" else 0)
    try:
        tower = known[spec.family](spec, config)
    except (CcacoError, MemoryError):
        raise
    except Exception as error:  # models of other libraries fail in different ways
        raise TowerError(
            f"no {modality} tower can be built of this model ({type(error).__name__}: {first_line(error)})",
            where=config.spec,
            expected=f"a model that encodes {modality} inputs",
            next=f"another {modality} tower, such as tiny",
        ) from error
    if config.projected:
        _refuse_other_inputs(config, modality, tower)
    _refuse_large_samples(config, modality, tower.tokens)
    extended = modality == "text" and tower.tokens < config.context_length
    if extended:
        tower = extend_context(tower, config.context_length, config.positions)
    probe(tower)
    if extended:
        probe_length(tower)
    tower = with_hidden_states(tower, config.states)
    probe(tower)
    return with_tiles(tower, config.tiles)  # not probed again: tiles are passes of the tower that was probed


def _refuse_large_samples(config: TowerConfig, modality: str, tokens: int) -> None:
    """Raises TowerError: a sample of so many tokens, or of the size in the config, would not fit memory."""
    required = MATRIX_BYTES * tokens**2 if modality == "text" else PIXEL_BYTES * config.size**2
    if tokens <= MAX_TOKENS and required <= runtime.available_memory(torch.device("cpu")):
        return
    raise TowerError(
        "a sample of this size does not fit the memory of this machine",
        where=f"the {modality} tower {config.spec}, " + (f"{tokens:,} tokens" if tokens else f"{config.size:,} pixels"),
        expected=f"at most {MAX_TOKENS:,} tokens, and {required / 2**30:,.1f} GiB of free memory for one sample",
        next="a smaller " + {"image": "--image-size", "text": "--context-length"}.get(modality, "size, length or rate"),
    )


def _refuse_other_inputs(config: TowerConfig, modality: str, tower: Tower) -> None:
    """Raises TowerError: settings with which a pretrained model would give other embeddings than in its library."""
    if modality == "text" and tower.tokens < config.context_length:
        raise TowerError(
            f"this pretrained model takes at most {tower.tokens} tokens",
            where=f"model.text.context_length = {config.context_length}, {config.spec}",
            expected=f"0, or at most {tower.tokens}",
            next="leave out --context-length: longer texts are cut, as in the model's own library",
        )
    if config.tiles:
        raise TowerError(
            "a pretrained model sees its images whole, not in tiles",
            where=f"model.{modality}.tiles = {config.tiles}, {config.spec}",
            expected="no tiles",
            next=f"leave out --tile, or train heads on it: --{modality}-tower SPEC",
        )
