"""Defaults that follow from the towers of a run, trained from scratch, locked or fine-tuned, and from the number of its
pairs where it starts from a pretrained model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ccaco_cli.core.config import RunConfig
from ccaco_cli.core.config_io import override
from ccaco_cli.core.modalities import MODALITIES
from ccaco_cli.core.tower_config import ADAPTER

# The cross branch is new, and learns at the rate of new weights (3e-4) beside pretrained ones.
_FINETUNE_PRETRAINED = {"optim.epochs": 5, "optim.lr": 1e-5, "optim.cross_lr": 30.0, "optim.wd": 0.1}

# Locked towers: small layers learn on cached tokens, in large batches and with every caption of a sample. The cross
# branch has its own projections and needs no contrastive warm-up, because there is no tower to share.
_CACHED_TOKENS = {
    "model.fusion.share": False,
    "loss.balance": "fixed",
    "loss.cross_batch": 96,
    "optim.epochs": 25,
    "optim.batch_size": 256,
    "optim.captions": 5,
}

MAX_POOLED = ("image", "array", "array2")
"""Modalities whose samples have parts in few of their tokens, which a mean would hide."""
FROM_SCRATCH = ("tiny", "array")
"""Families of towers that have no published weights."""

RECIPES: dict[str, dict[str, Any]] = {
    # Towers trained from scratch, in minutes on two cores. Objects cover few patches of a small image, so their mean
    # hides them: max pooling. Relations need the places of objects, and an early start of the cross branch.
    "scratch": {
        "optim.epochs": 7,
        "optim.lr": 2e-3,
        "loss.cross_batch": 32,
        "loss.cross_start": 0.1,
        "loss.separation": 10.0,
        **{f"model.{m}.pool": "max" for m in MAX_POOLED},
        "model.fusion.place": True,
        "model.decoder.width": 128,  # as wide as the towers: a step takes half as long again with it, not three times
    },
    # Frozen towers: only heads are trained, four of them, strongly regularised (examples/benchmarks/RESEARCH.md).
    # Several layer states of the text tower give the words alone beside their meaning in the sentence.
    "locked": {
        "model.vectors": 4,
        "model.text.states": -4,
        **_CACHED_TOKENS,
        **{f"model.{m}.input_dropout": 0.6 if m == "image" else 0.2 for m in MODALITIES},
        **{f"model.{m}.head_dropout": 0.5 for m in MODALITIES},
    },
    # Pretrained towers that are trained further.
    "finetune": {"optim.epochs": 5, "optim.lr": 3e-5, "optim.wd": 0.1, "optim.batch_size": 64},
    # A pretrained model (--model SPEC), from few pairs to many. Small residual adapters on locked towers learn in
    # seconds and change little (CLIP-Adapter, arXiv:2110.04544).
    "adapter": {
        **{f"model.{m}.lock": True for m in MODALITIES},
        **{f"model.{m}.head": ADAPTER for m in MODALITIES},
        **_CACHED_TOKENS,
    },
    # The last blocks hold what is special to the task; those before them stay general.
    "last-blocks": {**{f"model.{m}.unlock": -2 for m in MODALITIES}, **_FINETUNE_PRETRAINED},
    # Everything learns, deeper blocks less the earlier they are (arXiv:2212.06138).
    "everything": {"optim.layer_decay": 0.75, **_FINETUNE_PRETRAINED},
    # Another way of fine-tuning that the user chose.
    "pretrained": _FINETUNE_PRETRAINED,
    # Low-rank updates start at zero and take a higher rate (arXiv:2106.09685).
    "lora": {**_FINETUNE_PRETRAINED, "optim.lr": 2e-4, "optim.cross_lr": 1.5},
}
FEW_PAIRS, MANY_PAIRS = 10_000, 200_000
"""Pairs of training below which adapters are trained, and from which everything learns; rules of thumb."""
WAYS = ("lock", "unlock", "head", "lora", "layer_decay")
"""Settings, by their last part, by which a user chooses a way to fine-tune a pretrained model."""


@dataclass(frozen=True)
class RecipeChoice:
    """The recipe of a run that starts from a pretrained model.

    Attributes:
        name: key of ``RECIPES``.
        pairs: number of pairs of training.
        reason: why, as a sentence for the user.
    """

    name: str
    pairs: int
    reason: str


def pretrained_recipe(user: Mapping[str, Any], modalities: Iterable[str], pairs: int) -> RecipeChoice:
    """The way to fine-tune a pretrained model: the user's, else one that suits the number of pairs.

    Args:
        user: settings of the file and the flags; dotted key -> value.
        pairs: of training.
    """
    chosen = [key for key in user if key.rpartition(".")[2] in WAYS]
    if not chosen:
        name, size = "everything", f"{MANY_PAIRS:,} pairs or more"
        if pairs < MANY_PAIRS:
            name, size = "last-blocks", f"fewer than {MANY_PAIRS:,} pairs"
        if pairs < FEW_PAIRS:
            name, size = "adapter", f"fewer than {FEW_PAIRS:,} pairs"
        return RecipeChoice(name, pairs, f"recipe {name}: {_EFFECTS[name]} ({pairs:,} pairs: {size})")
    locked = all(user.get(f"model.{m}.lock") for m in modalities)
    name = "adapter" if locked else "lora" if user.get("optim.lora") else "pretrained"
    return RecipeChoice(name, pairs, f"recipe {name}: chosen by {', '.join(chosen)}")


_EFFECTS = {
    "adapter": "towers are locked, and a residual adapter on each embedding learns",
    "last-blocks": "the last two blocks of each tower learn, with its final norm and projection",
    "everything": "everything learns, at 0.75 times the rate with every block further from the output",
}
"""Recipe -> what it trains."""


def recipe_of(config: RunConfig, modalities: Iterable[str]) -> str:
    """The recipe that suits the towers of these modalities: ``scratch``, ``locked`` or ``finetune``."""
    towers = [config.model.tower(m) for m in modalities]
    if all(tower.lock for tower in towers):
        return "locked"
    scratch = all(
        tower.spec.removeprefix("frames:").partition(":")[0] in FROM_SCRATCH or tower.spec.endswith("@none")
        for tower in towers
        if not tower.lock
    )
    return "scratch" if scratch else "finetune"


def build(
    *,
    base: Mapping[str, Any],
    explicit: Mapping[str, Any],
    modalities: Iterable[str],
    start: Mapping[str, Any] | None = None,
    recipe: str | None = None,
) -> RunConfig:
    """Resolves the config of a run: defaults, the settings of the model that it starts from (``start``), the recipe,
    the file (``base``), the flags (``explicit``).

    Args:
        recipe: its name; None = the recipe of the towers.
    Raises:
        ConfigError: as ``config_io.override``.
    """
    modalities = tuple(modalities)
    defaults = override(RunConfig(), start or {})
    requested = override(override(defaults, base), explicit)
    settings = RECIPES[recipe or recipe_of(requested, modalities)]
    other = tuple(f"model.{m}." for m in MODALITIES if m not in modalities)
    if recipe is not None:  # the towers that the data set does not have stay as they are
        settings = {key: value for key, value in settings.items() if not key.startswith(other)}
    return override(override(override(defaults, settings), base), explicit)
