"""Whether the layers of a model fit memory, found before they are made."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from ccaco_cli.core import runtime
from ccaco_cli.core.config import ModelConfig
from ccaco_cli.core.errors import ConfigError

TRAINED_COPIES = 4
"""Numbers that training holds of each weight: the weight, its gradient and the two moments of AdamW."""


def check_memory(make: Callable[[], nn.Module], config: ModelConfig) -> None:
    """Checks the weights that a function makes, without making them; weights that exist already do not count.

    Raises:
        ConfigError: they do not fit the memory of this machine when they are trained.
    """
    with torch.device("meta"):
        sketch = make()
    sizes = [p.numel() * p.element_size() for p in sketch.parameters() if p.is_meta]
    required, available = TRAINED_COPIES * sum(sizes), runtime.available_memory(torch.device("cpu"))
    if required <= available:
        return
    fusion = config.fusion
    settings = {"width": config.width, "vectors": config.vectors, "fusion.kind": repr(fusion.kind)}
    raise ConfigError(
        f"the layers beside the towers take {required / 2**30:,.0f} GiB in training, of {available / 2**30:,.0f} GiB",
        where=", ".join(f"model.{k} = {v}" for k, v in (settings | {"fusion.layers": fusion.layers}).items()),
        expected="a model that fits the memory of this machine",
        next="--set model.width=256 --set model.vectors=1 --set model.fusion.layers=1",
    )
