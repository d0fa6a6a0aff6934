"""The model that a run starts from: new weights, a pretrained dual encoder, or the best model of a finished run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from ccaco_cli.core import manifest, runtime
from ccaco_cli.core.config import RunConfig
from ccaco_cli.core.data.loader import Column
from ccaco_cli.core.encoding.encode import encode
from ccaco_cli.core.errors import ConfigError
from ccaco_cli.core.experiments.pretrained import is_run
from ccaco_cli.core.experiments.run_folder import load_run
from ccaco_cli.core.manifest import Manifest
from ccaco_cli.core.modalities import blank_separated, sides_of
from ccaco_cli.core.model import aligner as aligners
from ccaco_cli.core.model import weights
from ccaco_cli.core.model.aligner import CROSS_BRANCH, Aligner
from ccaco_cli.core.model.decoder import DECODER
from ccaco_cli.core.model.towers.tower import Tower
from ccaco_cli.core.tower_config import ADAPTER

LOGIT_BIAS = "logit_bias"
MOVED_ITEMS = 512
"""Items on which it is measured how far a side moves."""


@dataclass(frozen=True)
class StartModel:
    """The model of a run before its first step.

    Attributes:
        aligner: on the CPU.
        towers: modality -> tower.
        run: manifest of the run that it was taken from; None = it is none.
        cross_trained: whether the cross branch was trained in that run.
        moving: sides of that run that learn, while a further side of it does not.
    """

    aligner: Aligner
    towers: dict[str, Tower]
    run: Manifest | None = None
    cross_trained: bool = False
    moving: tuple[str, ...] = ()

    @property
    def new_sides(self) -> tuple[str, ...]:
        """Sides of the pair that the run lacks: they start with weights that have learned nothing of it."""
        sides = self.aligner.modalities if self.run is None else sides_of(self.run)
        return tuple(modality for modality in self.aligner.modalities if modality not in sides)


def build_start(config: RunConfig, modalities: tuple[str, str]) -> StartModel:
    """Builds the model of a config, with the weights of the run that ``model.spec`` names, if it names one.

    The cross branch and the decoder of that run are taken over where they are of the same pair and have the same
    architecture; otherwise they start anew. So does a side that the run has not.

    Raises:
        ManifestError: the run is not there, not finished or damaged.
        ConfigError: the settings change the architecture of the run.
    """
    from_run = bool(config.model.spec) and is_run(config.model.spec)
    sides = sides_of(manifest.open(Path(config.model.spec), kind="run")) if from_run else ()
    _check_further_sides(config.model.further_sides, [m for m in sides if m not in modalities])
    aligner, towers = aligners.build(config.model, config.loss, modalities, trains=True)
    if not from_run:
        return StartModel(aligner, towers)
    source, _, source_config, run = load_run(Path(config.model.spec), "cpu")
    has_cross = _copy_weights(source, aligner, config.model.spec)
    aligner.stores_locked_towers = True
    towers |= {m: replace(towers[m], fingerprint=_fingerprint(run, source_config, m)) for m in sides}
    runtime.seed(config.seed)
    learning = [m for m in modalities if m in sides and not config.model.tower(m).lock_side]
    moving = tuple(learning) if config.model.further_sides else ()
    return StartModel(aligner, towers, run, has_cross and _trained_cross(run, source_config), moving)


def _check_further_sides(setting: str, sides: list[str]) -> None:
    """Raises ConfigError: ``model.further_sides`` does not name the sides of the start that the data set lacks."""
    if set(blank_separated(setting)) != set(sides):
        raise ConfigError(
            "the further sides of a model are those of the run that it continues",
            where=f"model.further_sides = {setting!r}",
            expected=repr(" ".join(sides)),
            next="leave it out",
        )


def side_vectors(aligner: Aligner, modalities: Iterable[str], columns: Mapping[str, Column]) -> dict[str, Tensor]:
    """Vectors [n, E] of the first items of some sides, by modality: they tell how far a training moves a side."""
    return {
        m: encode(aligner, m, columns[m], items=np.arange(min(len(columns[m].row), MOVED_ITEMS))).z for m in modalities
    }


def _trained_cross(run: Manifest, config: RunConfig) -> bool:
    """Whether the cross branch of a run has trained weights: not where its best model was its pretrained start."""
    return config.loss.beta > 0 and (config.loss.alpha == 0 or bool(run.facts["weights_tried"]))


def add_updates(aligner: Aligner, config: RunConfig) -> None:
    """Adds the low-rank updates that are trained in place of the towers, with ``optim.lora``. Raises ConfigError."""
    if config.optim.lora:
        from ccaco_cli.core.model.low_rank import add_low_rank

        add_low_rank(aligner, config.optim.lora)


def _copy_weights(source: Aligner, target: Aligner, path: str) -> bool:
    """Copies the weights of a run; returns False where its cross branch does not fit. Raises ConfigError."""
    tensors, state = source.state_dict(), target.state_dict()
    parts = CROSS_BRANCH, DECODER
    source_parts, target_parts = ([_weights_named(part, model) for part in parts] for model in (tensors, state))
    optional = {name for part in source_parts for name in part}
    copied = {name: tensor for name, tensor in tensors.items() if name not in optional and _is_common(name, state)}
    # these may start anew
    new = {LOGIT_BIAS, *_adapter_weights(target), *(name for part in target_parts for name in part)}
    new |= _weights_named(tuple(f"sides.{m}." for m in target.modalities if m not in source.sides), state).keys()
    if differences := weights.shape_differences(state.keys() - new, state, copied):
        raise ConfigError(
            f"the settings change the architecture of this run: {differences}",
            where=f"--model {path}",
            expected="the model settings of the run",
            next="leave out the settings of the model",
        )
    has_cross, has_decoder = (
        bool(part)
        and source.modalities == target.modalities
        and not weights.shape_differences(part.keys(), part, loaded)
        for part, loaded in zip(target_parts, source_parts, strict=True)
    )
    cross, decoder = source_parts
    target.load_state_dict(copied | (cross if has_cross else {}) | (decoder if has_decoder else {}), strict=False)
    return has_cross


def _weights_named(prefixes: tuple[str, ...], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if name.startswith(prefixes)}


def _is_common(name: str, state: Mapping[str, Tensor]) -> bool:
    """Whether a weight must be in both models: the bias of the sigmoid loss may be in one only."""
    return name != LOGIT_BIAS or name in state


def _adapter_weights(aligner: Aligner) -> list[str]:
    prefixes = tuple(f"sides.{m}.heads." for m in aligner.modalities if aligner.encoder(m).config.head == ADAPTER)
    return [name for name in aligner.state_dict() if prefixes and name.startswith(prefixes)]


def _fingerprint(run: Manifest, config: RunConfig, modality: str) -> str:
    """The fingerprint of a tower of a run: as it was built where the run locked it, else one of its trained weights."""
    fingerprint: str = run.facts["towers"][modality]
    if config.model.tower(modality).lock:
        return fingerprint
    return hashlib.sha256(f"{fingerprint} {run.sha256}".encode()).hexdigest()
