"""Defaults that follow from the towers of a run: trained from scratch, locked, or fine-tuned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ccaco_cli.core.config import RunConfig
from ccaco_cli.core.config_io import override

RECIPES: dict[str, dict[str, Any]] = {
    # Towers trained from scratch, in minutes on two cores. Objects cover few patches of a small image, so their mean
    # hides them: max pooling.
    "scratch": {"optim.epochs": 7, "optim.lr": 2e-3, "loss.cross_batch": 32, "model.image.pool": "max"},
    # Frozen towers: only heads are trained, four of them, strongly regularised (examples/benchmarks/RESEARCH.md). The
    # cross branch has its own projections and needs no contrastive warm-up, because there is no tower to share. Several
    # layer states of the text tower give the words alone beside their meaning in the sentence.
    "locked": {
        "model.vectors": 4,
        "model.text.states": -4,
        "model.fusion.share": False,
        "loss.balance": "fixed",
        "loss.cross_batch": 96,
        "optim.epochs": 25,
        "optim.batch_size": 256,
        "optim.captions": 5,
        "model.image.input_dropout": 0.6,
        "model.text.input_dropout": 0.2,
        "model.audio.input_dropout": 0.2,
        "model.video.input_dropout": 0.2,
        "model.image.head_dropout": 0.5,
        "model.text.head_dropout": 0.5,
        "model.audio.head_dropout": 0.5,
        "model.video.head_dropout": 0.5,
    },
    # Pretrained towers that are trained further.
    "finetune": {"optim.epochs": 5, "optim.lr": 3e-5, "optim.wd": 0.1, "optim.batch_size": 64},
}


def recipe_of(config: RunConfig, modalities: Iterable[str]) -> str:
    """The recipe that suits the towers of these modalities: ``scratch``, ``locked`` or ``finetune``."""
    towers = [config.model.tower(m) for m in modalities]
    if all(tower.lock for tower in towers):
        return "locked"
    scratch = all(
        tower.spec.removeprefix("frames:").partition(":")[0] == "tiny" or tower.spec.endswith("@none")
        for tower in towers
        if not tower.lock
    )
    return "scratch" if scratch else "finetune"


def build(*, base: Mapping[str, Any], explicit: Mapping[str, Any], modalities: Iterable[str]) -> RunConfig:
    """Resolves the config of a run: defaults, the recipe of its towers, the file (``base``), the flags (``explicit``).

    Raises:
        ConfigError: as ``config_io.override``.
    """
    modalities = tuple(modalities)
    requested = override(override(RunConfig(), base), explicit)
    with_recipe = override(RunConfig(), RECIPES[recipe_of(requested, modalities)])
    return override(override(with_recipe, base), explicit)
