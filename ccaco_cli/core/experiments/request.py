"""What the user asked a training to be, and how it becomes a config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ccaco_cli.core import config as configs
from ccaco_cli.core.config import ParallelConfig, RunConfig
from ccaco_cli.core.data.shards import PairData
from ccaco_cli.core.errors import ConfigError
from ccaco_cli.core.evaluation.protocols import by_similarity, evaluate, pools
from ccaco_cli.core.experiments import arms
from ccaco_cli.core.experiments.methods import METHODS
from ccaco_cli.core.training import loop


@dataclass(frozen=True)
class TrainRequest:
    """What the user asked for, before it is resolved: file settings (``base``), then flags (``explicit``), then the arm."""

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
        """Minutes after which another process counts as lost."""
        value = self._setting("parallel.timeout", ParallelConfig.timeout)
        return float(value) if isinstance(value, int | float) and value > 0 else ParallelConfig.timeout

    def _setting(self, key: str, default: Any) -> Any:
        return (self.explicit or {}).get(key, (self.base or {}).get(key, default))

    def resolve(self, data: PairData) -> RunConfig:
        config = configs.build(base=self.base or {}, explicit=self.explicit or {}, modalities=data.modalities)
        return arms.apply(replace(config, dataset=self.dataset), self.arm)


def check(config: RunConfig, data: PairData) -> None:
    """Raises ConfigError or DataError for settings that would only fail when the run is over."""
    loop.check(config)
    if config.method not in METHODS:
        raise ConfigError("no such method", where=f"method = {config.method!r}", expected=" | ".join(METHODS))
    known = evaluate(
        "full", [0], [0], by_similarity(np.ones((1, 1)), np.ones((1, 1)), [0], [0]), data.modalities
    ).metrics
    if config.eval.select not in known:
        raise ConfigError(
            "no such validation figure", where=f"eval.select = {config.eval.select!r}", expected=" | ".join(known)
        )
    part = data.split("test" if "test" in data.splits else "val")
    pools(
        config.eval.protocol if part.name == "test" else "full",
        *(part.group[part.caption_row] if m == "text" else part.group for m in data.modalities),
    )
