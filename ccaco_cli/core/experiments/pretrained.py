"""Models by name: a finished run, or the SPEC of a pretrained dual encoder that needs no training."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from ccaco_cli.core import config_io, manifest, runtime
from ccaco_cli.core.config import RunConfig
from ccaco_cli.core.errors import ConfigError, ManifestError
from ccaco_cli.core.experiments.run_folder import load_run
from ccaco_cli.core.manifest import Manifest
from ccaco_cli.core.modalities import sides_of
from ccaco_cli.core.model.aligner import Aligner
from ccaco_cli.core.model.aligner import build as build_aligner
from ccaco_cli.core.model.towers.dual_encoders import dual_modalities
from ccaco_cli.core.model.towers.tower import Tower, TowerSpec
from ccaco_cli.core.retrieval.rerank import COSINE
from ccaco_cli.core.tower_config import PRETRAINED

_TRAINED_PARTS = ("lock", "unlock", "lock_side")
_TWO_STEPS = "ccaco train --model {} --dataset NAME --name FIRST on pairs that it aligns, then --model runs/FIRST"
ZERO_SHOT = "zero-shot"
"""Arm of a pretrained model that was not trained here."""


class LoadedModel(NamedTuple):
    """A model that is ready to encode.

    Attributes:
        aligner: on its device, in evaluation mode.
        towers: modality -> tower, for preprocessing.
        config: settings of the run, or of the pretrained model.
        manifest: of the run; of a pretrained model, a description in memory whose hash covers its weights.
    """

    aligner: Aligner
    towers: dict[str, Tower]
    config: RunConfig
    manifest: Manifest


def is_run(model: str | Path) -> bool:
    """Whether this names the folder of a run (finished or not), and not a SPEC."""
    return manifest.exists(Path(model)) or ":" not in str(model)


def name_of(model: str | Path) -> str:
    """A name for files: the run's, or the SPEC's with hyphens."""
    if is_run(model):
        return Path(model).resolve().name
    family, _, source = str(model).partition(":")
    name, _, weights = source.partition("@")
    parts = (family, Path(name).name if Path(name).is_dir() else name, Path(weights).stem)
    return "-".join(re.sub(r"[^\w.]+", "-", part) for part in parts if part)


def _require_model(model: str | Path) -> None:
    """Raises ManifestError: neither a folder nor a SPEC."""
    if ":" not in str(model) and not (str(model) and Path(model).exists()):
        raise ManifestError(
            "no run here",
            where=model or "--model ''",
            expected="a folder with manifest.json, or a SPEC: open_clip:NAME@TAG, open_clip:FOLDER, hf:NAME, hf:FOLDER",
            next="ccaco train --dataset NAME, or name the family of a pretrained model: open_clip: or hf:",
        )


def open_model(model: str | Path, device: str = "auto", verify: str = manifest.FULL) -> LoadedModel:
    """Loads the best model of a finished run, or a pretrained dual encoder.

    Args:
        model: folder of a run, or ``open_clip:NAME@TAG``, ``open_clip:FOLDER``, ``hf:NAME``, ``hf:FOLDER``.
        verify: quick | full: whether every file of a run is hashed first.
    Raises:
        ManifestError: no finished run.
        TowerError: no such model, no weights, or a model without a joint space.
    """
    _require_model(model)
    if is_run(model):
        return LoadedModel(*load_run(Path(model), device, verify))
    spec = TowerSpec.parse(str(model))
    modalities = dual_modalities(spec)
    settings = pretrained_settings(str(model), modalities) | {"loss.beta": 0.0, "arm": ZERO_SHOT}
    config = config_io.override(RunConfig(), settings)
    runtime.seed(config.seed)
    aligner, towers = build_aligner(config.model, config.loss, modalities)
    facts: dict[str, Any] = {
        "name": name_of(model),
        "modalities": list(modalities),
        "towers": {modality: tower.fingerprint for modality, tower in towers.items()},
        "metrics": {},
        "headline": COSINE,
        "weight": 0.0,
        "weights_tried": {},
        "thresholds": {},
    }
    described = Manifest(Path(str(model)), "model", facts, config=asdict(config))
    return LoadedModel(aligner.to(runtime.device(device)).eval(), towers, config, described)


def pretrained_settings(
    model: str, modalities: tuple[str, str], user_settings: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The settings of a run that starts from a pretrained model, dotted key -> value.

    Args:
        model: SPEC of a dual encoder, or folder of a finished run.
        modalities: of the data set.
        user_settings: those of flags and of a config file, dotted key -> value.
    Raises:
        ConfigError: the model aligns other modalities (a run may share one with the data set), or the user names other
            towers, too.
        ManifestError: no finished run.
        TowerError: no dual encoder.
    """
    _require_model(model)
    if is_run(model):
        run = manifest.open(Path(model), kind="run")
        aligned = sides_of(run)
        fits, expected = bool(set(aligned) & set(modalities)), " or ".join(modalities)
        settings = _settings_of_run(run, modalities, user_settings or {})
    else:
        aligned = dual_modalities(TowerSpec.parse(model))
        fits, expected = aligned == tuple(modalities), " and ".join(modalities)
        settings = {
            f"model.{m}.{key}": value for m in aligned for key, value in (("spec", model), ("head", PRETRAINED))
        }
    if not fits:
        raise ConfigError(
            f"this model aligns {' and '.join(aligned)}",
            where=f"--model {model}",
            expected=f"a model of {expected}, as the data set has them",
            next=None if is_run(model) or not set(aligned) & set(modalities) else _TWO_STEPS.format(model),
        )
    _refuse_other_towers(model, settings, user_settings or {})
    return settings | {"model.spec": model}


def _settings_of_run(run: Manifest, modalities: tuple[str, str], user_settings: Mapping[str, Any]) -> dict[str, Any]:
    """The architecture of a run, and not which parts were trained; of a new pair, only that of its sides.

    Sides that the data set lacks stay in the model as they are (ImageBind's way of joining modalities,
    arXiv:2305.05665). A shared side whose tower the user locks then keeps its vectors, too.
    """
    sides = sides_of(run)
    further_sides = [m for m in sides if m not in modalities]
    same_pair = tuple(run.facts["modalities"]) == tuple(modalities)
    stored = config_io.flatten({"model": run.config["model"]})
    settings = {}
    for key, value in stored.items():
        part, name = key.split(".")[1], key.rpartition(".")[2]
        if part != "spec" and name not in _TRAINED_PARTS and (same_pair or part in (*sides, "width", "vectors")):
            settings[key] = value
    settings |= {f"model.{m}.lock": stored[f"model.{m}.lock"] for m in further_sides}
    settings["model.further_sides"] = " ".join(further_sides)
    locked = [m for m in modalities if m in sides and user_settings.get(f"model.{m}.lock")] if further_sides else []
    return settings | {f"model.{m}.lock_side": True for m in (*further_sides, *locked)}


def _refuse_other_towers(model: str, settings: Mapping[str, Any], user_settings: Mapping[str, Any]) -> None:
    for key in (key for key in settings if key.endswith(".spec") and key in user_settings):
        if user_settings[key] != settings[key]:
            flag = f"--{key.split('.')[1]}-tower"
            raise ConfigError(
                "two models are named for one tower",
                where=f"--model {model} and {flag} {user_settings[key]}",
                expected="one of them",
                next=f"leave out {flag} to use the pretrained model, or --model to train heads on towers",
            )
