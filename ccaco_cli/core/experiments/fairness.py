"""What all arms of a comparison must have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ccaco_cli.core.config_io import flatten
from ccaco_cli.core.errors import ConfigError

FAIR = {
    "step budget": ("optim.steps", "optim.epochs", "optim.batch_size", "optim.captions", "optim.accum_freq"),
    "evaluation pool": ("eval.protocol", "eval.small"),
    "selection rule": ("eval.select", "eval.exhaustive", "optim.patience"),
}
"""Rule -> config keys that must have the same values in all arms of a comparison."""


def same_for_every_seed(config: Mapping[str, Any]) -> bool:
    """Whether runs of this nested config have the same results for every seed: a pretrained model without training."""
    return config.get("method") == "zero-shot" and not str(config["model"]["spec"]).endswith("@none")


def check_fair(configs: Mapping[str, Mapping[str, Any]]) -> None:
    """Checks that arms can be compared.

    Args:
        configs: label of each arm -> its nested config.
    Raises:
        ConfigError: arms differ in step budget, evaluation pool or selection rule; names the arms and the keys.
    """
    flat = {label: flatten(config) for label, config in configs.items() if config}
    for rule, keys in FAIR.items():
        labels_by_values: dict[tuple[Any, ...], list[str]] = {}
        for label, config in flat.items():
            # epochs have no effect where steps are set
            values = tuple(
                None if key == "optim.epochs" and config.get("optim.steps") else config.get(key) for key in keys
            )
            labels_by_values.setdefault(values, []).append(label)
        if len(labels_by_values) > 1:
            differing = [i for i in range(len(keys)) if len({values[i] for values in labels_by_values}) > 1]
            groups = (
                f"{', '.join(labels)} ({', '.join(f'{keys[i]} = {values[i]}' for i in differing)})"
                for values, labels in labels_by_values.items()
            )
            raise ConfigError(
                f"the arms differ in {rule}",
                where="; ".join(groups),
                expected=f"one {rule} for all",
                next="leave some of them out, or set these keys for all",
            )
