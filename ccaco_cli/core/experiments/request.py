"""What the user requests of a training, and how it becomes a config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ccaco_cli.core import recipes
from ccaco_cli.core.config import ParallelConfig, RunConfig
from ccaco_cli.core.data.shards import PairData
from ccaco_cli.core.data.split_shares import require_splits
from ccaco_cli.core.errors import ConfigError
from ccaco_cli.core.evaluation.protocols import pools, single_pair_evaluation
from ccaco_cli.core.experiments import arms
from ccaco_cli.core.experiments.pretrained import is_run, pretrained_settings
from ccaco_cli.core.modalities import MODALITIES
from ccaco_cli.core.recipes import RecipeChoice
from ccaco_cli.core.training import config_checks


@dataclass(frozen=True)
class TrainRequest:
    """The settings of a training before they are resolved.

    Attributes:
        dataset: name or folder of a prepared data set.
        arm: applied last, on top of the settings.
        base: settings of a config file; dotted key -> value.
        explicit: settings of flags, which override ``base``.
    """

    dataset: str
    arm: str = "ccaco"
    base: Mapping[str, Any] | None = None
    explicit: Mapping[str, Any] | None = None

    @property
    def seed(self) -> int:
        return int((self.explicit or {}).get("seed", (self.base or {}).get("seed", 0)))

    @property
    def device(self) -> str:
        return str(self._setting("device", "auto"))

    @property
    def timeout(self) -> float:
        """Minutes without a sign of another process after which it counts as lost."""
        value = self._setting("parallel.timeout", ParallelConfig.timeout)
        return float(value) if isinstance(value, int | float) and value > 0 else ParallelConfig.timeout

    def _setting(self, key: str, default: Any) -> Any:
        return (self.explicit or {}).get(key, (self.base or {}).get(key, default))

    def resolve(self, data: PairData) -> RunConfig:
        """The config of the run on a data set."""
        model, base, recipe = self._model, dict(self.base or {}), self.recipe(data)
        user = base | dict(self.explicit or {})
        start = pretrained_settings(model, data.modalities, user) if model else {}
        if model and recipe is None:  # the architecture of a run is no default that a recipe replaces
            start, base = {}, start | base
        config = recipes.build(
            base=base,
            explicit=self.explicit or {},
            modalities=data.modalities,
            start=_measured(data) | start,
            recipe=recipe.name if recipe else None,
        )
        return arms.apply(replace(config, dataset=self.dataset), self.arm)

    def recipe(self, data: PairData) -> RecipeChoice | None:
        """The recipe by which a pretrained model is fine-tuned; None where the run does not start from a SPEC."""
        if not self._model or is_run(self._model):
            return None
        user = {**(self.base or {}), **(self.explicit or {})}
        return recipes.pretrained_recipe(user, data.modalities, _count_pairs(data))

    @property
    def _model(self) -> str:
        """The model that the run starts from; "" = none."""
        return str(self._setting("model.spec", ""))


def _measured(data: PairData) -> dict[str, Any]:
    """The settings of towers that follow from the training split."""
    if "train" not in data.splits:  # which is refused later, with what to do
        return {}
    return {
        f"model.{modality}.{name}": value
        for modality in data.modalities
        for name, value in MODALITIES[modality].measure(data, modality).items()
    }


def _count_pairs(data: PairData) -> int:
    if "train" not in data.splits:  # which is refused later, with what to do
        return 0
    split = data.split("train")
    return int(split.caption_count.sum()) if "text" in data.modalities else len(split)


def check(config: RunConfig, data: PairData) -> None:
    """Checks settings that would otherwise fail only after the training.

    Raises:
        ConfigError or DataError: no such validation metric or protocol, or the data does not fit the protocol.
    """
    require_splits(data.manifest, data.splits)
    config_checks.check(config)
    known = single_pair_evaluation(data.modalities).metrics
    if config.eval.select not in known:
        raise ConfigError(
            "no such validation metric", where=f"eval.select = {config.eval.select!r}", expected=" | ".join(known)
        )
    split = data.split("test" if "test" in data.splits else "val")
    pools(
        config.eval.protocol if split.name == "test" else "full",
        *(split.group[split.caption_row] if m == "text" else split.group for m in data.modalities),
    )
