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
from ccaco_cli.core.experiments.pretrained import pretrained_settings
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
        model = str(self._setting("model.spec", ""))
        pretrained = pretrained_settings(model, data.modalities) if model else {}
        base = pretrained | dict(self.base or {})
        config = recipes.build(base=base, explicit=self.explicit or {}, modalities=data.modalities)
        return arms.apply(replace(config, dataset=self.dataset), self.arm)


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
