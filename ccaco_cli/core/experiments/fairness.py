"""What all arms of a comparison must have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ccaco_cli.core.config import flatten
from ccaco_cli.core.errors import ConfigError

FAIR = {
    "step budget": ("optim.steps", "optim.epochs", "optim.batch_size", "optim.captions", "optim.accum_freq"),
    "evaluation pool": ("eval.protocol", "eval.small"),
    "selection rule": ("eval.select", "eval.exhaustive", "optim.patience"),
}
"""What all arms of a comparison must have in common, as config keys."""


def check_fair(configs: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises ConfigError naming the arms whose step budget, evaluation pool or selection rule differ; label -> nested config."""
    flat = {label: flatten(config) for label, config in configs.items() if config}
    for rule, keys in FAIR.items():
        met: dict[tuple[Any, ...], list[str]] = {}
        for label, config in flat.items():
            # epochs say nothing where steps are set
            values = tuple(
                None if key == "optim.epochs" and config.get("optim.steps") else config.get(key) for key in keys
            )
            met.setdefault(values, []).append(label)
        if len(met) > 1:
            differing = [i for i in range(len(keys)) if len({values[i] for values in met}) > 1]
            told = (
                f"{', '.join(labels)} ({', '.join(f'{keys[i]} = {v[i]}' for i in differing)})"
                for v, labels in met.items()
            )
            raise ConfigError(
                f"the arms differ in {rule}",
                where="; ".join(told),
                expected=f"one {rule} for all",
                next="leave some of them out, or set these keys for all",
            )
