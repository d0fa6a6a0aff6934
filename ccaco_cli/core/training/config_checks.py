"""Checks of training settings that would only fail in the middle of a run."""

from __future__ import annotations

from ccaco_cli.core import config_io
from ccaco_cli.core.config import RunConfig
from ccaco_cli.core.errors import ConfigError
from ccaco_cli.core.losses.total import check_losses
from ccaco_cli.core.training import augment, parallel


def check(config: RunConfig) -> None:
    """Raises ConfigError: a setting is unknown, out of range, or does not fit another one."""
    config_io.validate(config)
    parallel.check(config)
    augment.check(config.model)
    if config.loss.beta > 0:
        check_losses(config.loss)
    if not (config.loss.alpha or config.loss.beta or config.domain.classify):
        raise ConfigError(
            "nothing to learn",
            where="loss.alpha = 0, loss.beta = 0, domain.classify = 0",
            expected="one of them above 0",
        )
    if config.method == "gradient" and config.optim.batch_size == 1 and (config.loss.alpha or config.loss.beta):
        raise ConfigError(
            "the contrastive and the cross-attention loss compare a pair with the other pairs of its batch",
            where="optim.batch_size = 1",
            expected="2 or more",
            next="--batch-size 128, or, with too little memory, 16",
        )
